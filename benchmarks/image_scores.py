"""Measure how well the scores of `tagmask scores` find the worst masks; ground truth only measures the order.

A person looks at the images in the order of a column, the most suspicious first. After each image, the person has found
a fraction of all errors, where the error of an image is 1 − mIoU. The quality of an order is the area under this curve,
scaled so that a random order has 0 and the best possible order has 1. "worst tenth": the fraction of the tenth of the
images with the lowest mIoU that is among the first fifth of the order (a random order finds 20 %).

Run: python benchmarks/image_scores.py RUN [RUN ...] [--workers 2]

Each RUN is a finished run whose training images have ground-truth masks.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from tagmask.api import load_run
from tagmask.image_scores import sort_scores
from tagmask.measure.image_score import ImageScore


def order_quality(errors: np.ndarray) -> float:
    """Return the quality of an order: 0 for a random one, 1 for the best, −1 for its reverse.

    Args:
        errors: [N] float, the error of each image in the order in which the images are looked at.
    """

    def area(values: np.ndarray) -> float:
        return float(np.cumsum(values).mean() / values.sum())

    random = (len(errors) + 1) / 2 / len(errors)
    return (area(errors) - random) / (area(np.sort(errors)[::-1]) - random)


def worst_found(errors: np.ndarray) -> float:
    """Return the fraction of the tenth of the images with the largest errors that the first fifth of the order has."""
    worst = np.argsort(-errors, kind="stable")[: max(1, len(errors) // 10)]
    return float((worst < len(errors) / 5).mean())


def without_part(part: str) -> Callable[[ImageScore], float]:
    """Return a function that computes the doubt without one of its four parts."""

    def doubt(score: ImageScore) -> float:
        parts = {"disagreement": score.disagreement, "color_contrast": 1 - score.color_contrast,
                 "class_overlap": score.class_overlap, "border": score.border}  # fmt: skip
        return float(np.nansum([value for name, value in parts.items() if name != part]))

    return doubt


def main() -> None:
    """Measure each stage that makes masks in the runs that the command line names, and print a table per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished runs with ground truth")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    arguments = parser.parse_args()
    for path in arguments.runs:
        run = load_run(path, device="cpu", workers=arguments.workers)
        for stage in run.recipe.stages_making("masks"):
            start = time.time()
            scores = [score for score in run.scores(stage=stage, quiet=True) if not math.isnan(score.miou)]
            scores = [scores[i] for i in np.random.default_rng(0).permutation(len(scores))]  # ties in random order
            seconds, miou = time.time() - start, np.mean([score.miou for score in scores])
            print(f"\n{path}: masks of {stage}, {len(scores)} images, {seconds:.0f} s, mean mIoU {100 * miou:.1f} %")
            print(f"{'order':30}{'quality':>9}{'worst tenth':>13}")
            orders = {column: sort_scores(scores, column) for column in ImageScore._fields[1:-1]}
            for part in ("disagreement", "color_contrast", "class_overlap", "border"):
                orders[f"doubt without {part}"] = sorted(scores, key=without_part(part), reverse=True)
            for name, order in orders.items():
                errors = np.array([1 - score.miou for score in order])
                print(f"{name:30}{order_quality(errors):9.2f}{100 * worst_found(errors):11.0f} %")


if __name__ == "__main__":
    main()
