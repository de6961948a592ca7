"""Speed of response maps: the stage of the pipeline, a plain loop, and the forward passes alone.

    python benchmarks/maps.py [--backbone resnet50] [--images 16] [--device auto] [--threads 2] [--workers 1]

- stage: `make_missing_maps`, from image files to map files. It waits for data while it needs a batch that no worker has
  loaded yet; on a GPU, nothing else is computed then.
- plain loop: a straightforward implementation with batch size 1, in float32, with one forward pass per scale and flip,
  with maps of all classes, and with PyTorch's default memory allocation.
- forward alone: the forward passes of the stage on random batches, without loading, resizing and writing. The batches,
  the number format and the folded norms are those of the stage.

Each of the three runs in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.loading import load_image_batches
from tagmask.data.samples import Sample, TaggedImages
from tagmask.maps import grid_size
from tagmask.methods.cam import Cam, make_missing_maps
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import prepare_for_inference_inplace, scaled_size
from tagmask.progress import Reporter
from tagmask.stage import InferenceContext
from tagmask.stage_folder import StageFolder

SIZE = (375, 500)
NUM_TAGS, NUM_CLASSES = 2, 20
SETTINGS = Cam()


def main() -> None:
    arguments = _arguments()
    if arguments.implementation:
        print(json.dumps(_IMPLEMENTATIONS[arguments.implementation](arguments)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder), arguments.images)
        command = [sys.executable, __file__, "--folder", folder, "--images", str(arguments.images)]
        command += ["--backbone", arguments.backbone, "--threads", str(arguments.threads)]
        command += ["--device", arguments.device, "--workers", str(arguments.workers)]
        for name in _IMPLEMENTATIONS:
            large_pages = "0" if name == "plain loop" else "1"
            environment = {"OMP_NUM_THREADS": str(arguments.threads), "THP_MEM_ALLOC_ENABLE": large_pages}
            run = subprocess.run(
                [*command, "--implementation", name],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=True,
            )
            results[name] = json.loads(run.stdout.splitlines()[-1])
    print(
        f"{arguments.backbone}, {SIZE[1]}×{SIZE[0]}, {NUM_TAGS} tags, {len(SETTINGS.scales)} scales with horizontal "
        f"flips, {arguments.images} images, {_device_name(arguments)}, {arguments.threads} threads"
    )
    share = results["stage"]["rate"] / results["forward alone"]["rate"]
    for name, result in results.items():
        rate = result.pop("rate")
        print(f"  {name:14} {rate:6.2f} images/s   " + ", ".join(f"{k} {v}" for k, v in result.items()))
    print(f"  the stage reaches {100 * share:.0f} % of the forward passes alone")


def run_stage(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Measure the stage of the pipeline, from image files to map files."""
    classifier, images = _classifier(arguments), _images(arguments)
    compute = Compute.detect(arguments.device, workers=arguments.workers)
    with tempfile.TemporaryDirectory() as out:
        for name in ("warm-up", "measured"):
            context = InferenceContext(StageFolder(Path(out) / name), images, compute, Reporter())
            with _measure_waiting() as waits:
                start = time.perf_counter()
                make_missing_maps(classifier, context, SETTINGS)
                seconds = time.perf_counter() - start
        num_bytes = sum(f.stat().st_size for f in context.folder.path.rglob("*.safetensors"))
    return {
        "rate": len(images) / seconds,
        "number format": str(compute.autocast_dtype(classifier)).removeprefix("torch."),
        "MB per image on disk": round(num_bytes / len(images) / 1e6, 3),
        "waiting for data": f"{100 * sum(waits) / seconds:.1f} % of the stage",
        "of it for the first batch": f"{100 * waits[0] / seconds:.1f} %",
        "time to load the images alone": f"{100 * _loading_seconds(context) / seconds:.1f} % of the stage",
    }


