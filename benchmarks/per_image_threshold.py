"""A threshold for each image against the best global one: mIoU on a finished run's maps, before and after the CRF.

The global oracle is the best of the thresholds 0.05, 0.10, ... 0.95, chosen with the truth; what is chosen for each
image is chosen without it. One confusion matrix over all images each (docs/results/thresholds.md).

Run: python benchmarks/per_image_threshold.py RUN/cam DATA [--split train] [--classes a,b,c] [--images 500] [--skip 0]
         [--segmenter RUN/segment] [--workers 2]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from tagmask import DataSource
from tagmask.data.images import read_image
from tagmask.data.saliency import read_saliency
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalize_images
from tagmask.maps import ResponseMaps
from tagmask.measure import iou, mean_iou
from tagmask.measure.metrics import ActivationHistogram
from tagmask.methods.segment import probabilities
from tagmask.models.segmenter import Segmenter
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, mean_root_num_tags
from tagmask.refine.label_maps import cut_maps
from tagmask.refine.settings import CrfSettings

GRID = tuple((np.arange(1, 20) / 20).tolist())
CRF = CrfSettings()
Counts = dict[str, np.ndarray]  # confusion matrices [n + 1, n + 1] by what was measured


def image_counts(
    sample: Sample, maps_path: Path, n: int, otsu: float, typical: float, network: np.ndarray | None
) -> Counts:
    """The confusion matrices of one image."""
    image, maps = read_image(sample.image), ResponseMaps.load(maps_path)
    ground_truth = sample.mask.read() if sample.mask else np.full(maps.size, 255, np.uint8)

    def count(labels: np.ndarray) -> np.ndarray:
        known = ground_truth != 255
        pairs = ground_truth[known].astype(np.int64) * (n + 1) + labels[known]
        return np.bincount(pairs, minlength=(n + 1) ** 2).reshape(n + 1, n + 1)

    counts: Counts = {}
    for t in GRID:
        counts[f"before {t:.2f}"] = count(maps.label_map(t))
        counts[f"after {t:.2f}"] = count(cut_maps(image, maps, t, CRF))
    for when in ("before", "after"):
        curve = [mean_iou(iou(counts[f"{when} {t:.2f}"])) for t in GRID]
        counts[f"{when} image oracle"] = counts[f"{when} {GRID[int(np.nanargmax(curve))]:.2f}"]
    counts["before Otsu"], counts["after Otsu"] = (
        count(maps.label_map(otsu)),
        count(cut_maps(image, maps, otsu, CRF)),
    )

    saliency = read_saliency(sample.saliency, maps.size) if sample.saliency else None
    expected = expected_threshold(otsu, max(1, len(maps.classes)), typical)
    for name, foreground in (("maps alone", None), ("with the network", network), ("with saliency", saliency)):
        if name == "maps alone" or foreground is not None:
            choice = choose_threshold(image, maps, expected, CRF, foreground=foreground)
            counts[f"before {name}"] = count(maps.label_map(choice.threshold))
            counts[f"after {name}"] = count(choice.labels)
    return counts


def network_foreground(folder: Path | None, samples: list[Sample]) -> Iterator[np.ndarray | None]:
    """Each image's foreground probability by the segmentation network of a stage, [H, W] float."""
    network = Segmenter.load(folder).eval() if folder else None
    for sample in samples:
        if network is None:
            yield None
            continue
        pixels = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)[None]
        [(_, probs)] = probabilities(network, normalize_images(pixels, network.mean, network.std), [sample.tags])
        yield 1 - probs[0]


def otsu_threshold(stage: Path, samples: list[Sample]) -> float:
    activations = ActivationHistogram()
    for sample in samples:
        activations.update(ResponseMaps.load(stage / "maps" / f"{sample.id}.safetensors").maps)
    return float(activations.otsu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="a stage's folder with maps/")
    parser.add_argument("data", help="the data the run was made of, with masks")
    parser.add_argument("--split")
    parser.add_argument("--classes")
    parser.add_argument("--segmenter", type=Path, help="a segment stage's folder")
    parser.add_argument("--images", type=int, help="how many, drawn at random (seed 0); all, if left out")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many of the random order")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()

    classes = tuple(given.classes.split(",")) if given.classes else None
    images = DataSource(root=given.data, split=given.split, classes=classes).read()
    order = np.random.default_rng(0).permutation(len(images))[given.skip :][: given.images]
    samples = [images.samples[i] for i in order]
    every = [sample for sample in images.samples if sample.tags]
    started, n = time.time(), len(images.classes)
    otsu, typical = otsu_threshold(given.stage, every), mean_root_num_tags(sample.tags for sample in every)
    jobs = (
        delayed(image_counts)(sample, given.stage / "maps" / f"{sample.id}.safetensors", n, otsu, typical, network)
        for sample, network in zip(samples, network_foreground(given.segmenter, samples), strict=True)
    )
    total: Counter[str] = Counter()
    summed: Counts = {}
    for counts in Parallel(n_jobs=given.workers, return_as="generator_unordered")(jobs):
        for name, matrix in counts.items():
            summed[name] = summed.get(name, 0) + matrix
            total[name] += 1
    scores = {name: 100 * float(mean_iou(iou(matrix))) for name, matrix in summed.items()}

    print(f"{len(samples)} images, Otsu's threshold {otsu:.3f}, {time.time() - started:.0f} s")
    print(f"{'':24}{'before CRF':>12}{'after CRF':>12}{'images':>8}")
    for name, number in total.items():
        when, _, what = name.partition(" ")
        if when == "before" and not what[0].isdigit():
            print(f"{what:24}{scores[name]:12.1f}{scores[f'after {what}']:12.1f}{number:8}")
    best = {when: max((scores[f"{when} {t:.2f}"], t) for t in GRID) for when in ("before", "after")}
    figures = "".join(f"{f'{score:.1f} ({t:.2f})':>12}" for score, t in best.values())
    print(f"{'global oracle':24}{figures}{len(samples):8}")


if __name__ == "__main__":
    main()
