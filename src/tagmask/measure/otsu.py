"""Otsu's method: a threshold chosen from the activations alone, without ground truth."""

from __future__ import annotations

import numpy as np

BINS = 256  # a power of two, so that float16 and float32 represent the edges of the bins exactly


def activation_histogram(maps: np.ndarray) -> np.ndarray:
    """Count the pixels of an image by their largest activation over the tagged classes.

    Bin 0 counts activations of 0, bin i those in ((i − 1) / 256, i / 256]. The threshold `i / 256`, above which a
    pixel belongs to a class, therefore splits the histogram exactly after bin i.

    Args:
        maps: [K, H, W] float in 0..1, at any size; values outside are clipped, K may be 0.

    Returns:
        [257] int64; all 0 for an image without tags.

    Raises:
        ValueError: the maps contain nan.

    Example:
        >>> counts = activation_histogram(np.array([[[0.0, 0.25], [0.5, 1.0]]]))
        >>> np.flatnonzero(counts).tolist()
        [0, 64, 128, 256]
    """
    if not maps.size:
        return np.zeros(BINS + 1, np.int64)
    largest = np.asarray(maps, np.float32).max(axis=0)
    if np.isnan(largest).any():
        raise ValueError("the maps contain nan")
    bins = np.ceil(np.clip(largest, 0, 1) * BINS).astype(np.int64)
    return np.bincount(bins.ravel(), minlength=BINS + 1)


def otsu_threshold(histogram: np.ndarray, values: np.ndarray) -> float:
    """Compute the threshold that splits a histogram with the largest between-class variance.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and
    Cybernetics 9(1), 1979, Equation 18.

    Args:
        histogram: [B] counts.
        values: [B] ascending and evenly spaced, the value of each bin: its center or its upper edge.

    Returns:
        The value of the last bin of the lower class; of equally good splits the lowest. If only one bin is not empty,
        the result is the value of that bin, and no count is above the threshold.

    Raises:
        ValueError: the lengths differ, or the histogram is empty.

    Example:
        >>> otsu_threshold(np.array([5, 3, 0, 4]), np.array([0.0, 0.25, 0.5, 0.75]))
        0.25
    """
    counts, values = np.asarray(histogram, np.float64), np.asarray(values, np.float64)
    if counts.shape != values.shape or counts.ndim != 1:
        raise ValueError(f"histogram is {list(counts.shape)} and values is {list(values.shape)}; both must be [B]")
    filled = np.flatnonzero(counts)
    if not len(filled):
        raise ValueError("an empty histogram has no Otsu threshold: count the activations of at least one tagged image")
    if len(filled) == 1:
        return float(values[filled[0]])
    lower, lower_sum = np.cumsum(counts), np.cumsum(counts * values)
    upper = lower[-1] - lower
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = lower_sum / lower - (lower_sum[-1] - lower_sum) / upper
        variance = np.nan_to_num(lower * upper * difference**2, posinf=0.0)
    return float(values[np.argmax(variance)])
