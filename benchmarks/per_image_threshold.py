"""Compare thresholds per image with the best global threshold: mIoU of the masks, before and after the CRF.

The global oracle is the best of the thresholds 0.05, 0.10, ... 0.95 for all images; the image oracle is the best one
for each image. Both are chosen with ground truth, the other thresholds without. Each figure is the mIoU of one
confusion matrix over all images (docs/results/thresholds.md).

Run: python benchmarks/per_image_threshold.py RUN/cam DATA [--split train] [--classes a,b,c] [--images 500] [--skip 0]
         [--segmenter RUN/segment] [--boundaries RUN/irn] [--workers 2]
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

from maps_with_ground_truth import add_arguments, read_maps
from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.saliency import read_and_resize_saliency
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalize_images
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.measure import iou, mean_iou
from tagmask.methods.segment import class_probabilities
from tagmask.models.boundary_network import BoundaryNetwork, predict_image_boundaries
from tagmask.models.segmenter import Segmenter
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, mean_root_num_tags
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.settings import CrfSettings

GRID = tuple((np.arange(1, 20) / 20).tolist())
CRF = CrfSettings()
Counts = dict[str, np.ndarray]
"""Confusion matrices [K + 1, K + 1] by "before" or "after" (the CRF) and the threshold."""


def count_labels(
    sample: Sample,
    maps_path: Path,
    num_labels: int,
    otsu: float,
    typical: float,
    network: np.ndarray | None,
    boundary: np.ndarray | None,
) -> Counts:
    """Return the confusion matrices of one image.

    Args:
        sample: the image.
        maps_path: of its response maps.
        num_labels: the number of classes and background.
        otsu: Otsu's threshold of all maps.
        typical: the mean √(number of tags) of all images.
        network: [H, W] the foreground probability of a segmentation network, or None.
        boundary: [ceil(H / 4), ceil(W / 4)] the boundary probabilities of IRN's network, or None.
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
        for edges, learned in (("", None), (" + irn", boundary)):
            if (cue != "none" and foreground is None) or (edges and learned is None):
                continue
            choice = choose_threshold(image, maps, expected, CRF, foreground=foreground, boundary=learned)
            counts[f"before per image, cue: {cue}{edges}"] = count(maps.label_map(choice.threshold))
            counts[f"after per image, cue: {cue}{edges}"] = count(choice.labels)
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


def boundaries(folder: Path | None, samples: Sequence[Sample]) -> Iterator[np.ndarray | None]:
    """Yield the boundary probabilities of each image, by the network in the folder of a stage `irn`."""
    network = BoundaryNetwork.load(folder).eval() if folder else None
    for sample in samples:
        image = read_image(sample.image)
        yield None if network is None else predict_image_boundaries(network, image, Compute())


def main() -> None:
    """Measure the maps that the command line names, and print a table."""
    arguments = parse_arguments()
    measured = read_maps(arguments)
    start, samples, num_labels = time.time(), measured.samples, len(measured.images.classes) + 1
    otsu, typical = measured.otsu_threshold(), mean_root_num_tags(sample.tags for sample in measured.tagged)
    jobs = (
        delayed(count_labels)(sample, measured.stage.maps_path(sample.id), num_labels, otsu, typical, network, boundary)
        for sample, network, boundary in zip(
            samples,
            network_foreground(arguments.segmenter, samples),
            boundaries(arguments.boundaries, samples),
            strict=True,
        )
    )
    num_images: Counter[str] = Counter()
    total: Counts = {}
    for counts in Parallel(n_jobs=arguments.workers, return_as="generator_unordered")(jobs):
        for name, matrix in counts.items():
            total[name] = total.get(name, 0) + matrix
            num_images[name] += 1
    scores = {name: 100 * float(mean_iou(iou(matrix))) for name, matrix in total.items()}

    print(f"{len(samples)} images, Otsu's threshold {otsu:.3f}, {time.time() - start:.0f} s")
    print(f"{'':31}{'before CRF':>12}{'after CRF':>12}{'images':>8}")
    for name, number in num_images.items():
        when, _, choice = name.partition(" ")
        if when == "before" and not choice[0].isdigit():
            print(f"{choice:31}{scores[name]:12.1f}{scores[f'after {choice}']:12.1f}{number:8}")
    best = {when: max((scores[f"{when} {t:.2f}"], t) for t in GRID) for when in ("before", "after")}
    figures = "".join(f"{f'{score:.1f} ({threshold:.2f})':>12}" for score, threshold in best.values())
    print(f"{'global oracle':31}{figures}{len(samples):8}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--segmenter", type=Path, help="folder of a segment stage, for the cue network")
    parser.add_argument("--boundaries", type=Path, help="folder of an irn stage, for edges: boundaries")
    return parser.parse_args()


if __name__ == "__main__":
    main()
