"""Initial weights that a recipe reads from files or from timm's hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm.models
import torch
from huggingface_hub import try_to_load_from_cache

from tagmask.errors import RecipeError
from tagmask.recipe import Recipe

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ExternalWeights:
    """Initial weights that a stage does not get from another stage.

    Attributes:
        source: "<backbone>, pretrained" or the path of a file.
        is_local: whether they are on this machine; otherwise the run downloads them.
    """

    source: str
    is_local: bool


def find_external_weights(recipe: Recipe) -> dict[str, ExternalWeights]:
    """Return the initial weights of each stage that reads them from a file or from timm's hub, by stage name.

    Raises:
        RecipeError: timm has no pretrained weights of a backbone.
    """
    weights = {}
    for stage, method in recipe.stages.items():
        initial = method.initial_weights()
        if initial is None:
            continue
        if initial.file is not None:
            weights[stage] = ExternalWeights(str(initial.file), initial.file.is_file())
        elif initial.source == "pretrained":
            backbone = recipe.backbone_of(stage)
            is_local = backbone is not None and _is_downloaded(stage, backbone)
            weights[stage] = ExternalWeights(f"{backbone or 'backbone of the classifier'}, pretrained", is_local)
    return weights


def _is_downloaded(stage: str, backbone: str) -> bool:
    """Whether timm's weights of a backbone are in the cache. Raises RecipeError if there are no such weights."""
    if ":" in backbone:  # on a model hub, e.g. hf-hub:timm/resnet50.a1_in1k
        return _is_in_hub_cache(backbone.partition(":")[2], *HUB_FILES)
    config = timm.models.get_pretrained_cfg(backbone)
    if config is None or not config.has_weights:
        raise RecipeError(f"stage {stage!r}: timm has no pretrained weights of {backbone!r}; set weights to none.")
    if config.hf_hub_id:
        files = [config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES
        return _is_in_hub_cache(config.hf_hub_id, *files)
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(str(config.url)).name).is_file()


def _is_in_hub_cache(repository: str, *files: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
