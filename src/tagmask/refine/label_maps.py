"""Label maps from response maps: a threshold and the dense CRF, and the confident seeds of two of these."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.refine.dense_crf import unary_from_labels
from tagmask.refine.settings import CrfSettings


def crf_label_map(
    image: np.ndarray, maps: ResponseMaps, threshold: float, crf: CrfSettings | None, gt_prob: float = 0.7
) -> np.ndarray:
    """The label map at one global threshold, cleaned by the dense CRF (label mode).

    Args:
        image: [H, W, 3] uint8.
        maps: its response maps.
        threshold: of activation, above which a pixel is a class.
        crf: None: the threshold alone.
        gt_prob: how sure the CRF is of the labels it starts from.

    Returns:
        [H, W] uint8, 0 background and class ids.
    """
    labels = maps.label_map(threshold)
    ids = np.concatenate([[0], maps.classes]).astype(np.uint8)
    if crf is None or len(ids) == 1:
        return labels
    unary = unary_from_labels(np.searchsorted(ids, labels).astype(np.uint8), len(ids), gt_prob)
    return ids[crf.apply(image, unary).argmax(0)]


class ConfidentSeeds(BaseModel):
    """Two thresholds, and unsure pixels between them: the seeds that IRN and AMN learn from.

    The defaults are both papers' on CAM; after ReCAM it is 0.35 and 0.1, after AMN 0.45 and 0.15.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fg: float = Field(0.30, ge=0, le=1, description="above it, a pixel is its most active class")
    bg: float = Field(0.05, ge=0, le=1, description="what is background even at this threshold is background")
    gt_prob: float = Field(0.7, gt=0, lt=1, description="how sure the CRF is of the labels it starts from")
    crf: CrfSettings | None = Field(CrfSettings(), description="cleans both label maps; null: the thresholds alone")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.bg > self.fg:
            raise ValueError(f"bg {self.bg} must not be above fg {self.fg}: no pixel could be unsure")
        return self

    def label_map(self, image: np.ndarray, maps: ResponseMaps) -> np.ndarray:
        """Image [H, W, 3] uint8 and its maps → seeds [H, W] uint8: 0, class ids, 255 unsure.

        A pixel that is foreground at `fg` is that class, one that is background at both is background.
        """
        foreground = crf_label_map(image, maps, self.fg, self.crf, self.gt_prob)
        background = crf_label_map(image, maps, self.bg, self.crf, self.gt_prob) == 0
        return np.where(foreground > 0, foreground, np.where(background, 0, IGNORE_INDEX)).astype(np.uint8)
