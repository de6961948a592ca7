"""Models of the library transformers, from the Hugging Face Hub or from a local folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tagmask.errors import RecipeError
from tagmask.models.backbone import first_line
from tagmask.text import shorten


def load_hub_model(
    name: str, model_class: str, processor_class: str, *, setting: str, device: torch.device
) -> tuple[Any, Any]:
    """Load a model for inference, and what prepares its inputs. No pickle is read, and no code of the model is run.

    Args:
        name: "owner/name" on the Hugging Face Hub, which is downloaded the first time; or a local folder.
        model_class: of transformers, e.g. "AutoModelForMaskGeneration".
        processor_class: of transformers, e.g. "AutoImageProcessor".
        setting: that gives the name, for the error message.
        device: where the model runs.

    Raises:
        RecipeError: transformers is not installed, or the model does not exist, cannot be downloaded or is of another
            kind.
    """
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(f'the setting {setting} needs transformers: pip install "tagmask[sam]".') from error
    if not Path(name).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise RecipeError(
            f"{setting} {shorten(name)!r} is neither a folder nor a name on the Hugging Face Hub (owner/name); correct "
            "it."
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = getattr(transformers, model_class).from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        processor = getattr(transformers, processor_class).from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the type depends on what is wrong
        raise RecipeError(
            f"the model {name!r} could not be loaded ({first_line(error)}); connect to the network, or give the folder "
            f"of a model of transformers with safetensors weights as the setting {setting}."
        ) from error
    return model.to(device).eval(), processor
