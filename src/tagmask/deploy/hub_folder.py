"""The folder of a network for Hugging Face Hub: model card, weights, config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

import tagmask
from tagmask.artifacts import read_model, write_text
from tagmask.deploy.model_card import model_card
from tagmask.deploy.trained_network import TrainedNetwork
from tagmask.errors import RunError
from tagmask.models.saved_network import CONFIG_FILE
from tagmask.models.segmenter import ArchitectureConfig, InferenceConfig, Segmenter, SegmenterConfig

ONNX_NAME = "model.onnx"
GET_AGAIN = "get it again from where it was published"


def _check_is_of_timm(name: str) -> str:
    """Return the name of a backbone. Raises ValueError if timm would read its architecture from somewhere else."""
    if ":" in name:
        raise ValueError("the backbone is not one of timm's own")
    return name


class _HubArchitecture(ArchitectureConfig):
    backbone: Annotated[str, AfterValidator(_check_is_of_timm)]


class HubConfig(SegmenterConfig):
    """The entries of config.json of a published network, which may come from anyone."""

    network: _HubArchitecture
    test: InferenceConfig


def check_hub_folder(folder: Path) -> None:
    """Check config.json of a published network before the network is built. Raises RunError if it is not valid."""
    read_model(folder / CONFIG_FILE, HubConfig, remedy=GET_AGAIN)


def write_hub_folder(folder: Path, network: TrainedNetwork, segmenter: Segmenter) -> None:
    """Write README.md, config.json and the weights of a network to a folder.

    Args:
        folder: the folder; it may contain model.onnx already.
        network: what is known about the network.
        segmenter: the network.

    Raises:
        RunError: the backbone is not one of timm's own, or a file cannot be written.
    """
    config = network.read_config()
    if ":" in config.network.backbone:
        raise RunError(
            f"the backbone {config.network.backbone!r} is not one of timm's own, so that others could not load it "
            "safely: export the network with --format onnx."
        )
    notes: dict[str, Any] = {"test": config.test and config.test.model_dump(), "tagmask_version": tagmask.__version__}
    segmenter.save(folder, **notes)
    card = model_card(network, has_onnx=(folder / ONNX_NAME).exists())
    write_text(folder / "README.md", str(card))
