"""The weights from outside that a recipe begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm.models
import torch
from huggingface_hub import try_to_load_from_cache

from tagmask.errors import RecipeError
from tagmask.recipe import Recipe

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
RATE = 1e-9  # of learning; random weights would run wild at a rate that counts on pretrained ones


def weights_from_outside(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """For each stage with a setting `weights` that names a file or timm's hub: which, and whether it is here.

    Raises RecipeError for a network without pretrained weights.
    """
    found: dict[str, dict[str, Any]] = {}
    classifier = ""
    for stage, method in recipe.stages.items():
        backbone = getattr(method, "backbone", None) or classifier
        classifier = backbone if "classifier" in method.makes else classifier
        weights = getattr(method, "weights", "none")
        if weights == "pretrained":
            found[stage] = {"weights": f"{backbone}, pretrained", "here": _in_cache(stage, backbone)}
        elif weights not in ("none", "classifier"):
            found[stage] = {"weights": weights, "here": True}
    return found


def _in_cache(stage: str, backbone: str) -> bool:
    """Whether timm's weights of a network were downloaded before. Raises RecipeError if there are none."""
    if ":" in backbone:  # of a hub, e.g. hf-hub:timm/resnet50.a1_in1k
        return _from_hub(backbone.partition(":")[2], *HUB_FILES)
    config = timm.models.get_pretrained_cfg(backbone)
    if config is None or not config.has_weights:
        raise RecipeError(f"stage {stage!r}: timm has no pretrained weights of {backbone!r}; set weights to none.")
    if config.hf_hub_id:
        return _from_hub(config.hf_hub_id, *([config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES))
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(str(config.url)).name).is_file()


def _from_hub(repository: str, *files: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def without_downloads(recipe: Recipe) -> Recipe:
    """The recipe with random weights for those of timm's hub, and hardly any learning."""
    stages = {}
    for name, method in recipe.stages.items():
        rates = {field: RATE for field in type(method).model_fields if field == "lr" or field.endswith("_lr")}
        random = {"weights": "none"} if getattr(method, "weights", "none") == "pretrained" else {}
        stages[name] = method.model_copy(update=rates | random)
    return recipe.model_copy(update={"stages": stages})
