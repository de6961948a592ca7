"""`SavedNetwork`: networks that are saved as safetensors, with a config.json beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save as save_torch
from torch import Tensor, nn

from tagmask.artifacts import atomic_write, read_json, read_safetensors, write_json
from tagmask.errors import RunError

CONFIG_FILE = "config.json"


class SavedNetwork(nn.Module):
    """Base class of the networks that are saved in a folder and rebuilt from it.

    A subclass sets the class attributes and implements `config` and `from_config`.

    Attributes:
        kind: the network's kind in config.json, e.g. "segmenter".
        file_name: the name of the weights file, e.g. "segmenter.safetensors".
        title: the network in error messages, with its article, e.g. "a segmentation network".
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]
    title: ClassVar[str]

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
    def load(cls, folder: Path) -> Self:
        """Load the network that `save` wrote, on the CPU and in eval mode.

        Raises:
            RunError: the folder does not contain such a network, or a file is damaged.
        """
        weights, config = cls.read(folder)
        return cls._from_weights(weights, config)

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
            raise RunError(f"{folder} does not hold {cls.title} but a {config.get('kind')}; choose another folder.")
        return weights, config

    @classmethod
    def _from_weights(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Self:
        network = cls.from_config(config)
        network.load_state_dict(weights)
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
    return read_safetensors(load_torch_file, path), read_json(path.with_name(CONFIG_FILE))
