"""Metrics that sum their counts over images and processes, as torchmetrics classes.

They add state to the functions of this package, which need neither PyTorch nor torchmetrics.

Fractions are rounded to multiples of 2⁻³⁰ before they are added. The sums of up to 8 million of them, of about 1 each,
are then exact in float64, so they do not depend on the order of the images and their division among processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from tagmask.measure.activations import activation_stats
from tagmask.measure.boundary import boundary_counts, boundary_f
from tagmask.measure.confusion import confusion_matrix, mean_iou, segmentation_report
from tagmask.measure.joint_histogram import joint_histogram
from tagmask.measure.otsu import BINS, activation_histogram, otsu_threshold
from tagmask.measure.reports import ActivationStats, SegmentationReport, ThresholdReport
from tagmask.measure.thresholds import (
    above_thresholds,
    best_index,
    confusion_at_threshold,
    image_miou,
    threshold_report,
)
from tagmask.measure.validation import as_labels

Array = np.ndarray | Tensor
_FRACTION = 2.0**-30


class SegmentationMetric(Metric):
    """Confusion matrix and boundary F-score of predicted label maps, and the scores that follow from them.

    The state does not grow with the number of images. The boundary F-score takes most of the time of an update.

    Args:
        num_labels: number of labels, background included; at most 255.
        boundary: whether to measure the boundary F-score; otherwise it is nan.
        **kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = SegmentationMetric(num_labels=2)
        >>> metric.update(preds=np.array([[0, 1, 1]]), target=np.array([[0, 0, 1]]))
        >>> metric.compute().miou
        0.5
    """

    is_differentiable = False
    full_state_update = False
    confusion: Tensor
    boundary_sum: Tensor
    boundary_images: Tensor

    def __init__(self, num_labels: int, boundary: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.boundary = boundary
        confusion = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64)
        self.add_state("confusion", confusion, dist_reduce_fx="sum")
        # One entry per label, and last the mean over the labels of an image.
        self.add_state("boundary_sum", torch.zeros(num_labels + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("boundary_images", torch.zeros(num_labels + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Array, target: Array) -> None:
        """Add one image.

        Args:
            preds: [H, W] integers, 0 background, 1..num_labels - 1 classes, 255 ignored.
            target: [H, W] integers, the same values.

        Raises:
            ValueError: the shapes differ, or a value is neither in 0..num_labels - 1 nor 255.
        """
        preds, target = _as_array(preds), _as_array(target)
        counts = confusion_matrix(preds, target, self.num_labels)
        self.confusion += torch.from_numpy(counts).to(self.confusion.device)
        if not self.boundary:
            return
        scores = boundary_f(boundary_counts(preds, target, self.num_labels))
        scores = np.append(scores, mean_iou(scores))
        self.boundary_sum += torch.from_numpy(_round(np.nan_to_num(scores))).to(self.boundary_sum.device)
        self.boundary_images += torch.from_numpy(~np.isnan(scores)).to(self.boundary_images.device)

    def compute(self) -> SegmentationReport:
        """Compute the scores over all images and processes so far.

        Returns:
            The report; its values are nan where there is nothing to measure.
        """
        confusion = self.confusion.cpu().numpy().copy()  # later updates change the state
        boundary = (self.boundary_sum / self.boundary_images).cpu().numpy()
        return segmentation_report(confusion, float(boundary[-1]), boundary[:-1])


class ThresholdCurveMetric(Metric):
    """mIoU of response maps as a function of one global threshold, exact, in one pass over the images.

    A pixel is background unless its largest activation is above the threshold; of equal maps the first one wins. This
    is the argmax over [threshold, maps...]. Activations and thresholds are compared as float32, whatever the dtype of
    the maps.

    For each pixel, the metric counts only the target label, the best class and the interval of thresholds that
    contains its activation. The cumulative sum over the intervals gives the confusion matrix at every threshold.
    The state takes 8 · num_labels² · (T + 1) bytes, and does not grow with the number of images.

    Args:
        num_labels: number of labels, background included.
        thresholds: [T] ascending; 0.00, 0.01, ... 1.00 by default.
        **kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: the thresholds are not ascending, or are too close to differ in float32.

    Example:
        >>> metric = ThresholdCurveMetric(num_labels=2, thresholds=[0.2, 0.5, 0.8])
        >>> metric.update(maps=np.array([[[0.9, 0.4, 0.1]]]), classes=[1], target=np.array([[1, 0, 0]]))
        >>> metric.compute().miou.tolist()
        [0.5, 1.0, 1.0]
    """

    is_differentiable = False
    full_state_update = False
    joint: Tensor
    image_best: Tensor
    oracle: Tensor

    def __init__(self, num_labels: int, thresholds: Sequence[float] | np.ndarray | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.thresholds = np.arange(101) / 100 if thresholds is None else np.array(thresholds, np.float64)
        self._thresholds_float32 = self.thresholds.astype(np.float32)
        ascending = self.thresholds.ndim == 1 and self.thresholds.size and (np.diff(self._thresholds_float32) > 0).all()
        if not ascending:
            raise ValueError(f"thresholds must be a list of ascending numbers that differ in float32, not {thresholds}")
        t = len(self.thresholds)
        joint = torch.zeros(num_labels, num_labels, t + 1, dtype=torch.int64)  # target, best class, thresholds below
        self.add_state("joint", joint, dist_reduce_fx="sum")
        self.add_state("image_best", torch.zeros(t, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("oracle", torch.zeros(num_labels, num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Array, classes: Sequence[int] | Array, target: Array) -> None:
        """Add one image.

        Args:
            maps: [K, H, W] float, activations of the tagged classes; K may be 0.
            classes: [K] int, ids of the classes, in 1..num_labels - 1.
            target: [H, W] integers, 0 background, class ids, 255 ignored.

        Raises:
            ValueError: the shapes do not fit, a class or a target value is out of range, or the maps contain nan.
        """
        ids, labels = _to_int64_ids(classes), as_labels(_as_array(target), "target")
        joint = joint_histogram(_as_array(maps), ids, labels, self.num_labels, self._thresholds_float32)
        # One class at a time: indexing with a list would start PyTorch's threads, which wait for busy cores (16 ms).
        for column, counts in zip(ids if len(ids) else [0], joint.swapaxes(0, 1), strict=True):
            self.joint[:, column] += torch.from_numpy(counts).to(self.joint.device)

        above, target_counts = above_thresholds(joint), joint.sum(axis=(1, 2))
        miou = image_miou(above, ids, target_counts)
        best = best_index(miou)
        if np.nanmin(miou, initial=np.inf) < np.nanmax(miou, initial=-np.inf):
            self.image_best[best] += 1
        confusion = confusion_at_threshold(above[:, :, best], ids, target_counts)
        self.oracle += torch.from_numpy(confusion).to(self.oracle.device)

    def compute(self) -> ThresholdReport:
        """Compute the report over all images and processes so far.

        Returns:
            The report.

        Raises:
            ValueError: no image had a pixel with a ground-truth label.
        """
        return threshold_report(
            self.joint.cpu().numpy(),
            self.thresholds.copy(),
            self.image_best.cpu().numpy().copy(),  # later updates change the state
            self.oracle.cpu().numpy(),
        )


class ActivationStatsMetric(Metric):
    """Means of `activation_stats` over all pairs of an image and a tagged class.

    The imbalance is averaged with the harmonic mean, the other statistics with the arithmetic mean. A pair does not
    count for a statistic that is nan.

    Args:
        **kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = ActivationStatsMetric()
        >>> metric.update(maps=np.array([[[0.75, 0.75, 0.25]]]), classes=[1], target=np.array([[1, 1, 0]]))
        >>> metric.compute()
        ActivationStats(imbalance=1.0, variation=0.0, gap=0.5)
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Array, classes: Sequence[int] | Array, target: Array) -> None:
        """Add one image.

        Args:
            maps: [K, H, W] float, activations of the tagged classes; K may be 0.
            classes: [K] int, ids of the classes, from 1.
            target: [H, W] integers, 0 background, class ids, 255 ignored.

        Raises:
            ValueError: the shapes do not fit.
        """
        stats = activation_stats(_as_array(maps), _to_int64_ids(classes), _as_array(target))
        values = np.array(stats, np.float64).reshape(-1, 3)
        values[:, 0] = 1 / values[:, 0]
        self.total += torch.from_numpy(np.nansum(_round(values), axis=0)).to(self.total.device)
        self.pairs += torch.from_numpy(np.sum(~np.isnan(values), axis=0)).to(self.pairs.device)

    def compute(self) -> ActivationStats:
        """Compute the means over all images and processes so far.

        Returns:
            The means; nan where nothing was measured.
        """
        inverse_imbalance, variation, gap = (self.total / self.pairs).tolist()
        imbalance = 1 / inverse_imbalance if inverse_imbalance else float("inf")
        return ActivationStats(imbalance, variation, gap)


