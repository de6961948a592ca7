"""Threshold analysis of response maps: every global threshold's confusion matrix in one pass (AMN, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from tagmask.measure.confusion import iou, mean_iou
from tagmask.measure.joint_histogram import above_thresholds, confusion_of, image_miou, joint_histogram
from tagmask.measure.validation import as_array, as_labels, number

WITHIN = 0.02  # the robustness interval: mIoU at most two points below its maximum


class ThresholdReport(NamedTuple):
    """What `ThresholdCurve` found. T thresholds, n classes; all IoU are in 0..1.

    Attributes:
        thresholds: [T] float64.
        confusion: [T, n + 1, n + 1] int64, rows truth, columns prediction, background first.
        iou: [T, n + 1] float64, nan for a class that is neither in truth nor in prediction.
        miou: [T] float64, mean over the classes in truth or prediction.
        best_threshold: the best global threshold (here and below the middle one, if several are as good).
        best_miou: mIoU at it.
        interval: (low, high), the thresholds around the best one up to which mIoU stays within two points.
        area: area under the mIoU curve over the range of thresholds, that is its mean.
        image_best: [T] int64, how many images have their own best mIoU at each threshold. Images for which
            every threshold is as good (no tag, a map of zeros) are in none.
        image_percentiles: the images' best thresholds, 10th, 50th and 90th percentile; nan without images.
        oracle_miou: mIoU of the sum of the images' confusion matrices, each at its own best threshold.
        class_best: [n + 1] float64, the threshold of the best IoU of each class; nan for one not in the truth.
        class_miou: mIoU if each class is cut at its own best threshold (which leaves the others as they are,
            but for the background).
    """

    thresholds: np.ndarray
    confusion: np.ndarray
    iou: np.ndarray
    miou: np.ndarray
    best_threshold: float
    best_miou: float
    interval: tuple[float, float]
    area: float
    image_best: np.ndarray
    image_percentiles: tuple[float, float, float]
    oracle_miou: float
    class_best: np.ndarray
    class_miou: float

    @property
    def width(self) -> float:
        """Width of `interval`: the robustness number."""
        return self.interval[1] - self.interval[0]

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """As a dict that `json.dumps` takes (nan becomes None), without the matrices; `classes` names 1..n."""
        if len(classes) != len(self.class_best) - 1:
            raise ValueError(f"{len(classes)} class names for {len(self.class_best) - 1} classes")
        names = ["background", *classes]
        single = ("best_threshold", "best_miou", "width", "area", "oracle_miou", "class_miou")
        return {
            **{name: number(getattr(self, name)) for name in single},
            "interval": list(self.interval),
            "image_percentiles": [number(x) for x in self.image_percentiles],
            "image_best": self.image_best.tolist(),
            "thresholds": self.thresholds.tolist(),
            "miou": [number(x) for x in self.miou],
            "classes": [
                {"class": name, "best_threshold": number(best), "iou": [number(x) for x in curve]}
                for name, best, curve in zip(names, self.class_best, self.iou.T, strict=True)
            ],
        }


class ThresholdCurve(Metric):
    """The mIoU of response maps as a function of one global threshold, exact, in one pass over the images.

    A pixel is background unless its largest activation is above the threshold; of equal maps the first wins:
    the argmax over [threshold, maps...]. Compared as float32, whatever the maps come in.
    Of each pixel only the truth, the best class and the interval between thresholds that holds its activation
    are counted; the cumulative sum over the intervals is the confusion matrix at every threshold.
    Memory does not grow with the number of images: 8 (n + 1)² (T + 1) bytes.
    """

    is_differentiable = False
    full_state_update = False
    joint: Tensor
    image_best: Tensor
    oracle: Tensor

    def __init__(self, num_classes: int, thresholds: Sequence[float] | np.ndarray | None = None, **kwargs: Any) -> None:
        """`thresholds`: [T] ascending, 0.00, 0.01, ... 1.00 by default. `n_classes`: n, without background.

        Raises:
            ValueError: thresholds that are not ascending, or too close for float32.
        """
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.thresholds = np.arange(101) / 100 if thresholds is None else np.array(thresholds, np.float64)
        self._cuts = self.thresholds.astype(np.float32)
        if self._cuts.ndim != 1 or not self._cuts.size or not (np.diff(self._cuts) > 0).all():
            raise ValueError(f"thresholds must be a list of ascending numbers, not {thresholds}")
        n, t = num_classes, len(self.thresholds)
        zeros = torch.zeros(n + 1, n + 1, t + 1, dtype=torch.int64)  # truth, best class, thresholds below
        self.add_state("joint", zeros, dist_reduce_fx="sum")
        self.add_state("image_best", torch.zeros(t, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("oracle", torch.zeros(n + 1, n + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        maps: np.ndarray | Tensor,
        classes: Sequence[int] | np.ndarray | Tensor,
        ground_truth: np.ndarray | Tensor,
    ) -> None:
        """Add one image.

        Args:
            maps: [K, H, W] float, activations of the tagged classes; K may be 0.
            classes: [K] int, their ids 1..n.
            truth: [H, W] uint8, 0 background, 1..n classes; 255 is left out.

        Raises:
            ValueError: shapes that do not fit, a class or a truth value out of range, a map with nan.
        """
        ids = np.asarray(as_array(classes) if isinstance(classes, Tensor) else classes, np.int64)
        joint = joint_histogram(as_array(maps), ids, as_labels(ground_truth, "truth"), self.num_classes, self._cuts)
        # Class by class: indexing with a list would start torch's threads, which wait for busy cores (16 ms).
        for column, counted in zip(ids if len(ids) else [0], joint.swapaxes(0, 1), strict=True):
            self.joint[:, column] += torch.from_numpy(counted).to(self.joint.device)

        above, counts = above_thresholds(joint), joint.sum(axis=(1, 2))
        curve = image_miou(above, ids, counts)
        best = _best(curve)
        if np.nanmin(curve, initial=np.inf) < np.nanmax(curve, initial=-np.inf):
            self.image_best[best] += 1
        confusion = confusion_of(above[:, :, best], ids, counts)
        self.oracle += torch.from_numpy(confusion).to(self.oracle.device)

    def compute(self) -> ThresholdReport:
        """The figures over all images and processes so far.

        Raises:
            ValueError: no pixel with known truth was seen.
        """
        joint, oracle = self.joint.cpu().numpy(), self.oracle.cpu().numpy()
        image_best = self.image_best.cpu().numpy().copy()  # not the state, which goes on changing
        counts = joint.sum(axis=(1, 2))
        if not counts.any():
            raise ValueError("there is no curve: no pixel with a known truth was seen")
        above = above_thresholds(joint)[:, 1:]
        ids = np.arange(1, self.num_classes + 1)
        confusion = np.stack([confusion_of(above[:, :, t], ids, counts) for t in range(len(self.thresholds))])
        scores = iou(confusion)
        miou = mean_iou(scores)
        best = _best(miou)
        in_truth = counts > 0
        class_best = np.where(in_truth, [_best(curve) for curve in scores.T], best)
        own = above[:, np.arange(self.num_classes), class_best[1:]]
        return ThresholdReport(
            self.thresholds.copy(),
            confusion,
            scores,
            miou,
            best_threshold=float(self.thresholds[best]),
            best_miou=float(miou[best]),
            interval=_interval(self.thresholds, miou, best),
            area=_area(self.thresholds, miou),
            image_best=image_best,
            image_percentiles=_percentiles(self.thresholds, image_best),
            oracle_miou=float(mean_iou(iou(oracle))),
            class_best=np.where(in_truth, self.thresholds[class_best], np.nan),
            class_miou=float(mean_iou(iou(confusion_of(own, ids, counts)))),
        )


def _best(curve: np.ndarray) -> int:
    """Index of the largest value, the middle one of equals; 0 if all are nan."""
    equals = np.flatnonzero(curve == np.nanmax(curve, initial=-np.inf))
    return int(equals[len(equals) // 2]) if len(equals) else 0


def _interval(thresholds: np.ndarray, miou: np.ndarray, best: int) -> tuple[float, float]:
    """The first and last threshold of the run around `best` in which mIoU stays within two points."""
    outside = np.flatnonzero(miou < miou[best] - WITHIN)
    low = outside[outside < best].max(initial=-1) + 1
    high = outside[outside > best].min(initial=len(miou)) - 1
    return float(thresholds[low]), float(thresholds[high])


def _area(thresholds: np.ndarray, miou: np.ndarray) -> float:
    """Area under the curve by trapezoids, over the range of thresholds."""
    if len(thresholds) == 1:
        return float(miou[0])
    steps = np.diff(thresholds)
    return float((steps * (miou[1:] + miou[:-1]) / 2).sum() / steps.sum())


def _percentiles(thresholds: np.ndarray, image_best: np.ndarray) -> tuple[float, float, float]:
    """10th, 50th, 90th percentile of a histogram over thresholds: the lowest with so many at or below it."""
    below = np.cumsum(image_best)
    if not below[-1]:
        return float("nan"), float("nan"), float("nan")
    low, middle, high = (float(thresholds[np.searchsorted(below, p * below[-1] / 100)]) for p in (10, 50, 90))
    return low, middle, high
