"""Measure `segment.crf.foreground_bias` with the network of a run: mIoU with and without the dense CRF.

Each figure is from one confusion matrix over all images (docs/results/photographs.md).

Run: python benchmarks/foreground_bias.py RUN/segment DATA [--split val] [--classes a,b,c] [--images 200]
         [--biases 0 0.25 0.5 0.75] [--tags-known] [--workers 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from tagmask import DataSource
from tagmask.compute import Compute
from tagmask.data.transforms import normalize_images
from tagmask.measure.metrics import SegmentationMetric
from tagmask.methods.segment import add_foreground_bias, class_probabilities, most_probable_labels
from tagmask.predict import Predictor
from tagmask.refine.settings import NETWORK_CRF


def label_maps(
    image: np.ndarray, ids: np.ndarray, probabilities: np.ndarray, biases: list[float]
) -> dict[tuple[float, bool], np.ndarray]:
    """Return the masks [H, W] of an image by the bias, and whether the CRF refined them."""
    masks = {}
    for bias in biases:
        masks[bias, False] = ids[add_foreground_bias(probabilities, bias).argmax(0)]
        crf = NETWORK_CRF.model_copy(update={"foreground_bias": bias})
        masks[bias, True] = most_probable_labels(image, ids, probabilities, crf)
    return masks


def main() -> None:
    """Measure the network that the command line names, and print a table."""
    arguments = parse_arguments()
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    images = DataSource(root=arguments.data, split=arguments.split, classes=classes).read()
    order = np.random.default_rng(0).permutation(len(images))[: arguments.images]
    samples = [images.samples[i] for i in order if images.samples[i].mask]
    predictor = Predictor.load(arguments.stage, Compute())
    network, scales, hflip = predictor.network, predictor.inference.scales, predictor.inference.hflip

    def jobs() -> Iterator[Any]:
        for sample in samples:
            image = sample.read_image()
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            tags = sample.tags if arguments.tags_known else None
            view = normalize_images(pixels, network.mean, network.std)
            ((ids, probabilities),) = class_probabilities(network, view, [tags], scales, hflip)
            yield delayed(label_maps)(image, ids, probabilities, arguments.biases)

    metrics: dict[tuple[float, bool], SegmentationMetric] = {}
    results = Parallel(n_jobs=arguments.workers, return_as="generator")(jobs())
    for sample, masks in zip(samples, results, strict=True):
        assert sample.mask
        target = sample.mask.read()
        for (bias, refined), labels in masks.items():
            metric = metrics.setdefault((bias, refined), SegmentationMetric(len(images.classes) + 1, boundary=refined))
            metric.update(labels, target)

    print(f"{len(samples)} images, tags {'known' if arguments.tags_known else 'not known'}")
    print(f"{'bias':>6}{'without CRF':>13}{'with CRF':>10}{'boundary F':>12}")
    for bias in arguments.biases:
        without, with_crf = metrics[bias, False].compute(), metrics[bias, True].compute()
        print(f"{bias:6g}{100 * without.miou:13.1f}{100 * with_crf.miou:10.1f}{100 * with_crf.boundary_f:12.1f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="stage folder with a segmentation network")
    parser.add_argument("data", help="images with ground-truth masks")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--images", type=int, help="number of images, drawn at random (seed 0); default: all")
    parser.add_argument("--biases", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75], help="values of the setting")
    parser.add_argument("--tags-known", action="store_true", help="only the tagged classes of an image can appear")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