class ActivationHistogram(Metric):
    """Histogram of the largest activation of each pixel over the tagged classes, see `activation_histogram`.

    Args:
        **kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> histogram = ActivationHistogram()
        >>> histogram.update(np.array([[[0.25, 0.25, 0.75]]]))
        >>> histogram.otsu()
        0.25
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(BINS + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Array) -> None:
        """Add one image.

        Args:
            maps: [K, H, W] float in 0..1, at any size; values outside are clipped, K may be 0.

        Raises:
            ValueError: the maps contain nan.
        """
        self.counts += torch.from_numpy(activation_histogram(_as_array(maps))).to(self.counts.device)

    def compute(self) -> np.ndarray:
        """Return the histogram over all images and processes so far, [257] int64."""
        return self.counts.cpu().numpy().copy()

    def otsu(self) -> float:
        """Return Otsu's threshold of the histogram, in 0..1, see `otsu_threshold`.

        Raises:
            ValueError: the histogram is empty.
        """
        return otsu_threshold(self.compute(), np.arange(BINS + 1) / BINS)


def _round(values: np.ndarray) -> np.ndarray:
    """Round values so that their sums are exact."""
    return np.round(values / _FRACTION) * _FRACTION


def _as_array(values: Array) -> np.ndarray:
    """Return an array, or a tensor on any device, as an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def _to_int64_ids(classes: Sequence[int] | Array) -> np.ndarray:
    """Return class ids as [K] int64."""
    return np.asarray(_as_array(classes) if isinstance(classes, Tensor) else classes, np.int64)
