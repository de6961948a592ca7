"""A background threshold for each image, chosen without truth (ours: docs/thresholds.md says what was tried)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tagmask.maps import ResponseMaps
from tagmask.refine.label_maps import crf_label_map
from tagmask.refine.settings import CrfSettings

# The candidates around the expected global threshold, and the weights of the cues: settled on 800 photographs and
# 1,000 scenes (docs/thresholds.md).
OFFSETS = np.arange(-4, 7) * 0.05
DISTANCE_WEIGHT, DISTANCE_WIDTH = 0.2, 0.2
COLOR_WEIGHT, COLORS = 0.5, 8  # bins a channel
EDGE_WEIGHT = 0.1
AGREEMENT_WEIGHT = 0.5  # 1: 0.8 points better with good saliency, 0.8 worse with a network, 0.4 with weak saliency
FIRST, LAST = 0.02, 0.98  # no candidate lies outside


class Choice(NamedTuple):
    """What was chosen for one image.

    Attributes:
        threshold: of activation.
        labels: [H, W] uint8, the label map at it after the CRF: 0 background and class ids.
        thresholds: [T] the candidates.
        scores: [T] their scores; the best was chosen.
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
) -> Choice:
    """Try thresholds around the expected one and keep that whose region looks most like an object.

    The score of a threshold: how well its region agrees with `foreground`, before and after the CRF; how much the
    colours of the CRF's region differ from the rest; whether its outlines lie on the image's edges; how near the
    threshold is to the expected one.

    Args:
        image: [H, W, 3] uint8.
        maps: its response maps.
        expected: the threshold without knowing the image, see `expected_threshold`.
        crf: None: no CRF.
        gt_prob: how sure the CRF is of the labels it starts from.
        foreground: [H, W] float, 0..1: how likely a pixel is foreground, from elsewhere (saliency, a network).

    Raises:
        ValueError: shapes that do not fit.
    """
    if image.shape[:2] != maps.size:
        raise ValueError(f"image {list(image.shape)} does not fit maps of an image of {list(maps.size)}")
    thresholds = np.unique(np.clip(expected + OFFSETS, FIRST, LAST))
    colors, gradient = color_bins(image), log_gradient(image)
    scores, found = [], []
    for t in thresholds.tolist():
        labels = crf_label_map(image, maps, t, crf, gt_prob)
        score = -DISTANCE_WEIGHT / 2 * ((t - expected) / DISTANCE_WIDTH) ** 2
        score += COLOR_WEIGHT * color_information(colors, labels > 0)
        score += EDGE_WEIGHT * edge_strength(gradient, labels)
        if foreground is not None:
            agreement = soft_iou(maps.label_map(t) > 0, foreground) + soft_iou(labels > 0, foreground)
            score += AGREEMENT_WEIGHT * agreement
        scores.append(score)
        found.append(labels)
    best = int(np.argmax(scores))
    return Choice(float(thresholds[best]), found[best], thresholds, np.array(scores))


def expected_threshold(threshold: float, num_tags: int, typical: float) -> float:
    """The global threshold, corrected for an image's number of tags.

    Each class's map has 1 as its maximum, so that the more classes an image has, the more of it is above a threshold.

    Args:
        threshold: the run's global one.
        n_tags: of this image.
        typical: of the run, see `typical_root`.
    """
    return float(np.clip(threshold * num_tags**0.5 / typical, FIRST, LAST))


def typical_root(tags: Iterable[Sequence[int] | None]) -> float:
    """Mean of √(number of tags) over a run's tagged images, given each image's tags; 1 if there are none."""
    return float(np.mean([len(ids) ** 0.5 for ids in tags if ids] or [1.0]))


def soft_iou(region: NDArray[np.bool_], probability: np.ndarray) -> float:
    """IoU of a region [H, W] with a soft one, 0..1: Σ region · p / Σ max(region, p); 0 where both are empty.

    Raises:
        ValueError: the shapes differ.
    """
    if region.shape != probability.shape:
        raise ValueError(f"region {list(region.shape)} and probability {list(probability.shape)} differ in shape")
    both = float(probability[region].sum(dtype=np.float64))
    either = float(probability.sum(dtype=np.float64)) + np.count_nonzero(region) - both
    return both / either if either > 0 else 0.0


def color_bins(image: np.ndarray) -> NDArray[np.int64]:
    """Each pixel's colour in 8 × 8 × 8 bins: image [H, W, 3] uint8 → [H, W] of 0..511."""
    bins: NDArray[np.int64] = (image // (256 // COLORS)).astype(np.int64) @ np.array([COLORS**2, COLORS, 1])
    return bins


def color_information(colors: NDArray[np.int64], region: NDArray[np.bool_]) -> float:
    """Mutual information, in nats, of a pixel's colour (`colour_bins`, [H, W]) and its lying in the region [H, W].

    High where region and rest differ in colour and neither is small; 0 for an empty or a full region.
    """
    joint = np.stack([np.bincount(colors[where], minlength=COLORS**3) for where in (region, ~region)]) / region.size
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def log_gradient(image: np.ndarray) -> NDArray[np.float32]:
    """log(1 + gradient) of the image [H, W, 3] uint8 smoothed by 1 pixel: [H, W]; in grey levels a pixel, over RGB."""
    channels = [ndimage.gaussian_gradient_magnitude(image[..., c].astype(np.float32), 1) for c in range(3)]
    gradient: NDArray[np.float32] = np.log1p(np.linalg.norm(channels, axis=0)).astype(np.float32)
    return gradient


def edge_strength(gradient: NDArray[np.float32], labels: np.ndarray) -> float:
    """How much stronger the image's edges are along the outlines of a label map than elsewhere.

    Mean of `gradient` (`log_gradient`, [H, W]) over the pixels that have a neighbour of another label in `labels`
    [H, W], minus its mean over the image; 0 where there are no outlines.
    """
    outline = np.zeros(labels.shape, bool)
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    outline[1:] |= below
    outline[:-1] |= below
    outline[:, 1:] |= right
    outline[:, :-1] |= right
    return float(gradient[outline].mean() - gradient.mean()) if outline.any() else 0.0
