"""Results of the metrics, and their conversion to and from JSON without loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

JsonNumber = float | str | None
"""A float in JSON, which has neither nan (None) nor infinity ("Infinity", "-Infinity")."""


def json_number(value: float) -> JsonNumber:
    """Return a float as a value that strict JSON can store.

    Args:
        value: any float.

    Returns:
        The float; None for nan; "Infinity" or "-Infinity" for an infinite one.

    Example:
        >>> json_number(0.5), json_number(float("nan")), json_number(float("inf"))
        (0.5, None, 'Infinity')
    """
    if np.isnan(value):
        return None
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)


def number_from_json(value: JsonNumber) -> float:
    """Return the float that `json_number` converted.

    Args:
        value: a value that `json_number` returned.

    Returns:
        The float; nan for None.

    Example:
        >>> number_from_json(0.5), number_from_json(None), number_from_json("Infinity")
        (0.5, nan, inf)
    """
    if isinstance(value, bool):
        raise TypeError("a truth value is not a number")
    return float("nan") if value is None else float(value)


class SegmentationReport(NamedTuple):
    """Scores of predicted label maps against ground truth.

    `num_labels` counts the background. Fractions and scores are in 0..1, and nan where there is nothing to measure.

    Attributes:
        confusion: [num_labels, num_labels + 1] int64, see `tagmask.measure.confusion_matrix`.
        iou: [num_labels] float64, intersection over union of each label.
        miou: mean IoU over the labels that occur in the predictions or in the target.
        pixel_accuracy: fraction of the pixels with a target that are predicted correctly. An ignored prediction is
            not correct.
        ignored: fraction of the pixels with a target whose prediction is ignored (255).
        boundary_f: mean over the images of the boundary F-score, each averaged over its labels first.
        boundary_f_class: [num_labels] float64, boundary F-score of each label, averaged over the images in which
            the label has a boundary.

    Example:
        >>> from tagmask.measure import segmentation_report
        >>> confusion = np.array([[6, 2, 0], [0, 3, 1]])
        >>> report = segmentation_report(confusion, boundary_f=0.9, boundary_f_class=np.array([0.95, 0.85]))
        >>> report.to_json(["cat"])["iou"]
        [{'class': 'background', 'iou': 0.75}, {'class': 'cat', 'iou': 0.5}]
        >>> SegmentationReport.from_json(report.to_json(["cat"])).miou
        0.625
    """

    confusion: np.ndarray
    iou: np.ndarray
    miou: float
    pixel_accuracy: float
    ignored: float
    boundary_f: float
    boundary_f_class: np.ndarray

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the report as a dict that strict JSON can store.

        Args:
            classes: names of the classes, without background.

        Returns:
            The fields of the report. Values per label are lists of dicts with the name of the label.

        Raises:
            ValueError: the number of names is not the number of classes of the report.
        """
        labels = _with_background_name(classes, len(self.iou))
        return {
            "miou": json_number(self.miou),
            "pixel_accuracy": json_number(self.pixel_accuracy),
            "ignored": json_number(self.ignored),
            "boundary_f": json_number(self.boundary_f),
            "iou": [{"class": label, "iou": json_number(x)} for label, x in zip(labels, self.iou, strict=True)],
            "boundary_f_class": [
                {"class": label, "f": json_number(x)} for label, x in zip(labels, self.boundary_f_class, strict=True)
            ],
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `to_json` converted.

        Args:
            data: a dict that `to_json` returned.

        Returns:
            The report, without loss.
        """
        report = cls(
            confusion=np.array(data["confusion"], np.int64),
            iou=_array_from_json(entry["iou"] for entry in data["iou"]),
            miou=number_from_json(data["miou"]),
            pixel_accuracy=number_from_json(data["pixel_accuracy"]),
            ignored=number_from_json(data["ignored"]),
            boundary_f=number_from_json(data["boundary_f"]),
            boundary_f_class=_array_from_json(entry["f"] for entry in data["boundary_f_class"]),
        )
        num_labels = len(report.iou)
        _check_shape(report.confusion, num_labels, num_labels + 1)
        _check_shape(report.boundary_f_class, num_labels)
        return report


class ThresholdReport(NamedTuple):
    """mIoU of response maps as a function of the threshold that separates the classes from background.

    T is the number of thresholds; `num_labels` counts the background. All IoU are in 0..1. Where several thresholds
    are equally good, the best one is the middle one of them. Lee, Kim and Shim (AMN, CVPR 2022), Section 3, show why
    one global threshold limits the masks.

    Attributes:
        thresholds: [T] float64, ascending.
        iou: [T, num_labels] float64, nan for a label that occurs neither in the predictions nor in the target.
        miou: [T] float64, mean IoU over the labels that occur in the predictions or in the target.
        best_threshold: the best global threshold.
        best_miou: mIoU at `best_threshold`.
        interval: lowest and highest threshold around `best_threshold` between which mIoU stays within two points of
            `best_miou`.
        area: area under the mIoU curve, divided by the range of the thresholds.
        image_best: [T] int64, number of images that have their own best mIoU at each threshold. Images for which
            every threshold is equally good (no tag, or maps of zeros) are not counted.
        image_percentiles: 10th, 50th and 90th percentile of the images' best thresholds; nan without images.
        oracle_miou: mIoU if every image has its own best threshold.
        class_best: [num_labels] float64, threshold of the best IoU of each label; nan for a label that does not
            occur in the target.
        class_miou: mIoU if every class has its own best threshold.

    Example:
        >>> from tagmask.measure.metrics import ThresholdCurveMetric
        >>> metric = ThresholdCurveMetric(num_labels=2, thresholds=[0.2, 0.5, 0.8])
        >>> metric.update(maps=np.array([[[0.9, 0.4, 0.1]]]), classes=[1], target=np.array([[1, 0, 0]], np.uint8))
        >>> report = metric.compute()
        >>> report.best_threshold, report.interval
        (0.8, (0.5, 0.8))
        >>> ThresholdReport.from_json(report.to_json(["cat"])).best_threshold
        0.8
    """

    thresholds: np.ndarray
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
        """Width of `interval`: how robust the maps are to the choice of the threshold."""
        return self.interval[1] - self.interval[0]

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the report as a dict that strict JSON can store.

        Args:
            classes: names of the classes, without background.

        Returns:
            The fields of the report and `width`. The values per label are in "classes", a list of dicts with the name
            of the label.

        Raises:
            ValueError: the number of names is not the number of classes of the report.
        """
        labels = _with_background_name(classes, len(self.class_best))
        return {
            "best_threshold": json_number(self.best_threshold),
            "best_miou": json_number(self.best_miou),
            "width": json_number(self.width),
            "area": json_number(self.area),
            "oracle_miou": json_number(self.oracle_miou),
            "class_miou": json_number(self.class_miou),
            "interval": [json_number(x) for x in self.interval],
            "image_percentiles": [json_number(x) for x in self.image_percentiles],
            "image_best": self.image_best.tolist(),
            "thresholds": [json_number(x) for x in self.thresholds],
            "miou": [json_number(x) for x in self.miou],
            "classes": [
                {"class": label, "best_threshold": json_number(best), "iou": [json_number(x) for x in curve]}
                for label, best, curve in zip(labels, self.class_best, self.iou.T, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `to_json` converted.

        Args:
            data: a dict that `to_json` returned.

        Returns:
            The report, without loss.
        """
        low, high = map(number_from_json, data["interval"])
        percentile_10, percentile_50, percentile_90 = map(number_from_json, data["image_percentiles"])
        report = cls(
            thresholds=_array_from_json(data["thresholds"]),
            iou=np.stack([_array_from_json(entry["iou"]) for entry in data["classes"]], axis=1),
            miou=_array_from_json(data["miou"]),
            best_threshold=number_from_json(data["best_threshold"]),
            best_miou=number_from_json(data["best_miou"]),
            interval=(low, high),
            area=number_from_json(data["area"]),
            image_best=np.array(data["image_best"], np.int64),
            image_percentiles=(percentile_10, percentile_50, percentile_90),
            oracle_miou=number_from_json(data["oracle_miou"]),
            class_best=_array_from_json(entry["best_threshold"] for entry in data["classes"]),
            class_miou=number_from_json(data["class_miou"]),
        )
        num_thresholds = len(report.thresholds)
        if num_thresholds == 0 or not np.isfinite(report.thresholds).all():
            raise ValueError("the thresholds are not numbers")
        _check_shape(report.iou, num_thresholds, len(report.class_best))
        _check_shape(report.miou, num_thresholds)
        _check_shape(report.image_best, num_thresholds)
        return report


class ActivationStats(NamedTuple):
    """Statistics of the activation inside and outside of an object: of one class of an image, or means.

    They quantify the imbalanced activation that Lee, Kim and Shim (AMN, CVPR 2022), Section 3, describe. A value is
    nan where there is nothing to measure.

    Attributes:
        imbalance: 90th percentile of the activation inside the ground-truth region of the class, divided by the 10th
            percentile. It is 1 if the activation is uniform, and inf if the 10th percentile is 0. Means are harmonic
            means, so that one infinite value does not make the mean infinite. It is nan if the map is 0 in the
            whole region.
        variation: standard deviation of the activation inside the region, divided by its mean. It is 0 if the
            activation is uniform, and nan if the map is 0 in the whole region.
        gap: mean activation inside the region minus mean activation of the same map on the ground-truth background.
            It is nan if the image has no background.

    Example:
        >>> stats = ActivationStats(imbalance=float("inf"), variation=0.5, gap=0.25)
        >>> stats.to_json()
        {'imbalance': 'Infinity', 'variation': 0.5, 'gap': 0.25}
        >>> ActivationStats.from_json(stats.to_json()) == stats
        True
    """

    imbalance: float
    variation: float
    gap: float

    def to_json(self) -> dict[str, JsonNumber]:
        """Return the statistics as a dict that strict JSON can store."""
        return {name: json_number(value) for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the statistics that `to_json` converted; further keys of `data` are ignored."""
        return cls(*(number_from_json(data[name]) for name in cls._fields))


def _with_background_name(classes: Sequence[str], num_labels: int) -> list[str]:
    if len(classes) != num_labels - 1:
        raise ValueError(f"got {len(classes)} class names for {num_labels - 1} classes; give one name per class")
    return ["background", *classes]


def _check_shape(array: np.ndarray, *shape: int) -> None:
    if array.shape != shape:
        raise ValueError(f"an array is {list(array.shape)}, not {list(shape)}")


def _array_from_json(values: Iterable[JsonNumber]) -> np.ndarray:
    return np.array([number_from_json(value) for value in values], np.float64)
