"""Measure what the regions between learned boundaries do for masks: mIoU and boundary F before and after the vote.

Each figure is from one confusion matrix over all images (docs/methods/regions.md).

Run: python benchmarks/boundary_regions.py RUN/pseudo_masks RUN/irn DATA [--split train] [--classes a,b,c]
         [--images 400] [--skip 200] [--depths 0.03 0.05 0.07] [--workers 2]
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
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalize_images
from tagmask.measure.metrics import SegmentationMetric
from tagmask.methods.regions import Regions
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.stage_folder import StageFolder


def methods(depths: list[float]) -> dict[str, Regions]:
    """Return the votes to compare, by name."""
    both = ("felzenszwalb", "boundaries")
    return {
        "felzenszwalb": Regions(vote_on="masks"),
        **{f"boundaries, {d:g}": Regions(vote_on="masks", source=("boundaries",), boundary_depth=d) for d in depths},
        **{f"both, {d:g}": Regions(vote_on="masks", source=both, boundary_depth=d) for d in depths},
    }


def masks_of(sample: Sample, labels: np.ndarray, boundary: np.ndarray, depths: list[float]) -> dict[str, np.ndarray]:
    """Return the mask [H, W] of an image as it was and after each vote."""
    image = sample.read_image()
    votes = {name: method.voted(sample, image, labels, boundary) for name, method in methods(depths).items()}
    return {"as they were": labels, **votes}


def main() -> None:
    """Measure the masks that the command line names, and print a table."""
    arguments = parse_arguments()
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    images = DataSource(root=arguments.data, split=arguments.split, classes=classes).read()
    order = np.random.default_rng(0).permutation(len(images))[arguments.skip :][: arguments.images]
    samples = [images.samples[i] for i in order if images.samples[i].mask]
    masks = StageFolder(arguments.masks)
    network = prepare_for_inference_inplace(BoundaryNetwork.load(arguments.irn), Compute())

    @torch.inference_mode()
    def jobs() -> Iterator[Any]:
        for sample in samples:
            pixels = torch.from_numpy(sample.read_image()).permute(2, 0, 1)[None]
            view = normalize_images(pixels, network.backbone.mean, network.backbone.std)
            boundary = predict_boundaries(network, view)[0][0].numpy()
            yield delayed(masks_of)(sample, masks.read_mask(sample.id), boundary, arguments.depths)

    metrics: dict[str, SegmentationMetric] = {}
    for sample, results in zip(samples, Parallel(arguments.workers, return_as="generator")(jobs()), strict=True):
        assert sample.mask
        target = sample.mask.read()
        for name, labels in results.items():
            metrics.setdefault(name, SegmentationMetric(len(images.classes) + 1)).update(labels, target)

    print(f"{len(samples)} images\n{'masks':<20}{'mIoU':>8}{'boundary F':>12}")
    for name, metric in metrics.items():
        scores = metric.compute()
        print(f"{name:<20}{100 * scores.miou:8.1f}{100 * scores.boundary_f:12.1f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", type=Path, help="stage folder with masks")
    parser.add_argument("irn", type=Path, help="stage folder of the method irn")
    parser.add_argument("data", help="images with ground-truth masks")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--images", type=int, help="number of images, drawn at random (seed 0); default: all")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of those drawn first")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.03, 0.05, 0.07], help="values of boundary_depth")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
