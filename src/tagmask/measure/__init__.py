"""Measures of response maps and label maps.

The functions take and return NumPy arrays, and need neither PyTorch nor torchmetrics. `tagmask.measure.metrics` has
torchmetrics classes that sum their results over images and processes.
"""

from tagmask.measure.activations import activation_stats
from tagmask.measure.boundary import boundary_counts, boundary_f
from tagmask.measure.confusion import confusion_matrix, iou, mean_iou, segmentation_report
from tagmask.measure.otsu import activation_histogram, otsu_threshold
from tagmask.measure.reports import (
    ActivationStats,
    SegmentationReport,
    ThresholdReport,
    json_number,
    number_from_json,
)
from tagmask.measure.thresholds import confusion_at_thresholds, threshold_report

__all__ = [
    "ActivationStats",
    "SegmentationReport",
    "ThresholdReport",
    "activation_histogram",
    "activation_stats",
    "boundary_counts",
    "boundary_f",
    "confusion_at_thresholds",
    "confusion_matrix",
    "iou",
    "json_number",
    "mean_iou",
    "number_from_json",
    "otsu_threshold",
    "segmentation_report",
    "threshold_report",
]
