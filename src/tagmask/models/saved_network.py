"""`SavedNetwork`: networks that are saved as safetensors, with a config.json beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save as save_torch
from torch import Tensor, nn

from tagmask.artifacts import RUN_AGAIN, atomic_write, read_json, read_model, read_safetensors, write_json
from tagmask.errors import RecipeError, RunError
from tagmask.label_map import MAX_CLASSES
from tagmask.models.backbone import Dilation
from tagmask.text import shorten

CONFIG_FILE = "config.json"


class BackboneConfig(BaseModel):
    """The backbone in config.json: the arguments of `Backbone`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    output_stride: Literal[8, 16, 32]
    options: dict[str, Any]
    dilation: Dilation = "full"


class NetworkConfig(BaseModel):
    """The entries of config.json that every network has; further entries are ignored."""

    kind: str


class ClassesConfig(NetworkConfig):
    """The entries of config.json of networks that know classes."""

    classes: list[str] = Field(max_length=MAX_CLASSES)


class SavedNetwork(nn.Module):
    """Base class of the networks that are saved in a folder and rebuilt from it.

    A subclass sets the class attributes and implements `config` and `from_config`.

    Attributes:
        kind: the network's kind in config.json, e.g. "segmenter".
        file_name: the name of the weights file, e.g. "segmenter.safetensors".
        title: the network in error messages, with its article, e.g. "a segmentation network".
        config_model: the entries of config.json.
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]
    title: ClassVar[str]
    config_model: ClassVar[type[NetworkConfig]] = NetworkConfig

    @property
    def config(self) -> dict[str, Any]:
        """The entries of config.json from which `from_config` builds the network again."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network with random weights from the entries of config.json.

        Raises:
            RecipeError: the installed libraries cannot build this network.
        """
        raise NotImplementedError

    @classmethod
    def weights_path(cls, folder: Path) -> Path:
        """Return the path of the weights file in a folder."""
        return folder / cls.file_name

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Return whether the folder contains such a network: its weights, which `save` writes last, and config.json."""
        return cls.weights_path(folder).exists() and (folder / CONFIG_FILE).exists()

    def save(self, folder: Path, **notes: Any) -> None:
        """Write the weights and config.json to a folder, which is created if it is missing.

        Args:
            folder: where to write.
            **notes: further entries of config.json, which `load` ignores.

        Raises:
            RunError: a file cannot be written.
        """
        write_weights_and_config(
            self.weights_path(folder), self.state_dict(), {"kind": self.kind, **self.config, **notes}
        )

    @classmethod
    def save_notes(cls, folder: Path, **notes: Any) -> None:
        """Change entries of config.json which `load` ignores; the weights stay.

        Args:
            folder: where the network was saved.
            **notes: the entries, which JSON can express.

        Raises:
            RunError: config.json is damaged, or cannot be written.
        """
        config = _read_config(folder / CONFIG_FILE)
        if (changed := config | notes) != config:
            write_json(folder / CONFIG_FILE, changed)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the network that `save` wrote, on the CPU and in eval mode.

        Raises:
            RunError: the folder does not contain such a network, or a file is damaged.
        """
        weights, config = cls.read(folder)
        return cls._from_weights(weights, config, folder)

    @classmethod
    def read(cls, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the weights and config.json without building the network.

        Returns:
            The state dict, and the entries of config.json.

        Raises:
            RunError: the folder does not contain such a network, or a file is damaged.
        """
        weights, config = read_weights_and_config(cls.weights_path(folder))
        if config.get("kind") != cls.kind:
            kind = shorten(str(config.get("kind")))
            raise RunError(f"{folder} does not hold {cls.title} but a {kind}; choose another folder.")
        model = read_model(folder / CONFIG_FILE, cls.config_model, remedy=RUN_AGAIN)
        return weights, model.model_dump(exclude_unset=True)

    @classmethod
    def _from_weights(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Self:
        try:
            network = cls.from_config(config)
        except RecipeError as error:
            raise RunError(f"{folder / CONFIG_FILE} is damaged ({shorten(str(error), 200)}): {RUN_AGAIN}.") from error
        path = cls.weights_path(folder)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:  # names or shapes
            reason = shorten(str(error), 120)
            raise RunError(f"{path} is damaged or does not fit {CONFIG_FILE} ({reason}): {RUN_AGAIN}.") from error
        for name, own in network.state_dict().items():
            if own.dtype != weights[name].dtype or not torch.isfinite(own).all():
                raise RunError(f"{path} is damaged ({name} has another type or values like NaN): {RUN_AGAIN}.")
        return network.eval()


def write_weights_and_config(path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write the weights of a network to a safetensors file, and its description to config.json beside it.

    Args:
        path: the safetensors file.
        weights: a state dict.
        config: entries of config.json, which JSON can express.

    Raises:
        RunError: a file cannot be written.
    """
    write_json(path.with_name(CONFIG_FILE), dict(config))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save_torch(tensors))


def read_weights_and_config(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state dict and the entries of config.json that `write_weights_and_config` wrote.

    Raises:
        RunError: a file is missing or damaged.
    """
    return read_safetensors(load_torch_file, path), _read_config(path.with_name(CONFIG_FILE))


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise RunError(f"{path} is damaged (it is not a mapping): {RUN_AGAIN}.")
    return config
