"""Compare thresholds per image with the best global threshold: mIoU of the masks, before and after the CRF.

The global oracle is the best of the thresholds 0.05, 0.10, ... 0.95 for all images; the image oracle is the best one
for each image. Both are chosen with ground truth, the other thresholds without. Each figure is the mIoU of one
confusion matrix over all images (docs/results/thresholds.md).

Run: python benchmarks/per_image_threshold.py RUN/cam DATA [--split train] [--classes a,b,c] [--images 500] [--skip 0]
         [--segmenter RUN/segment] [--workers 2]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from tagmask import DataSource
from tagmask.data.images import read_image
from tagmask.data.saliency import read_and_resize_saliency
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalize_images
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.measure import iou, mean_iou
from tagmask.measure.metrics import ActivationHistogram
from tagmask.methods.segment import class_probabilities
from tagmask.models.segmenter import Segmenter
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, mean_root_num_tags
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.settings import CrfSettings
from tagmask.stage_folder import StageFolder

GRID = tuple((np.arange(1, 20) / 20).tolist())
CRF = CrfSettings()
Counts = dict[str, np.ndarray]
"""Confusion matrices [K + 1, K + 1] by "before" or "after" (the CRF) and the threshold."""


def count_labels(
    sample: Sample, maps_path: Path, num_labels: int, otsu: float, typical: float, network: np.ndarray | None
) -> Counts:
    """Return the confusion matrices of one image.

    Args:
        sample: the image.
        maps_path: of its response maps.
        num_labels: the number of classes and background.
        otsu: Otsu's threshold of all maps.
        typical: the mean √(number of tags) of all images.
        network: [H, W] the foreground probability of a segmentation network, or None.
    """
    image, maps = read_image(sample.image), ResponseMaps.load(maps_path)
    target = sample.mask.read() if sample.mask else np.full(maps.size, IGNORE_INDEX, np.uint8)

    def count(preds: np.ndarray) -> np.ndarray:
        known = target != IGNORE_INDEX
        pairs = target[known].astype(np.int64) * num_labels + preds[known]
        return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)

    counts: Counts = {}
    for t in GRID:
        counts[f"before {t:.2f}"] = count(maps.label_map(t))
        counts[f"after {t:.2f}"] = count(cut_maps(image, maps, t, CRF))
    for when in ("before", "after"):
        curve = [mean_iou(iou(counts[f"{when} {t:.2f}"])) for t in GRID]
        counts[f"{when} image oracle"] = counts[f"{when} {GRID[int(np.nanargmax(curve))]:.2f}"]
    counts["before Otsu"] = count(maps.label_map(otsu))
    counts["after Otsu"] = count(cut_maps(image, maps, otsu, CRF))

    saliency = read_and_resize_saliency(sample.saliency, maps.size) if sample.saliency else None
    expected = expected_threshold(otsu, max(1, len(maps.classes)), typical)
    for cue, foreground in (("none", None), ("network", network), ("saliency", saliency)):
        if cue == "none" or foreground is not None:
            choice = choose_threshold(image, maps, expected, CRF, foreground=foreground)
            counts[f"before per image, cue: {cue}"] = count(maps.label_map(choice.threshold))
            counts[f"after per image, cue: {cue}"] = count(choice.labels)
    return counts


def network_foreground(folder: Path | None, samples: Sequence[Sample]) -> Iterator[np.ndarray | None]:
    """Yield the foreground probability [H, W] of each image, by the segmentation network in a stage folder."""
    network = Segmenter.load(folder).eval() if folder else None
    for sample in samples:
        if network is None:
            yield None
            continue
        pixels = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)[None]
        images = normalize_images(pixels, network.mean, network.std)
        [(_, probabilities)] = class_probabilities(network, images, [sample.tags])
        yield 1 - probabilities[0]


def otsu_threshold(stage: StageFolder, samples: Sequence[Sample]) -> float:
    """Return Otsu's threshold of the strongest activation of every pixel of all samples."""
    histogram = ActivationHistogram()
    for sample in samples:
        histogram.update(ResponseMaps.load(stage.maps_path(sample.id)).maps)
    return float(histogram.otsu())


def main() -> None:
    """Measure the maps that the command line names, and print a table."""
    arguments = parse_arguments()
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    images = DataSource(root=arguments.data, split=arguments.split, classes=classes).read()
    order = np.random.default_rng(0).permutation(len(images))[arguments.skip :][: arguments.images]
    samples = [images.samples[i] for i in order]
    tagged = [sample for sample in images.samples if sample.tags]
    start, stage, num_labels = time.time(), StageFolder(arguments.stage), len(images.classes) + 1
    otsu, typical = otsu_threshold(stage, tagged), mean_root_num_tags(sample.tags for sample in tagged)
    jobs = (
        delayed(count_labels)(sample, stage.maps_path(sample.id), num_labels, otsu, typical, network)
        for sample, network in zip(samples, network_foreground(arguments.segmenter, samples), strict=True)
    )
    num_images: Counter[str] = Counter()
    total: Counts = {}
    for counts in Parallel(n_jobs=arguments.workers, return_as="generator_unordered")(jobs):
        for name, matrix in counts.items():
            total[name] = total.get(name, 0) + matrix
            num_images[name] += 1
    scores = {name: 100 * float(mean_iou(iou(matrix))) for name, matrix in total.items()}

    print(f"{len(samples)} images, Otsu's threshold {otsu:.3f}, {time.time() - start:.0f} s")
    print(f"{'':24}{'before CRF':>12}{'after CRF':>12}{'images':>8}")
    for name, number in num_images.items():
        when, _, choice = name.partition(" ")
        if when == "before" and not choice[0].isdigit():
            print(f"{choice:24}{scores[name]:12.1f}{scores[f'after {choice}']:12.1f}{number:8}")
    best = {when: max((scores[f"{when} {t:.2f}"], t) for t in GRID) for when in ("before", "after")}
    figures = "".join(f"{f'{score:.1f} ({threshold:.2f})':>12}" for score, threshold in best.values())
    print(f"{'global oracle':24}{figures}{len(samples):8}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="stage folder with maps/")
    parser.add_argument("data", help="the data of the run, with ground-truth masks")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--segmenter", type=Path, help="folder of a segment stage, for the cue network")
    parser.add_argument("--images", type=int, help="number of images, drawn at random (seed 0); default: all")
    parser.add_argument("--skip", type=int, default=0, help="number of images to leave out at the start of that order")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
