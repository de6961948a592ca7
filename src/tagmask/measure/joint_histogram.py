"""Joint histogram of target, best class and activation of an image, which holds the result of every threshold."""

from __future__ import annotations

import numpy as np
from numba import njit

from tagmask.label_map import IGNORE_INDEX
from tagmask.measure.validation import check_maps


def joint_histogram(
    maps: np.ndarray, classes: np.ndarray, target: np.ndarray, num_labels: int, thresholds: np.ndarray
) -> np.ndarray:
    """Count the pixels of an image by target label, best class and number of thresholds below the best activation.

    The best class of a pixel is the tagged class with the largest activation, the first of equal ones. Pixels whose
    target is 255 are left out.

    Args:
        maps: [K, H, W] float, activations of the tagged classes; K may be 0.
        classes: [K] int, ids of the classes, in 1..num_labels - 1.
        target: [H, W] uint8, 0 background, class ids, 255 ignored.
        num_labels: number of labels, background included.
        thresholds: [T] float32, ascending.

    Returns:
        [num_labels, K, T + 1] int64. Without classes the result is [num_labels, 1, T + 1], and all pixels are in
        [:, 0, 0].

    Raises:
        ValueError: the shapes do not fit, a class or a target value is out of range, or the maps contain nan.

    Example:
        >>> maps, classes = np.array([[[0.9, 0.3, 0.1]]]), np.array([1])
        >>> thresholds = np.array([0.2, 0.5], np.float32)
        >>> joint_histogram(maps, classes, np.array([[1, 0, 0]], np.uint8), 2, thresholds).tolist()
        [[[1, 1, 0]], [[0, 0, 1]]]
    """
    check_maps(maps, classes, target)
    if len(np.unique(classes)) < len(classes) or any(not 1 <= c < num_labels for c in classes):
        raise ValueError(f"classes are {classes.tolist()}; each must be in 1..{num_labels - 1} and occur once")
    flat_maps = np.ascontiguousarray(maps, np.float32).reshape(len(maps), target.size)
    histogram = np.zeros((num_labels, max(len(maps), 1), len(thresholds) + 1), np.int64)
    invalid = _count_inplace(flat_maps, np.ascontiguousarray(target).ravel(), thresholds, histogram)
    if invalid >= 0:
        if np.isnan(flat_maps[:, invalid]).any():
            raise ValueError("the maps contain nan")
        raise ValueError(
            f"target has the value {target.flat[invalid]}; valid values are 0..{num_labels - 1} and {IGNORE_INDEX}"
        )
    return histogram


@njit(cache=True, nogil=True)
def _count_inplace(maps: np.ndarray, target: np.ndarray, thresholds: np.ndarray, histogram: np.ndarray) -> int:
    """Add the pixels of maps [K, N] and target [N] to `histogram`; return the first invalid pixel, or -1."""
    num_thresholds = len(thresholds)
    lowest = thresholds[0]
    scale = (num_thresholds - 1) / (thresholds[-1] - lowest) if num_thresholds > 1 else 0.0
    for i in range(maps.shape[1]):
        if target[i] == IGNORE_INDEX:
            continue
        if target[i] >= len(histogram):
            return i
        best, best_class = np.float32(-np.inf), 0
        for k in range(maps.shape[0]):
            if np.isnan(maps[k, i]):
                return i
            if maps[k, i] > best:
                best, best_class = maps[k, i], k
        # Start at the index that evenly spaced thresholds would give. The two loops then find the exact index.
        guess = (best - lowest) * scale
        below = num_thresholds if guess >= num_thresholds else int(guess) if guess > 0 else 0
        while below < num_thresholds and best > thresholds[below]:
            below += 1
        while below > 0 and best <= thresholds[below - 1]:
            below -= 1
        histogram[target[i], best_class, below] += 1
    return -1
