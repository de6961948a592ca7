"""One image's joint histogram of truth, best class and activation: it holds the result of every threshold."""

from __future__ import annotations

import numpy as np
from numba import njit

from tagmask.label_map import IGNORE_INDEX
from tagmask.measure.confusion import mean_iou
from tagmask.measure.validation import check_maps


def joint_histogram(
    maps: np.ndarray, classes: np.ndarray, ground_truth: np.ndarray, num_classes: int, thresholds: np.ndarray
) -> np.ndarray:
    """Count an image's pixels by truth, best class and the number of thresholds below the best activation.

    Args:
        maps: [K, H, W] float, activations of the tagged classes; K may be 0.
        classes: [K] int, their ids 1..n.
        truth: [H, W] uint8, 0 background, 1..n classes; 255 is left out.
        n_classes: n, without the background.
        thresholds: [T] float32, ascending.

    Returns:
        [n + 1, K, T + 1] int64. With no class all pixels are in [:, 0, 0] of a [n + 1, 1, T + 1].

    Raises:
        ValueError: shapes that do not fit, a class or a truth value out of range, a map with nan.
    """
    check_maps(maps, classes, ground_truth)
    if len(np.unique(classes)) < len(classes) or any(not 1 <= c <= num_classes for c in classes):
        raise ValueError(f"classes are {classes.tolist()}; each must be in 1..{num_classes}, once")
    k = max(len(maps), 1)
    flat = np.ascontiguousarray(maps, np.float32).reshape(len(maps), ground_truth.size)
    histogram = np.zeros((num_classes + 1, k, len(thresholds) + 1), np.int64)
    wrong = _count(flat, np.ascontiguousarray(ground_truth).ravel(), thresholds, histogram)
    if wrong >= 0:
        if np.isnan(flat[:, wrong]).any():
            raise ValueError("the maps contain nan")
        raise ValueError(
            f"truth has the value {ground_truth.flat[wrong]}; valid are 0..{num_classes} and {IGNORE_INDEX}"
        )
    return histogram


@njit(cache=True, nogil=True)
def _count(maps: np.ndarray, ground_truth: np.ndarray, thresholds: np.ndarray, histogram: np.ndarray) -> int:
    """Add the pixels of maps [K, N] and truth [N] to `histogram`; -1, or the first pixel that is not valid."""
    steps = len(thresholds)
    first = thresholds[0]
    scale = (steps - 1) / (thresholds[-1] - first) if steps > 1 else 0.0
    for i in range(maps.shape[1]):
        if ground_truth[i] == IGNORE_INDEX:
            continue
        if ground_truth[i] >= len(histogram):
            return i
        best, label = np.float32(-np.inf), 0
        for k in range(maps.shape[0]):
            if np.isnan(maps[k, i]):
                return i
            if maps[k, i] > best:
                best, label = maps[k, i], k
        # Where it would be if the steps were even; from there to where it is, exact for any thresholds.
        guess = (best - first) * scale
        below = steps if guess >= steps else int(guess) if guess > 0 else 0
        while below < steps and best > thresholds[below]:
            below += 1
        while below > 0 and best <= thresholds[below - 1]:
            below -= 1
        histogram[ground_truth[i], label, below] += 1
    return -1


def above_thresholds(joint: np.ndarray) -> np.ndarray:
    """[n + 1, K, T]: pixels of each truth and best class above each threshold, from their histogram."""
    return np.cumsum(joint[:, :, :0:-1], axis=2)[:, :, ::-1]


def confusion_of(above: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[n + 1, n + 1] at one threshold, from the pixels above it [n + 1, K] and the truth's counts [n + 1]."""
    confusion = np.zeros((len(counts), len(counts)), np.int64)
    confusion[:, classes] = above[:, : len(classes)]
    confusion[:, 0] = counts - confusion.sum(axis=1)
    return confusion


def image_miou(above: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[T] mIoU of one image from `above` [n + 1, K, T], without its T confusion matrices."""
    hits = np.zeros((above.shape[2], len(counts)), np.int64)
    predicted = np.zeros_like(hits)
    for k, c in enumerate(classes):
        hits[:, c] = above[c, k]
        predicted[:, c] = above[:, k].sum(axis=0)
    hits[:, 0] = counts[0] - above[0].sum(axis=0)
    predicted[:, 0] = counts.sum() - predicted.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return mean_iou(hits / (counts + predicted - hits))
