"""Speed and masks of the network of a run: onnxruntime against PyTorch, in the same process.

    python benchmarks/onnx_inference.py RUN IMAGES [--limit 50] [--threads 2] [--repeats 3]

Each image is segmented from its array by, one after the other:

- onnxruntime: the exported ONNX file, float32;
- PyTorch, single pass: `tagmask predict RUN --single-pass`, in float32 and in the precision that tagmask chooses;
- PyTorch, recipe: with the scales, flips and the dense CRF of the recipe, as `tagmask predict RUN`.

The time of an image is the median of the repeats. A pixel is equal if its label is that of PyTorch's single pass in
float32. Reading images and writing masks are not timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tagmask.base_predictor import BasePredictor

REFERENCE = "PyTorch, single pass, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--limit", type=int, default=50, help="number of images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(arguments.threads)

    import tagmask
    from tagmask.api import load_run

    files = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = [tagmask.read_image(path) for path in files[:: max(1, len(files) // arguments.limit)][: arguments.limit]]
    recipe = load_run(arguments.run, device="cpu").predictor
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = load_run(arguments.run).export(folder, "onnx", quiet=True) / "model.onnx"
        print(f"export and comparison with PyTorch: {time.perf_counter() - start:.1f} s", flush=True)
        predictors: dict[str, BasePredictor] = {
            REFERENCE: load_run(arguments.run, device="cpu", precision="float32").predictor.single_pass(),
            f"PyTorch, single pass, {_precision(recipe)}": recipe.single_pass(),
            f"PyTorch, recipe, {_precision(recipe)}": recipe,
            "onnxruntime": tagmask.load_onnx(path, device="cpu"),
        }
        _compare(predictors, images, arguments.repeats)


def _compare(predictors: Mapping[str, BasePredictor], images: list[np.ndarray], repeats: int) -> None:
    """Print the speed of each predictor, and how many pixels are equal to those of the reference."""
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    equal = dict.fromkeys(predictors, 0)
    for predictor in predictors.values():
        predictor.segment(images[0], None)
    for image in images:
        masks = {}
        for name, predictor in predictors.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                masks[name] = predictor.segment(image, None)
                times.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(times))
        for name, mask in masks.items():
            equal[name] += int((mask == masks[REFERENCE]).sum())
    total = sum(image.shape[0] * image.shape[1] for image in images)
    print(f"{len(images)} images, {total / len(images):,.0f} pixels on average")
    for name, times in seconds.items():
        different = total - equal[name]
        speed = f"{1000 * statistics.mean(times):8.1f} ms/image"
        print(f"{name:36}  {speed}  {100 * equal[name] / total:9.5f} % equal pixels, {different} different")


def _precision(predictor: object) -> str:
    """Return the precision that tagmask chooses for the network of a predictor, e.g. "bfloat16"."""
    compute, network = predictor.compute, predictor.network  # type: ignore[attr-defined]
    return str(compute.autocast_dtype(network)).removeprefix("torch.")


if __name__ == "__main__":
    main()
