"""A background threshold for each image, chosen without ground truth.

This is our own method; docs/results/thresholds.md reports what else was tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tagmask.label_map import label_boundaries
from tagmask.maps import STRIDE, ResponseMaps
from tagmask.refine.colors import color_bins
from tagmask.refine.map_cutting import refine_labels
from tagmask.refine.random_walk import enlarge
from tagmask.refine.settings import CrfSettings

# The candidates around the expected threshold, and the weights of the terms of the score, were chosen on 800
# photographs and 1,000 scenes (docs/results/thresholds.md).
OFFSETS = np.arange(-4, 7) * 0.05  # of the candidates from the expected threshold
MIN_THRESHOLD, MAX_THRESHOLD = 0.02, 0.98  # of the candidates
DISTANCE_WEIGHT, DISTANCE_WIDTH = 0.2, 0.2
COLOR_WEIGHT = 0.5
EDGE_WEIGHT = 0.1
BOUNDARY_WEIGHT = 2.0
# A weight of 1 is 0.8 points of mIoU better with good saliency, 0.8 worse with a network, 0.4 worse with weak saliency.
AGREEMENT_WEIGHT = 0.5


class ThresholdChoice(NamedTuple):
    """The threshold that was chosen for an image.

    Attributes:
        threshold: activation, 0..1.
        labels: [H, W] uint8, the label map at this threshold after the CRF: 0 background and class ids.
        thresholds: [T] float, the candidates.
        scores: [T] float, their scores; the candidate with the highest score was chosen.
    """

    threshold: float
    labels: np.ndarray
    thresholds: np.ndarray
    scores: np.ndarray


def choose_threshold(
    image: np.ndarray,
    maps: ResponseMaps,
    expected: float,
    crf: CrfSettings | None,
    gt_prob: float = 0.7,
    *,
    foreground: np.ndarray | None = None,
    boundary: np.ndarray | None = None,
) -> ThresholdChoice:
    """Choose the threshold near the expected one whose foreground is most like an object.

    The score of a threshold is the sum of five terms: how well its foreground agrees with `foreground`, before and
    after the CRF; how much the colors of the foreground after the CRF differ from the rest; whether its outlines lie
    on edges of the image, and on `boundary`; how near the threshold is to the expected one.

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        expected: the threshold for an average image with as many tags, 0..1, see `expected_threshold`.
        crf: settings of the CRF; None: no CRF.
        gt_prob: probability, in (0, 1), with which the CRF takes its input labels to be right.
        foreground: [H, W] float, 0..1, probability that a pixel is foreground, from saliency or a network.
        boundary: [ceil(H / 4), ceil(W / 4)] float, 0..1, from IRN's network: whether a cell lies on a boundary.

    Returns:
        The threshold, its label map, and all candidates with their scores.

    Raises:
        ValueError: the shapes of `image`, `maps` and `foreground` do not fit.
    """
    if image.shape[:2] != maps.size:
        raise ValueError(f"image {list(image.shape)} does not fit maps of an image of {list(maps.size)}")
    thresholds = np.unique(np.clip(expected + OFFSETS, MIN_THRESHOLD, MAX_THRESHOLD))
    colors, gradient = color_bins(image), log_gradient(image)
    boundaries = None if boundary is None else enlarge(boundary[None], STRIDE, *maps.size)[0]
    cut = np.stack([maps.label_map(threshold) for threshold in thresholds.tolist()])
    refined = cut if crf is None else refine_labels(image, cut, maps.classes, crf, gt_prob)
    scores = []
    for threshold, before, labels in zip(thresholds.tolist(), cut, refined, strict=True):
        score = -DISTANCE_WEIGHT / 2 * ((threshold - expected) / DISTANCE_WIDTH) ** 2
        score += COLOR_WEIGHT * color_information(colors, labels > 0)
        score += EDGE_WEIGHT * edge_strength(gradient, labels)
        if boundaries is not None:
            score += BOUNDARY_WEIGHT * edge_strength(boundaries, labels)
        if foreground is not None:
            score += AGREEMENT_WEIGHT * (soft_iou(before > 0, foreground) + soft_iou(labels > 0, foreground))
        scores.append(score)
    best = int(np.argmax(scores))
    return ThresholdChoice(float(thresholds[best]), refined[best], thresholds, np.array(scores))


def expected_threshold(threshold: float, num_tags: int, mean_root_tags: float) -> float:
    """Return the global threshold of a run, corrected for the number of tags of an image.

    The map of each class has 1 as its maximum. Therefore, the more classes an image has, the more of its pixels are
    above a given threshold.

    Args:
        threshold: the global threshold of the run, 0..1.
        num_tags: number of tags of this image.
        mean_root_tags: mean over the run, see `mean_root_num_tags`.

    Returns:
        The threshold of this image, `MIN_THRESHOLD` to `MAX_THRESHOLD`.
    """
    return float(np.clip(threshold * num_tags**0.5 / mean_root_tags, MIN_THRESHOLD, MAX_THRESHOLD))


def mean_root_num_tags(tags: Iterable[Sequence[int] | None]) -> float:
    """Return the mean of √(number of tags) over the images that have tags, or 1 if there are none.

    Args:
        tags: the class ids of each image; None where they are not known.
    """
    return float(np.mean([len(ids) ** 0.5 for ids in tags if ids] or [1.0]))


def soft_iou(region: NDArray[np.bool_], probability: np.ndarray) -> float:
    """Return the IoU of a region with a probability map: Σ region · p / Σ max(region, p), or 0 if both are empty.

    Args:
        region: [H, W] bool.
        probability: [H, W] float, 0..1.

    Raises:
        ValueError: the shapes differ.
    """
    if region.shape != probability.shape:
        raise ValueError(f"region {list(region.shape)} and probability {list(probability.shape)} differ in shape")
    intersection = float(probability[region].sum(dtype=np.float64))
    union = float(probability.sum(dtype=np.float64)) + np.count_nonzero(region) - intersection
    return intersection / union if union > 0 else 0.0


def color_information(colors: NDArray[np.int64], region: NDArray[np.bool_]) -> float:
    """Return the mutual information, in nats, between the color of a pixel and whether it lies in the region.

    It is high if the region and the rest differ in color and neither is small. For an empty or a full region it is 0.

    Args:
        colors: [H, W] int64, see `color_bins`.
        region: [H, W] bool.
    """
    num_bins = int(colors.max()) + 1
    counts = [np.bincount(colors[part], minlength=num_bins) for part in (region, ~region)]
    joint = np.stack(counts) / region.size
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    occurs = joint > 0
    return float((joint[occurs] * np.log(joint[occurs] / independent[occurs])).sum())


def log_gradient(image: np.ndarray) -> NDArray[np.float32]:
    """Return log(1 + gradient) of an image that is smoothed by a Gaussian with a standard deviation of 1 pixel.

    Args:
        image: [H, W, 3] uint8, RGB.

    Returns:
        [H, W] float32; the gradient is the norm over the channels, in levels of 0..255 per pixel.
    """
    channels = [ndimage.gaussian_gradient_magnitude(image[..., c].astype(np.float32), 1) for c in range(3)]
    gradient: NDArray[np.float32] = np.log1p(np.linalg.norm(channels, axis=0)).astype(np.float32)
    return gradient


def edge_strength(gradient: NDArray[np.float32], labels: np.ndarray) -> float:
    """Return how much stronger the edges of an image are along the outlines of a label map than on average.

    Args:
        gradient: [H, W] float32, see `log_gradient`, or probabilities of boundaries.
        labels: [H, W] uint8.

    Returns:
        The mean of `gradient` over the outlines minus its mean over the image; 0 if there are no outlines.
    """
    outlines = label_boundaries(labels)
    return float(gradient[outlines].mean() - gradient.mean()) if outlines.any() else 0.0
