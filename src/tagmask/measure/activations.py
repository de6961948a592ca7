"""How uniform the activation is inside an object, and how far it is above the background."""

from __future__ import annotations

import numpy as np

from tagmask.measure.reports import ActivationStats
from tagmask.measure.validation import check_maps


def activation_stats(maps: np.ndarray, classes: np.ndarray, target: np.ndarray) -> list[ActivationStats]:
    """Compute the statistics of each response map of an image.

    Args:
        maps: [K, H, W] float, activations of the tagged classes; K may be 0.
        classes: [K] int, ids of the classes, from 1.
        target: [H, W] integers, 0 background, class ids, 255 ignored.

    Returns:
        K statistics. All values are nan for a class that does not occur in the target.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> maps = np.array([[[0.8, 0.8, 0.2]]])
        >>> activation_stats(maps, np.array([1]), np.array([[1, 1, 0]]))
        [ActivationStats(imbalance=1.0, variation=0.0, gap=0.6000000000000001)]
    """
    check_maps(maps, classes, target)
    background = target == 0
    stats = []
    for class_map, class_id in zip(maps, classes, strict=True):
        inside = class_map[target == class_id].astype(np.float64)
        imbalance = variation = gap = np.nan
        if inside.any():
            low, high = np.percentile(inside, (10, 90))
            # If both are 0, almost the whole region has no activation, which is as imbalanced as possible.
            imbalance = high / low if low > 0 else np.inf
            variation = inside.std() / inside.mean()
        if inside.size and background.any():
            gap = inside.mean() - class_map[background].mean(dtype=np.float64)
        stats.append(ActivationStats(float(imbalance), float(variation), float(gap)))
    return stats
