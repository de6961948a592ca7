"""The dense CRF's parameters as a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tagmask.refine.dense_crf import dense_crf, needs_compiling, unary_from_labels


class CrfSettings(BaseModel):
    """Mean field steps, and the two Gaussian kernels; the defaults are those of the seeds' cleaning in IRN's code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(10, ge=0, description="of mean field")
    gaussian_sxy: float = Field(3, gt=0, description="pixels")
    gaussian_weight: float = 3
    bilateral_sxy: float = Field(50, gt=0, description="pixels")
    bilateral_srgb: float = Field(5, gt=0, description="grey levels of 255")
    bilateral_weight: float = 10

    def apply(self, image: np.ndarray, unary: np.ndarray) -> np.ndarray:
        """Image [H, W, 3] uint8 and unary [L, H, W] → marginals [L, H, W]."""
        return dense_crf(image, unary, **self.model_dump())

    def compile(self, info: Callable[[str], None]) -> None:
        """Compile the kernels where this machine has not yet, before several processes do so at once."""
        if needs_compiling():
            info("compiling the CRF's kernels (once on this machine, about 20 s)")
            self.apply(np.zeros((8, 8, 3), np.uint8), unary_from_labels(np.zeros((8, 8), np.uint8), 2))


# At the segmentation network's test time (DeepLab's public settings, golden "probability mode")
NETWORK_CRF = CrfSettings(gaussian_sxy=1, gaussian_weight=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_weight=4)
