"""Measure the memory of a process that loads images for training, for data sets of different sizes.

Samples have polygons like those of COCO (7 objects, 5.4 KB). "private": what the worker has for itself after an epoch,
so what another worker would add. "before": the samples are Python objects, which a worker copies when it uses them.

Run: python benchmarks/worker_memory.py [--images 1000 10000 100000]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tagmask.compute import Compute
from tagmask.data import loading
from tagmask.data.coco_mask import CocoMask, CocoObject
from tagmask.data.samples import Sample, TaggedImages

OBJECTS, POINTS = 7, 38  # of each image; on average 772 bytes per object


def make_images(folder: Path, num_images: int) -> TaggedImages:
    """Return samples of one small image file, each with its own polygons."""
    Image.new("RGB", (16, 16)).save(folder / "image.png")
    rng = np.random.default_rng(0)

    def sample(i: int) -> Sample:
        shapes = [rng.random(2 * POINTS).tobytes() for _ in range(OBJECTS)]
        mask = CocoMask((16, 16), tuple(CocoObject(1, False, (shape,)) for shape in shapes))
        return Sample(f"{i:012}", str(folder / "image.png"), (1, 2), mask, size=(16, 16), digest=f"{i:024}")

    return TaggedImages(("cat", "dog"), tuple(map(sample, range(num_images))))


def memory(process: int | str) -> tuple[float, float]:
    """Return the private memory and the resident memory of a process, in MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
    return sizes["Private_Dirty"] + sizes["Private_Clean"], sizes["Rss"]


def measure(images: TaggedImages) -> tuple[float, float]:
    """Load an epoch with one worker; return its private memory in MB and the images per second."""
    data = loading.TrainingSet(images, lambda item: {**item, "image": item["image"].float()}, 0)
    start = time.perf_counter()
    batches = iter(loading.training_loader(data, 100, Compute(workers=1)))
    for _ in batches:
        pass
    seconds = time.perf_counter() - start
    [worker] = batches._workers  # type: ignore[attr-defined]
    return memory(worker.pid)[0], len(images) / seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packed, freeze = loading.PackedSamples, gc.freeze
    print("images   main process, MB   worker, private MB (images/s): before         now")
    for num_images in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            images = make_images(Path(folder), num_images)
            loading.PackedSamples, gc.freeze = list, lambda: None  # type: ignore[assignment, misc]
            before = measure(images)
            loading.PackedSamples, gc.freeze = packed, freeze  # type: ignore[misc]
            now = measure(images)
            resident = memory("self")[1]
        print(
            f"{num_images:7,} {resident:10.0f} {before[0]:35.0f} ({before[1]:.0f}) {now[0]:15.0f} ({now[1]:.0f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
