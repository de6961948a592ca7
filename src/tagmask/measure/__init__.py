"""Figures: arrays in, numbers out, and torchmetrics classes that sum them over images and processes."""

from tagmask.measure.activations import ActivationFigures, MeanActivationFigures, activation_figures
from tagmask.measure.boundary_f import boundary_counts, boundary_f
from tagmask.measure.confusion import (
    SegmentationReport,
    SegmentationScores,
    confusion_matrix,
    iou,
    mean_iou,
)
from tagmask.measure.otsu import ActivationHistogram, otsu_threshold
from tagmask.measure.thresholds import ThresholdCurve, ThresholdReport

__all__ = [
    "ActivationFigures",
    "ActivationHistogram",
    "MeanActivationFigures",
    "SegmentationReport",
    "SegmentationScores",
    "ThresholdCurve",
    "ThresholdReport",
    "activation_figures",
    "boundary_counts",
    "boundary_f",
    "confusion_matrix",
    "iou",
    "mean_iou",
    "otsu_threshold",
]
