"""Measure what the vote of regions is worth: mIoU of the masks before and after it, with and without the dense CRF.

Each threshold is used for all images. The best one of 0.20, 0.25, ... 0.60 is chosen with ground truth; the automatic
one is Otsu's. Each figure is from one confusion matrix over all images (docs/methods/regions.md).

Run: python benchmarks/region_vote.py RUN/cam DATA [--split train] [--classes a,b,c] [--images 200] [--sizes 100 300]
         [--workers 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from tagmask import DataSource
from tagmask.data.images import read_image
from tagmask.data.samples import Sample
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.measure.metrics import ActivationHistogram, SegmentationMetric
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.regions import felzenszwalb_regions, vote
from tagmask.refine.settings import CrfSettings
from tagmask.stage_folder import StageFolder

USUAL_THRESHOLD = 0.30
GRID = tuple((np.arange(4, 13) / 20).tolist())
CRF = CrfSettings()


def label_maps(
    sample: Sample, maps_path: Path, thresholds: tuple[float, ...], sizes: tuple[float, ...]
) -> tuple[np.ndarray, dict[tuple[str, float], np.ndarray]]:
    """Return the ground truth [H, W] of an image, and its masks [H, W] by how they were made and the threshold."""
    image, maps = read_image(sample.image), ResponseMaps.load(maps_path)
    regions = {size: felzenszwalb_regions(image, [size]) for size in sizes}
    masks = {}
    for threshold in thresholds:
        for name, crf in (("maps", None), ("CRF", CRF)):
            labels = cut_maps(image, maps, threshold, crf)
            masks[name, threshold] = labels
            for size in sizes:
                masks[f"{name}, vote of {size:g}", threshold] = vote(labels, regions[size]) if sample.tags else labels
    return sample.mask.read() if sample.mask else np.full(maps.size, IGNORE_INDEX, np.uint8), masks


def otsu_threshold(stage: StageFolder, samples: list[Sample]) -> float:
    """Return Otsu's threshold of the maps of all samples."""
    histogram = ActivationHistogram()
    for sample in samples:
        histogram.update(ResponseMaps.load(stage.maps_path(sample.id)).maps)
    return float(histogram.otsu())


def main() -> None:
    """Measure the maps that the command line names, and print a table."""
    arguments = parse_arguments()
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    images = DataSource(root=arguments.data, split=arguments.split, classes=classes).read()
    stage = StageFolder(arguments.stage)
    otsu = otsu_threshold(stage, [sample for sample in images.samples if sample.tags])
    samples = [images.samples[i] for i in np.random.default_rng(0).permutation(len(images))[: arguments.images]]
    thresholds = (*GRID, otsu)
    metrics: dict[tuple[str, float], SegmentationMetric] = {}
    jobs = (delayed(label_maps)(s, stage.maps_path(s.id), thresholds, tuple(arguments.sizes)) for s in samples)
    for target, masks in Parallel(n_jobs=arguments.workers, return_as="generator_unordered")(jobs):
        for key, labels in masks.items():
            metrics.setdefault(key, SegmentationMetric(len(images.classes) + 1)).update(labels, target)
    results = {key: metric.compute() for key, metric in metrics.items()}

    print(f"{len(samples)} images, automatic threshold {otsu:.2f}")
    print(f"{'':24}{'best':>14}{'at 0.30':>10}{'automatic':>11}{'boundary F':>12}")
    for name in dict.fromkeys(name for name, _ in results):
        best, where = max((results[name, t].miou, t) for t in thresholds)
        usual, automatic = results[name, USUAL_THRESHOLD], results[name, otsu]
        figures = f"{f'{100 * best:.1f} ({where:.2f})':>14}{100 * usual.miou:10.1f}{100 * automatic.miou:11.1f}"
        print(f"{name:24}{figures}{100 * automatic.boundary_f:12.1f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="stage folder with maps/")
    parser.add_argument("data", help="the data of the run, with ground-truth masks")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--images", type=int, help="number of images, drawn at random (seed 0); default: all")
    parser.add_argument("--sizes", type=float, nargs="+", default=[100, 300], help="scales of Felzenszwalb's regions")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
