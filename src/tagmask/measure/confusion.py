"""Confusion matrix of label maps, and the scores that follow from it."""

from __future__ import annotations

import numpy as np

from tagmask.label_map import IGNORE_INDEX
from tagmask.measure.reports import SegmentationReport
from tagmask.measure.validation import as_label_pair

_MAX_PIXELS = 1 << 22  # counted at once, because `bincount` takes 8 bytes per pixel


def confusion_matrix(preds: np.ndarray, target: np.ndarray, num_labels: int) -> np.ndarray:
    """Count the pixels of each pair of target label and predicted label.

    Pixels whose target is 255 are left out. A prediction of 255 is a wrong prediction of no label: it is counted in
    the last column, so it lowers the IoU of the target label and of no other.

    Args:
        preds: [H, W] integers, 0 background, 1..num_labels - 1 classes, 255 ignored.
        target: [H, W] integers, the same values.
        num_labels: number of labels, background included; at most 255.

    Returns:
        [num_labels, num_labels + 1] int64. Rows are the target labels, columns the predicted labels and then the
        ignored predictions.

    Raises:
        ValueError: the shapes differ, or a value is neither in 0..num_labels - 1 nor 255.

    Example:
        >>> target = np.array([[0, 1], [1, 255]], np.uint8)
        >>> preds = np.array([[0, 1], [255, 0]], np.uint8)
        >>> confusion_matrix(preds, target, num_labels=2).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    preds, target = as_label_pair(preds, target)
    # Counting all 256 × 256 pairs takes no longer than counting the valid ones, and it finds the invalid ones.
    num_rows = max(1, _MAX_PIXELS // max(1, target.shape[1]))
    counts = _count_pairs(preds[:num_rows], target[:num_rows])
    for start in range(num_rows, len(target), num_rows):
        rows = np.s_[start : start + num_rows]
        counts += _count_pairs(preds[rows], target[rows])
    labels = [*range(num_labels), IGNORE_INDEX]
    valid = counts[np.ix_(labels, labels)]
    if valid.sum() == target.size:
        return valid[:num_labels]
    for name, present in (("target", counts.sum(axis=1) > 0), ("preds", counts.sum(axis=0) > 0)):
        invalid = np.flatnonzero(present[num_labels:IGNORE_INDEX]) + num_labels
        if len(invalid):
            raise ValueError(
                f"{name} has the value {invalid[0]}; valid values are 0..{num_labels - 1} and {IGNORE_INDEX}"
            )
    raise AssertionError("a pair that is not valid has a value that is not valid")


def _count_pairs(preds: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count the pixels of each pair of values, [256 targets, 256 preds] int64."""
    pairs = target.astype(np.uint16) << 8 | preds
    return np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of each label.

    Args:
        confusion: [..., num_labels, num_labels] or [..., num_labels, num_labels + 1] int, see `confusion_matrix`.

    Returns:
        [..., num_labels] float64 in 0..1; nan for a label that occurs neither in the predictions nor in the target.

    Example:
        >>> iou(np.array([[6, 2, 0], [0, 3, 1]])).tolist()
        [0.75, 0.5]
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted = confusion.sum(axis=-2)[..., : hits.shape[-1]]
    with np.errstate(invalid="ignore"):
        return hits / (confusion.sum(axis=-1) + predicted - hits)


def mean_iou(iou: np.ndarray) -> np.ndarray:
    """Compute the mean IoU over the labels that occur in the predictions or in the target.

    Args:
        iou: [..., num_labels] float, nan for labels that do not occur.

    Returns:
        [...] float64 in 0..1; nan if no label occurs.

    Example:
        >>> float(mean_iou(np.array([0.75, 0.5, np.nan])))
        0.625
    """
    with np.errstate(invalid="ignore"):
        return np.nansum(iou, axis=-1) / np.sum(~np.isnan(iou), axis=-1)


def segmentation_report(confusion: np.ndarray, boundary_f: float, boundary_f_class: np.ndarray) -> SegmentationReport:
    """Compute all scores of a confusion matrix, and add the boundary F-scores to them.

    Args:
        confusion: [num_labels, num_labels + 1] int, see `confusion_matrix`; the sum over all images.
        boundary_f: mean boundary F-score of the images.
        boundary_f_class: [num_labels] float, mean boundary F-score of each label.

    Returns:
        The report.

    Example:
        >>> report = segmentation_report(np.array([[6, 2, 0], [0, 3, 1]]), 0.9, np.array([0.95, 0.85]))
        >>> report.miou, report.pixel_accuracy
        (0.625, 0.75)
    """
    scores = iou(confusion)
    with np.errstate(invalid="ignore"):
        pixel_accuracy = np.trace(confusion) / confusion.sum()
        ignored = confusion[:, -1].sum() / confusion.sum()
    return SegmentationReport(
        confusion,
        scores,
        miou=float(mean_iou(scores)),
        pixel_accuracy=float(pixel_accuracy),
        ignored=float(ignored),
        boundary_f=boundary_f,
        boundary_f_class=boundary_f_class,
    )
