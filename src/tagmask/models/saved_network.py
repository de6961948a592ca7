"""Saving networks as safetensors with a config.json beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save as save_torch
from torch import Tensor

from tagmask.artifacts import atomic_write, read_json, read_safetensors, write_json


def write_weights(path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a network: `path` (safetensors) and, beside it, `config.json` that says what the network is."""
    write_json(path.with_name("config.json"), dict(config))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save_torch(plain))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote. Raises RunError where either file is missing or damaged."""
    return read_safetensors(load_torch_file, path), read_json(path.with_name("config.json"))
