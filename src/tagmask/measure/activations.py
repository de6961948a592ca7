"""How even the activation is inside an object, and how far above the background (AMN, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from tagmask.measure.validation import as_array, check_maps


class ActivationFigures(NamedTuple):
    """Figures of each tagged class of an image ([K] float64), or their means over images (floats).

    nan: nothing to measure. The class is not in the truth; for the gap, there is no background; for the others,
    the map is zero in the whole region.

    Attributes:
        imbalance: 90th over 10th percentile of the class's activation inside its true region, 1 if it is
            even, inf if over a tenth of the region is zero. Means are harmonic, so one inf does not fill them.
        variation: standard deviation over mean of the activation inside the true region, 0 if it is even.
        gap: mean activation inside the true region − mean activation of the same map on true background.
    """

    imbalance: Any
    variation: Any
    gap: Any


def activation_figures(maps: np.ndarray, classes: np.ndarray, ground_truth: np.ndarray) -> ActivationFigures:
    """Imbalance, coefficient of variation and gap of each of one image's maps.

    Args:
        maps: [K, H, W] float, activations of the tagged classes; K may be 0.
        classes: [K] int, their ids 1..n.
        truth: [H, W] uint8, 0 background, 1..n classes, 255 left out.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_maps(maps, classes, ground_truth)
    figures = np.full((3, len(maps)), np.nan)
    background = ground_truth == 0
    for k, c in enumerate(classes):
        inside = maps[k][ground_truth == c].astype(np.float64)
        if inside.any():
            low, high = np.percentile(inside, (10, 90))
            # Both zero: a region with almost no activation is as uneven as can be.
            figures[0, k] = high / low if low > 0 else np.inf
            figures[1, k] = inside.std() / inside.mean()
        if inside.size and background.any():
            figures[2, k] = inside.mean() - maps[k][background].mean(dtype=np.float64)
    return ActivationFigures(*figures)


class MeanActivationFigures(Metric):
    """Means of `activation_figures` over all images' classes, summed over processes.

    `compute()` gives an `ActivationFigures` of floats: the harmonic mean of the imbalance, the plain means of
    the others. Pairs of image and class with nothing to measure are left out.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        maps: np.ndarray | Tensor,
        classes: Sequence[int] | np.ndarray | Tensor,
        ground_truth: np.ndarray | Tensor,
    ) -> None:
        """Add one image; arguments as `activation_figures`."""
        ids = np.asarray(as_array(classes) if isinstance(classes, Tensor) else classes, np.int64)
        figures = activation_figures(as_array(maps), ids, as_array(ground_truth))
        values = np.stack([1 / figures.imbalance, figures.variation, figures.gap])
        self.total += torch.from_numpy(np.nansum(values, axis=1)).to(self.total.device)
        self.pairs += torch.from_numpy(np.sum(~np.isnan(values), axis=1)).to(self.pairs.device)

    def compute(self) -> ActivationFigures:
        """The means over all images and processes so far; nan where nothing was measured."""
        evenness, variation, gap = (self.total / self.pairs).tolist()
        imbalance = 1 / evenness if evenness else float("inf")
        return ActivationFigures(imbalance, variation, gap)
