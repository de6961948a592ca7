"""Threshold analysis of response maps: confusion matrices at all global thresholds, from one joint histogram.

In this module, `joint` is a histogram that `tagmask.measure.joint_histogram` counts. For one image it is
[num_labels, K, T + 1]. The sum over images is [num_labels, num_labels, T + 1], with the class ids in the second
dimension; id 0 there holds the pixels of images without tags, which are background at every threshold.
"""

from __future__ import annotations

import numpy as np

from tagmask.measure.confusion import iou, mean_iou
from tagmask.measure.reports import ThresholdReport

INTERVAL_MARGIN = 0.02  # `ThresholdReport.interval` ends where mIoU is more than two points below its maximum


def above_thresholds(joint: np.ndarray) -> np.ndarray:
    """Count the pixels of each target label and best class above each threshold.

    Args:
        joint: [num_labels, K, T + 1] int.

    Returns:
        [num_labels, K, T] int.

    Example:
        >>> above_thresholds(np.array([[[1, 1, 0]], [[0, 0, 1]]])).tolist()
        [[[1, 0]], [[1, 1]]]
    """
    return np.cumsum(joint[:, :, :0:-1], axis=2)[:, :, ::-1]


def confusion_at_threshold(above: np.ndarray, classes: np.ndarray, target_counts: np.ndarray) -> np.ndarray:
    """Compute the confusion matrix at one threshold.

    Args:
        above: [num_labels, K] int, pixels of each target label and best class above the threshold.
        classes: [K] int, ids of the classes.
        target_counts: [num_labels] int, all pixels of each target label.

    Returns:
        [num_labels, num_labels] int64, rows target, columns prediction.

    Example:
        >>> confusion_at_threshold(np.array([[1], [1]]), np.array([1]), np.array([2, 1])).tolist()
        [[1, 1], [0, 1]]
    """
    confusion = np.zeros((len(target_counts), len(target_counts)), np.int64)
    confusion[:, classes] = above[:, : len(classes)]
    confusion[:, 0] = target_counts - confusion.sum(axis=1)
    return confusion


def confusion_at_thresholds(joint: np.ndarray) -> np.ndarray:
    """Compute the confusion matrix at every threshold.

    Args:
        joint: [num_labels, num_labels, T + 1] int, summed over images.

    Returns:
        [T, num_labels, num_labels] int64, rows target, columns prediction.

    Example:
        >>> joint = np.zeros((2, 2, 3), np.int64)
        >>> joint[:, 1] = [[1, 1, 0], [0, 0, 1]]
        >>> confusion_at_thresholds(joint).tolist()
        [[[1, 1], [0, 1]], [[2, 0], [0, 1]]]
    """
    above, target_counts = above_thresholds(joint)[:, 1:], joint.sum(axis=(1, 2))
    classes = np.arange(1, len(joint))
    return np.stack([confusion_at_threshold(at_one, classes, target_counts) for at_one in np.moveaxis(above, 2, 0)])


def image_miou(above: np.ndarray, classes: np.ndarray, target_counts: np.ndarray) -> np.ndarray:
    """Compute the mIoU of one image at every threshold, without its T confusion matrices.

    Args:
        above: [num_labels, K, T] int, see `above_thresholds`.
        classes: [K] int, ids of the classes.
        target_counts: [num_labels] int, all pixels of each target label.

    Returns:
        [T] float64.

    Example:
        >>> image_miou(np.array([[[1, 0]], [[1, 1]]]), np.array([1]), np.array([2, 1])).tolist()
        [0.5, 1.0]
    """
    hits = np.zeros((above.shape[2], len(target_counts)), np.int64)
    predicted = np.zeros_like(hits)
    for k, c in enumerate(classes):
        hits[:, c] = above[c, k]
        predicted[:, c] = above[:, k].sum(axis=0)
    hits[:, 0] = target_counts[0] - above[0].sum(axis=0)
    predicted[:, 0] = target_counts.sum() - predicted.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return mean_iou(hits / (target_counts + predicted - hits))