def run_forward(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Measure the forward passes of the stage alone."""
    compute = Compute.detect(arguments.device)
    classifier = prepare_for_inference_inplace(_classifier(arguments), compute)
    batch_size = max(1, compute.batch_pixels // (SIZE[0] * SIZE[1]))
    batches = [torch.randn(2 * batch_size, 3, *scaled_size(SIZE, scale)) for scale in SETTINGS.scales]
    batches = [batch.to(compute.device).contiguous(memory_format=torch.channels_last) for batch in batches]
    rounds = -(-arguments.images // batch_size)
    with torch.inference_mode(), compute.autocast(classifier):
        for batch in batches:
            classifier.activations(batch)
        _synchronize(compute)
        start = time.perf_counter()
        for _ in range(rounds):
            for batch in batches:
                classifier.activations(batch)
        _synchronize(compute)
        seconds = time.perf_counter() - start
    return {"rate": rounds * batch_size / seconds}


def run_plain_loop(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Measure a straightforward implementation: batch size 1, float32, one forward pass per scale and flip."""
    device = Compute.detect(arguments.device).device
    classifier, images = _classifier(arguments).to(device), _images(arguments)
    mean, std = (torch.tensor(values, device=device) for values in (classifier.backbone.mean, classifier.backbone.std))
    grid = grid_size(SIZE)

    def write_image_maps(sample: Sample) -> None:
        pixels = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).to(device)
        image = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        total = torch.zeros(NUM_CLASSES, *grid, device=device)
        for scale in SETTINGS.scales:
            view = F.interpolate(image, scaled_size(SIZE, scale), mode="bilinear")
            for flipped in (False, True):
                maps = classifier.activations(view.flip(3) if flipped else view)
                total += F.interpolate(maps.flip(3) if flipped else maps, grid, mode="bilinear")[0]
        total /= total.amax((1, 2), keepdim=True) + 1e-5
        np.save(Path(arguments.folder) / "maps.npy", total.cpu().numpy())

    with torch.inference_mode():
        write_image_maps(images.samples[0])
        start = time.perf_counter()
        for sample in images.samples:
            write_image_maps(sample)
    return {"rate": len(images) / (time.perf_counter() - start)}


@contextmanager
def _measure_waiting() -> Iterator[list[float]]:
    """Yield a list that gets the seconds for which the stage waits for each batch."""
    waits: list[float] = []

    def load(*arguments: Any) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in load_image_batches(*arguments):
            waits.append(time.perf_counter() - start)
            yield batch
            start = time.perf_counter()

    with patch("tagmask.methods._batches.load_image_batches", load):
        yield waits


def _synchronize(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def _device_name(arguments: argparse.Namespace) -> str:
    device = Compute.detect(arguments.device).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _loading_seconds(context: InferenceContext) -> float:
    """Return the seconds that loading the batches of the stage takes when nothing else is computed."""
    start = time.perf_counter()
    for _ in load_image_batches(context.batches(SETTINGS.inference_batch_size), context.compute):
        pass
    return time.perf_counter() - start


def _classifier(arguments: argparse.Namespace) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(arguments.backbone), tuple(map(str, range(NUM_CLASSES)))).eval()


def _images(arguments: argparse.Namespace) -> TaggedImages:
    files = sorted(Path(arguments.folder).glob("*.jpg"))
    samples = (Sample(f.stem, str(f), tuple(range(1, NUM_TAGS + 1)), size=SIZE) for f in files)
    return TaggedImages(tuple(map(str, range(NUM_CLASSES))), tuple(samples))


def _write_images(folder: Path, n: int) -> None:
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--implementation", help=argparse.SUPPRESS)
    return parser.parse_args()


_IMPLEMENTATIONS: dict[str, Callable[[argparse.Namespace], dict[str, float | str]]] = {
    "stage": run_stage,
    "plain loop": run_plain_loop,
    "forward alone": run_forward,
}

if __name__ == "__main__":
    main()
