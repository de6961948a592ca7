"""Figures of label maps against the truth, all from one confusion matrix over the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from tagmask.label_map import IGNORE_INDEX
from tagmask.measure.boundary_f import boundary_counts, boundary_f
from tagmask.measure.validation import as_labels, number


def confusion_matrix(ground_truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each (truth, prediction) pair.

    A prediction of 255 (unsure) is a wrong prediction of no class: it stands in the last column, so it
    lowers the IoU of the true class and adds to no other class.

    Args:
        truth: [H, W] uint8, 0 background, 1..n classes, 255 left out.
        prediction: [H, W] uint8, the same values, 255 unsure.
        n_classes: n, without the background; at most 254.

    Returns:
        [n + 1, n + 2] int64: rows truth 0..n, columns prediction 0..n and then unsure.

    Raises:
        ValueError: the shapes differ, or a value is neither in 0..n nor 255.
    """
    ground_truth, prediction = as_labels(ground_truth, "truth"), as_labels(prediction, "prediction")
    if ground_truth.shape != prediction.shape:
        raise ValueError(f"truth is {list(ground_truth.shape)}, prediction {list(prediction.shape)}")
    # Counting all 256 × 256 pairs costs no more than counting the valid ones, and shows the others.
    pairs = ground_truth.astype(np.uint16) << 8 | prediction
    counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    for name, present in (("truth", counts.sum(axis=1) > 0), ("prediction", counts.sum(axis=0) > 0)):
        wrong = np.flatnonzero(present[num_classes + 1 : IGNORE_INDEX]) + num_classes + 1
        if len(wrong):
            raise ValueError(f"{name} has the value {wrong[0]}; valid are 0..{num_classes} and {IGNORE_INDEX}")
    return counts[: num_classes + 1][:, [*range(num_classes + 1), IGNORE_INDEX]]


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        confusion: [..., n + 1, n + 1 or n + 2], with or without the unsure column.

    Returns:
        [..., n + 1] float64 in 0..1; nan for a class that is neither in the truth nor in the prediction.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted = confusion.sum(axis=-2)[..., : hits.shape[-1]]
    with np.errstate(invalid="ignore"):
        return hits / (confusion.sum(axis=-1) + predicted - hits)


def mean_iou(iou: np.ndarray) -> np.ndarray:
    """Mean of `iou` [..., n + 1] over the classes in truth or prediction (those not nan): [...] float64."""
    with np.errstate(invalid="ignore"):
        return np.nansum(iou, axis=-1) / np.sum(~np.isnan(iou), axis=-1)


class SegmentationReport(NamedTuple):
    """What `SegmentationScores` found; shares and scores are in 0..1, nan where there is nothing to measure.

    Attributes:
        confusion: [n + 1, n + 2] int64, see `confusion_matrix`.
        iou: [n + 1] float64.
        miou: mean over the classes in truth or prediction.
        pixel_accuracy: right pixels of those whose truth is known; an unsure one is not right.
        unsure: share of the pixels with known truth that are predicted unsure.
        boundary_f: mean over the images of `boundary.boundary_f`'s mean over classes.
        boundary_f_class: [n + 1] float64, each class's mean over the images where it has an outline.
    """

    confusion: np.ndarray
    iou: np.ndarray
    miou: float
    pixel_accuracy: float
    unsure: float
    boundary_f: float
    boundary_f_class: np.ndarray

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """As a dict that `json.dumps` takes (nan becomes None); `classes` names 1..n."""
        if len(classes) != len(self.iou) - 1:
            raise ValueError(f"{len(classes)} class names for {len(self.iou) - 1} classes")
        names = ["background", *classes]
        single = ("miou", "pixel_accuracy", "unsure", "boundary_f")
        return {
            **{name: number(getattr(self, name)) for name in single},
            "iou": [{"class": name, "iou": number(x)} for name, x in zip(names, self.iou, strict=True)],
            "boundary_f_class": [
                {"class": name, "f": number(x)} for name, x in zip(names, self.boundary_f_class, strict=True)
            ],
            "confusion": self.confusion.tolist(),
        }


class SegmentationScores(Metric):
    """`confusion_matrix` and the boundary F-score summed over images and processes.

    Its state does not grow with the number of images. `boundary=False` leaves the boundary F-score out (it is
    nan then): it takes 35 ms of an image of 375×500, the confusion matrix 0.4 ms.
    """

    is_differentiable = False
    full_state_update = False
    confusion: Tensor
    boundary_sum: Tensor
    boundary_images: Tensor

    def __init__(self, num_classes: int, boundary: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.boundary = boundary
        zeros = torch.zeros(num_classes + 1, num_classes + 2, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")
        # One entry a class, and last the mean over the classes of an image.
        self.add_state("boundary_sum", torch.zeros(num_classes + 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("boundary_images", torch.zeros(num_classes + 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ground_truth: np.ndarray | Tensor, prediction: np.ndarray | Tensor) -> None:
        """Add one image: `truth` and `prediction` [H, W], see `confusion_matrix`."""
        ground_truth, prediction = as_labels(ground_truth, "truth"), as_labels(prediction, "prediction")
        counts = confusion_matrix(ground_truth, prediction, self.num_classes)
        self.confusion += torch.from_numpy(counts).to(self.confusion.device)
        if self.boundary:
            scores = boundary_f(boundary_counts(ground_truth, prediction, self.num_classes))
            scores = np.append(scores, mean_iou(scores))
            found = torch.from_numpy(~np.isnan(scores))
            self.boundary_sum += torch.from_numpy(np.nan_to_num(scores)).to(self.boundary_sum.device)
            self.boundary_images += found.to(self.boundary_images.device)

    def compute(self) -> SegmentationReport:
        """The figures over all images and processes so far."""
        confusion = self.confusion.cpu().numpy().copy()  # not the state, which goes on changing
        scores = iou(confusion)
        boundary = (self.boundary_sum / self.boundary_images).cpu().numpy()
        with np.errstate(invalid="ignore"):
            accuracy = np.trace(confusion) / confusion.sum()
            unsure = confusion[:, -1].sum() / confusion.sum()
        return SegmentationReport(
            confusion,
            scores,
            miou=float(mean_iou(scores)),
            pixel_accuracy=float(accuracy),
            unsure=float(unsure),
            boundary_f=float(boundary[-1]),
            boundary_f_class=boundary[:-1],
        )
