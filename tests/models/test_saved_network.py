"""Saving and loading of the four networks, and the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tagmask.errors import RunError
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork
from tagmask.models.classifier import Classifier
from tagmask.models.label_conditioned import LabelConditionedNetwork
from tagmask.models.saved_network import SavedNetwork, read_weights_and_config, write_weights_and_config
from tagmask.models.segmenter import Segmenter

CLASSES = ("cat", "dog 🐕", "<b>")
OPTIONS = {"pad_type": "same", "pretrained_cfg_overlay": {"mean": [0.5] * 3, "std": [0.25] * 3}}
RESNET = {"name": "resnet18", "output_stride": 8, "options": {}, "dilation": "full"}
MOBILENET = {"name": "mobilenetv2_050", "output_stride": 16, "options": OPTIONS, "dilation": "full"}


def boundary_network() -> BoundaryNetwork:
    network = BoundaryNetwork(Backbone("resnet18", output_stride=8))
    network.mean_displacement = torch.tensor([0.5, 1.5])
    return network


def classifier_with_map_weight() -> Classifier:
    network = Classifier(Backbone("resnet18", output_stride=8), CLASSES)
    network.map_weight = torch.rand(3, 512)
    return network


# The weights file, config.json and the builder of each network. Folders that earlier versions wrote have these files.
NETWORKS: dict[str, tuple[str, dict[str, Any], Callable[[], SavedNetwork]]] = {
    "classifier": (
        "classifier.safetensors",
        {"kind": "classifier", "backbone": MOBILENET, "classes": list(CLASSES)},
        lambda: Classifier(Backbone("mobilenetv2_050", options=OPTIONS), CLASSES),
    ),
    "classifier with map weight": (
        "classifier.safetensors",
        {"kind": "classifier", "backbone": RESNET, "classes": list(CLASSES)},
        classifier_with_map_weight,
    ),
    "segmenter": (
        "segmenter.safetensors",
        {
            "kind": "segmenter",
            "network": {
                "architecture": "Unet",
                "backbone": "mobilenetv2_050",
                "output_stride": 16,
                "options": OPTIONS,
            },
            "classes": list(CLASSES),
        },
        lambda: Segmenter("Unet", "mobilenetv2_050", CLASSES, options=OPTIONS),
    ),
    "boundary": ("boundary.safetensors", {"kind": "boundary", "backbone": RESNET}, boundary_network),
    "label_conditioned": (
        "label_conditioned.safetensors",
        {
            "kind": "label_conditioned",
            "classes": list(CLASSES),
            "dropout": 0.2,
            "conditioned": True,
            "backbone": RESNET,
        },
        lambda: LabelConditionedNetwork(Backbone("resnet18", output_stride=8), CLASSES, dropout=0.2),
    ),
}


def outputs(network: SavedNetwork) -> tuple[Tensor, ...]:
    images = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if isinstance(network, LabelConditionedNetwork):
            return (network(images, torch.tensor([[1.0, 0, 1], [0, 1, 0]])),)
        if isinstance(network, Classifier):
            return network(images), network.activations(images)
        result = network(images)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_equals_the_saved_one(tmp_path: Path, name: str) -> None:
    file_name, config, build = NETWORKS[name]
    torch.manual_seed(0)
    network = build().eval()
    assert not type(network).exists(tmp_path)
    network.save(tmp_path, weights="none")
    assert type(network).exists(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file_name, "config.json"}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {**config, "weights": "none"}

    loaded = type(network).load(tmp_path)
    assert not loaded.training
    assert loaded.config == json.loads(json.dumps(network.config)) | (
        {"classes": CLASSES} if "classes" in config else {}
    )
    for expected, actual in zip(outputs(network), outputs(loaded), strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_without_the_network_is_one_sentence(tmp_path: Path, name: str) -> None:
    file_name, config, build = NETWORKS[name]
    cls = type(build())
    with pytest.raises(RunError, match=rf"{file_name} does not exist"):
        cls.load(tmp_path)
    write_weights_and_config(cls.weights_path(tmp_path), {"a": torch.zeros(1)}, {**config, "kind": "toaster"})
    with pytest.raises(RunError) as error:
        cls.load(tmp_path)
    assert str(error.value) == f"{tmp_path} does not hold {cls.title} but a toaster; choose another folder."


def test_read_returns_the_files_without_building_the_network(tmp_path: Path) -> None:
    backbone = {"name": "resnet18", "output_stride": 16, "options": {}}
    config = {"kind": "classifier", "classes": ["cat"], "backbone": backbone}
    write_weights_and_config(tmp_path / Classifier.file_name, {"a": torch.ones(2)}, config)
    weights, read = Classifier.read(tmp_path)
    assert read == config
    assert weights["a"].tolist() == [1, 1]


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3), "transposed": torch.randn(2, 3).T, "scalar": torch.tensor(3)}
    write_weights_and_config(tmp_path / "net.safetensors", weights, {"kind": "x", "classes": ("ä",)})
    read, config = read_weights_and_config(tmp_path / "net.safetensors")
    assert config == {"kind": "x", "classes": ["ä"]}
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("file_name", ["net.safetensors", "config.json"])
def test_missing_and_damaged_files_are_one_sentence(tmp_path: Path, file_name: str) -> None:
    write_weights_and_config(tmp_path / "net.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / file_name).write_bytes(b"{")
    with pytest.raises(RunError, match=rf"{file_name} is (not JSON|damaged).*: .*run the same .*again"):
        read_weights_and_config(tmp_path / "net.safetensors")
    (tmp_path / file_name).unlink()
    with pytest.raises(RunError, match=rf"{file_name} does not exist"):
        read_weights_and_config(tmp_path / "net.safetensors")
