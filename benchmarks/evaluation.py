"""Measure the time of evaluating masks and response maps with one and with several worker processes.

    python benchmarks/evaluation.py [--images N] [--workers N] [--classes K]

Label maps of 500×375 pixels with a few ellipses, against ground truth with a band of ignored pixels, as VOC has it. The
figures of both are compared: they must be the same in every bit. The workers are started before. Both take turns; the
shortest time counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tagmask.compute import Compute
from tagmask.data.samples import PngMask, Sample, TaggedImages
from tagmask.evaluate import MapScores, score_maps, score_masks
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure import SegmentationReport
from tagmask.progress import Reporter
from tagmask.stage_folder import StageFolder

SIZE = (375, 500)


def ellipses(rng: np.random.Generator, classes: list[int], ignore: bool) -> np.ndarray:
    """Return a label map [H, W] uint8 with one ellipse per class."""
    y, x = np.indices(SIZE)
    labels = np.zeros(SIZE, np.uint8)
    for label in classes:
        center, radius = rng.uniform(0.2, 0.8, 2) * SIZE, rng.uniform(0.1, 0.4, 2) * SIZE
        distance = np.hypot((y - center[0]) / radius[0], (x - center[1]) / radius[1])
        if ignore:
            labels[distance < 1.03] = 255
        labels[distance < 1] = label
    return labels


def write_images(folder: Path, num_images: int, num_classes: int) -> tuple[TaggedImages, StageFolder]:
    """Write masks, response maps and ground truth of so many images."""
    rng = np.random.default_rng(0)
    stage, samples = StageFolder(folder / "stage"), []
    for i in range(num_images):
        classes = sorted(int(c) for c in rng.choice(np.arange(1, num_classes + 1), 2, replace=False))
        truth = folder / "truth" / f"{i}.png"
        write_label_map(truth, ellipses(rng, classes, ignore=True))
        write_label_map(stage.mask_path(str(i)), ellipses(rng, classes, ignore=False))
        maps = rng.random((2, 94, 125)).astype(np.float32)
        ResponseMaps(np.array(classes), maps, SIZE).save(stage.maps_path(str(i)))
        samples.append(Sample(str(i), f"{i}.jpg", tuple(classes), PngMask(truth), size=SIZE))
    return TaggedImages(tuple(f"class {k}" for k in range(1, num_classes + 1)), tuple(samples), name="benchmark"), stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, stage = write_images(Path(folder), arguments.images, arguments.classes)
        measurements: dict[str, Callable[[Compute], SegmentationReport | MapScores]] = {
            "masks": lambda compute: score_masks(images, stage, compute, Reporter()),
            "masks without boundary F": lambda compute: score_masks(images, stage, compute, Reporter(), boundary=False),
            "maps": lambda compute: score_maps(images, stage, compute, Reporter()),
        }
        for name, measure in measurements.items():
            times = {1: float("inf"), arguments.workers: float("inf")}
            results = {}
            for _ in range(arguments.repeats):
                for workers in times:
                    begin = time.perf_counter()
                    results[workers] = measure(Compute(workers=workers)).to_json(images.classes)
                    times[workers] = min(times[workers], time.perf_counter() - begin)
            one, many = times.values()
            print(
                f"{name}: {len(images)} images, 1 worker {one:.2f} s, {arguments.workers} workers {many:.2f} s: "
                f"{one / many:.2f} times as fast; equal figures: {results[1] == results[arguments.workers]}"
            )


if __name__ == "__main__":
    main()
