"""SAM and its successors as generators of class-agnostic regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from tagmask.models.hub_model import load_hub_model
from tagmask.refine.regions import RegionLayers, layers_of_masks


class RegionGenerator:
    """The automatic masks of SAM (Kirillov et al., "Segment Anything", ICCV 2023, section 5).

    SAM segments what lies at each point of a grid. Masks of a low predicted IoU (below 0.88) or stability (below 0.95)
    are left out, and of masks with nearly the same box only the best remains: the defaults of transformers.

    Args:
        name: of a model that `transformers.AutoModelForMaskGeneration` loads (SAM, SAM-HQ, SAM 2, EdgeTAM, the tracker
            of SAM 3): on the Hugging Face Hub, or a local folder.
        points_per_side: the grid has this number of points per side.
        points_per_batch: the number of points that are segmented at once.
        device: where SAM runs, in float32.

    Attributes:
        model_type: of SAM's config.json, e.g. "sam2".
        options: with which the pipeline of transformers is called.

    Raises:
        RecipeError: see `load_hub_model`.
    """

    def __init__(self, name: str, points_per_side: int, points_per_batch: int, device: torch.device) -> None:
        model, processor = load_hub_model(
            name, "AutoModelForMaskGeneration", "AutoImageProcessor", setting="sam", device=device
        )
        from transformers import pipeline

        self.model_type = str(model.config.model_type)
        self._generate: Any = pipeline("mask-generation", model=model, image_processor=processor, device=device)
        self.options = {"points_per_crop": points_per_side, "points_per_batch": points_per_batch}

    def __call__(self, image: np.ndarray) -> RegionLayers:
        """Return the regions [L, H, W] of an image [H, W, 3] uint8, see `tagmask.refine.regions`."""
        masks = self._generate(Image.fromarray(image), **self.options)["masks"]
        return layers_of_masks((np.asarray(mask, bool) for mask in masks), (image.shape[0], image.shape[1]))
