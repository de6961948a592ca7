"""A global threshold without truth: Otsu's criterion on the activations of all images pooled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from tagmask.measure.validation import as_array

BINS = 256  # a power of two: the bins' edges are exact in float16 and float32


def otsu_threshold(histogram: np.ndarray, thresholds: np.ndarray) -> float:
    """The threshold that splits a histogram into two classes of the largest variance between them.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 1979, eq. 18.

    Args:
        histogram: [B] counts.
        thresholds: [B] ascending and even, a value for each bin: its centre or its upper edge.

    Returns:
        The value of the last bin of the lower class; of equally good splits the lowest. If all counts are in
        one bin there is nothing to split, and that bin's value is returned: nothing is above it.

    Raises:
        ValueError: the lengths differ, or the histogram is empty.
    """
    counts, values = np.asarray(histogram, np.float64), np.asarray(thresholds, np.float64)
    if counts.shape != values.shape or counts.ndim != 1:
        raise ValueError(f"histogram is {list(counts.shape)}, thresholds {list(values.shape)}; both must be [B]")
    filled = np.flatnonzero(counts)
    if not len(filled):
        raise ValueError("there is no threshold in an empty histogram: no activation was seen")
    if len(filled) == 1:
        return float(values[filled[0]])
    low, weighted = np.cumsum(counts), np.cumsum(counts * values)
    high = low[-1] - low
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = weighted / low - (weighted[-1] - weighted) / high
        between = np.nan_to_num(low * high * difference**2, posinf=0.0)
    return float(values[np.argmax(between)])


class ActivationHistogram(Metric):
    """Histogram of each pixel's largest activation over the tagged classes, summed over images and processes.

    Bin 0 holds activations of 0, bin i those in ((i − 1) / 256, i / 256], so that `i / 256` as a threshold
    (a class where the activation is above it) splits exactly there. Images without a tag add nothing.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(BINS + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: np.ndarray | Tensor) -> None:
        """Add one image's `maps` [K, h, w] float in 0..1 (beyond: clipped), at any size; K may be 0.

        Raises:
            ValueError: the maps contain nan.
        """
        activations = np.asarray(as_array(maps), np.float32)
        if not activations.size:
            return
        best = activations.max(axis=0)
        if np.isnan(best).any():
            raise ValueError("the maps contain nan")
        bins = np.ceil(np.clip(best, 0, 1) * BINS).astype(np.int64)
        counts = np.bincount(bins.ravel(), minlength=BINS + 1)
        self.counts += torch.from_numpy(counts).to(self.counts.device)

    def compute(self) -> np.ndarray:
        """[257] int64, the histogram over all images and processes so far."""
        return self.counts.cpu().numpy().copy()

    def otsu(self) -> float:
        """Otsu's threshold of the histogram, see `otsu_threshold`."""
        return otsu_threshold(self.compute(), np.arange(BINS + 1) / BINS)