def best_index(scores: np.ndarray) -> int:
    """Return the index of the largest score, the middle one of equal ones.

    Args:
        scores: [T] float; nan is never the largest.

    Returns:
        The index; 0 if all scores are nan.

    Example:
        >>> best_index(np.array([0.1, 0.5, 0.5, 0.5, np.nan]))
        2
    """
    largest = np.flatnonzero(scores == np.nanmax(scores, initial=-np.inf))
    return int(largest[len(largest) // 2]) if len(largest) else 0


def threshold_report(
    joint: np.ndarray, thresholds: np.ndarray, image_best: np.ndarray, oracle: np.ndarray
) -> ThresholdReport:
    """Compute the curve of mIoU over the thresholds, and all that follows from it.

    Args:
        joint: [num_labels, num_labels, T + 1] int, summed over images.
        thresholds: [T] float64, ascending.
        image_best: [T] int, number of images that have their own best mIoU at each threshold.
        oracle: [num_labels, num_labels] int, sum of the images' confusion matrices, each at the image's own best
            threshold.

    Returns:
        The report.

    Raises:
        ValueError: the histogram is empty.

    Example:
        >>> joint = np.zeros((2, 2, 3), np.int64)
        >>> joint[:, 1] = [[1, 1, 0], [0, 0, 1]]
        >>> report = threshold_report(joint, np.array([0.2, 0.5]), np.array([0, 1]), np.array([[2, 0], [0, 1]]))
        >>> report.miou.tolist(), report.best_threshold, report.oracle_miou
        ([0.5, 1.0], 0.5, 1.0)
    """
    target_counts = joint.sum(axis=(1, 2))
    if not target_counts.any():
        raise ValueError("there is no threshold curve: no pixel with a ground-truth label was counted")
    scores = iou(confusion_at_thresholds(joint))
    miou = mean_iou(scores)
    best = best_index(miou)

    in_target = target_counts > 0
    class_best = np.where(in_target, [best_index(curve) for curve in scores.T], best)
    classes = np.arange(1, len(joint))
    # The best class of a pixel does not depend on the threshold, so each class can have its own.
    above_class_best = above_thresholds(joint)[:, classes, class_best[1:]]
    return ThresholdReport(
        thresholds,
        scores,
        miou,
        best_threshold=float(thresholds[best]),
        best_miou=float(miou[best]),
        interval=_interval(thresholds, miou, best),
        area=_area(thresholds, miou),
        image_best=image_best,
        image_percentiles=_percentiles_10_50_90(thresholds, image_best),
        oracle_miou=float(mean_iou(iou(oracle))),
        class_best=np.where(in_target, thresholds[class_best], np.nan),
        class_miou=float(mean_iou(iou(confusion_at_threshold(above_class_best, classes, target_counts)))),
    )


def _interval(thresholds: np.ndarray, miou: np.ndarray, best: int) -> tuple[float, float]:
    """Return the first and last threshold of the run around `best` in which mIoU stays within the margin."""
    outside = np.flatnonzero(miou < miou[best] - INTERVAL_MARGIN)
    low = outside[outside < best].max(initial=-1) + 1
    high = outside[outside > best].min(initial=len(miou)) - 1
    return float(thresholds[low]), float(thresholds[high])


def _area(thresholds: np.ndarray, miou: np.ndarray) -> float:
    """Return the area under the curve by the trapezoidal rule, divided by the range of the thresholds."""
    if len(thresholds) == 1:
        return float(miou[0])
    steps = np.diff(thresholds)
    return float((steps * (miou[1:] + miou[:-1]) / 2).sum() / steps.sum())


def _percentiles_10_50_90(thresholds: np.ndarray, image_best: np.ndarray) -> tuple[float, float, float]:
    """Return the lowest thresholds with at least 10, 50 and 90 % of the images at or below them."""
    cumulative = np.cumsum(image_best)
    if not cumulative[-1]:
        return float("nan"), float("nan"), float("nan")
    low, middle, high = (float(thresholds[np.searchsorted(cumulative, p * cumulative[-1] / 100)]) for p in (10, 50, 90))
    return low, middle, high
