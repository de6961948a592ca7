"""Pseudo-masks at a threshold for each image, chosen with the help of a first segmentation network (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import delayed
from pydantic import Field

from tagmask.artifacts import write_label_map
from tagmask.data.loading import whole_images
from tagmask.data.saliency import read_saliency
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalised
from tagmask.maps import ResponseMaps
from tagmask.methods.crf import Crf
from tagmask.methods.segment import probabilities
from tagmask.models.segmenter import Segmenter
from tagmask.refine.per_image import choose_threshold, expected_threshold, typical_root
from tagmask.refine.settings import CrfSettings
from tagmask.stage import Kind, Method, Work, batches, maps_file

NETWORK_WEIGHT = 0.5  # saliency's is 1


class PerImage(Method):
    """Cut each image's maps where the region agrees best with a network that learned from one global threshold.

    To be placed after a first `crf` and `segment`, and followed by a second `segment`. Where an image has saliency, that
    takes the place of the network, which adds nothing to it (docs/thresholds.md).
    """

    needs: ClassVar[tuple[Kind, ...]] = ("maps", "segmenter")
    makes: ClassVar[tuple[Kind, ...]] = ("masks",)

    threshold: Threshold = "auto"
