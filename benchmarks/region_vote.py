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

from maps_with_ground_truth import add_arguments, read_maps
from tagmask.data.images import read_image
from tagmask.data.samples import Sample
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.measure.metrics import SegmentationMetric
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.regions import felzenszwalb_regions, vote
from tagmask.refine.settings import CrfSettings

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


def main() -> None:
    """Measure the maps that the command line names, and print a table."""
    arguments = parse_arguments()
    measured = read_maps(arguments)
    otsu = measured.otsu_threshold()
    thresholds = (*GRID, otsu)
    metrics: dict[tuple[str, float], SegmentationMetric] = {}
    jobs = (
        delayed(label_maps)(sample, measured.stage.maps_path(sample.id), thresholds, tuple(arguments.sizes))
        for sample in measured.samples
    )
    for target, masks in Parallel(n_jobs=arguments.workers, return_as="generator_unordered")(jobs):
        for key, labels in masks.items():
            metrics.setdefault(key, SegmentationMetric(len(measured.images.classes) + 1)).update(labels, target)
    results = {key: metric.compute() for key, metric in metrics.items()}

    print(f"{len(measured.samples)} images, automatic threshold {otsu:.2f}")
    print(f"{'':24}{'best':>14}{'at 0.30':>10}{'automatic':>11}{'boundary F':>12}")
    for name in dict.fromkeys(name for name, _ in results):
        best, where = max((results[name, t].miou, t) for t in thresholds)
        usual, automatic = results[name, USUAL_THRESHOLD], results[name, otsu]
        figures = f"{f'{100 * best:.1f} ({where:.2f})':>14}{100 * usual.miou:10.1f}{100 * automatic.miou:11.1f}"
        print(f"{name:24}{figures}{100 * automatic.boundary_f:12.1f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--sizes", type=float, nargs="+", default=[100, 300], help="scales of Felzenszwalb's regions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
