"""Folders for Hugging Face Hub: written, read back, and refused if they are not safe."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
import timm.models
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import RepositoryNotFoundError

import tagmask
from tagmask.artifacts import read_json, write_json
from tagmask.compute import Compute
from tagmask.deploy import hub_source, writer
from tagmask.deploy.model_card import backbone_license
from tagmask.deploy.trained_network import TrainedNetwork
from tagmask.deploy.writer import write_network_as
from tagmask.errors import RunError
from tagmask.evaluate import Evaluation
from tagmask.measure import segmentation_report
from tagmask.predict import Predictor
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, load_recipe
from tagmask.stage_folder import StageFolder
from tests.deploy.networks import CLASSES, random_images

MakeFolder = Callable[..., Path]


def recipe(weights: str = "none") -> Recipe:
    return load_recipe("small", [f"cam.weights={weights}", "cam.backbone=resnet18"])


def report(correct: int) -> Any:
    confusion = np.diag([correct] * 4) + (100 - correct) * np.roll(np.eye(4, dtype=int), 1, axis=1)
    return segmentation_report(np.pad(confusion, ((0, 0), (0, 1))), 0.5, np.full(4, 0.5))


@pytest.fixture
def hub_folder(stage_folder: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeFolder:
    """Return a function that exports the network with a recipe; the ONNX file is a copy of `onnx_file`."""
    monkeypatch.setattr(writer, "export_onnx", lambda network, path: shutil.copy(onnx_file, path))
    scores = {"pseudo_masks (cows)": report(70), "segment (cows)": report(80), "segment (new | cows)": report(60)}

    def make(recipe: Recipe = recipe(), scores: dict[str, Any] = scores) -> Path:  # noqa: B008
        evaluation = Evaluation(CLASSES, scores=scores)
        network = TrainedNetwork(StageFolder(stage_folder), recipe, evaluation)
        return write_network_as(network, tmp_path / "exported", "hub", Reporter())

    return make


@pytest.fixture
def folder(hub_folder: MakeFolder) -> Path:
    return hub_folder()


def test_the_folder_holds_the_network_and_its_card(folder: Path, onnx_file: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "segmenter.safetensors", "model.onnx"
    }  # fmt: skip
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "tagmask"
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.license is None
    [result] = card.data.eval_results
    assert result.dataset_name == "held-out images (new | cows)"
    assert (result.metric_type, result.metric_value) == ("mean_iou", 42.86)  # IoU = 60 / (100 + 100 − 60)
    for text in (
        "trained from image tags", "from 1,234 images", "1. Hund", "2. Fußgänger", "3. kot\\|flügel",
        "| mIoU | 66.7 % | 42.9 % |", "the training began with random weights", "other scales and horizontal flips",
        "  pseudo_masks:\n    method: pseudo_masks",
    ):  # fmt: skip
        assert text in card.content


def test_the_card_of_a_network_that_was_not_measured_says_so(hub_folder: MakeFolder) -> None:
    card = ModelCard.load(hub_folder(recipe("pretrained"), scores={}) / "README.md")
    assert "was not measured" in card.content
    assert card.data.eval_results is None


def test_a_backbone_license_that_the_hub_does_not_know(hub_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = timm.models.get_pretrained_cfg("vit_small_patch16_dinov3")
    assert cfg is not None
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda name: cfg)
    data = ModelCard.load(hub_folder(recipe("pretrained")) / "README.md").data
    assert (data.license, data.license_name) == ("other", "dinov3-license")
    assert data.base_model == "timm/vit_small_patch16_dinov3.lvd1689m"


def test_the_path_of_a_weights_file_is_not_published(hub_folder: MakeFolder) -> None:
    text = (hub_folder(recipe("/home/jane/secret/w.pth")) / "README.md").read_text(encoding="utf-8")
    assert "unknown: weights file w.pth" in text
    assert "jane" not in text


@pytest.mark.parametrize(
    ("source", "backbone", "name", "base_model"),
    [("pretrained", "resnet50.a1_in1k", "apache-2.0", "timm/resnet50.a1_in1k"),
     ("pretrained", "convnextv2_tiny.fcmae_ft_in22k_in1k", "cc-by-nc-4.0",
      "timm/convnextv2_tiny.fcmae_ft_in22k_in1k"),
     ("none", "resnet50", None, None), ("weights/w.pth", "resnet50", "unknown", None)],
)  # fmt: skip
def test_licenses_are_those_of_timm(source: str, backbone: str, name: str | None, base_model: str | None) -> None:
    license = backbone_license(source, backbone)
    assert (license.name, license.base_model) == (name, base_model)


def test_the_onnx_file_is_left_out_with_a_message_if_it_cannot_be_made(
    hub_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunError('install them with pip install "tagmask[onnx]".')

    messages: list[str] = []
    monkeypatch.setattr(writer, "export_onnx", fail)
    monkeypatch.setattr(Reporter, "info", lambda self, text: messages.append(text))
    folder = hub_folder()
    assert messages == ['model.onnx is left out: install them with pip install "tagmask[onnx]".']
    assert not (folder / "model.onnx").exists()
    assert "model.onnx" not in (folder / "README.md").read_text(encoding="utf-8")


def assert_predicts_like_the_stage(network: Any, stage_folder: Path) -> None:
    image = random_images(1, 60, 50)[0]
    expected = Predictor.load(stage_folder, Compute(precision="float32"))
    assert network.classes == CLASSES
    assert network.inference == expected.inference
    np.testing.assert_array_equal(network.predict(image), expected.predict(image))


def test_a_local_folder_is_loaded(folder: Path, stage_folder: Path) -> None:
    assert_predicts_like_the_stage(tagmask.load(folder, precision="float32"), stage_folder)


def test_an_address_is_loaded_from_the_cache_without_the_network(
    folder: Path, stage_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the layout that huggingface_hub documents; the library itself finds the files."""
    repository = tmp_path / "cache" / "models--jane--cows"
    shutil.copytree(folder, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_predicts_like_the_stage(tagmask.load("hf://jane/cows", precision="float32"), stage_folder)
    with pytest.raises(RunError, match=r"^hf://jane/horses cannot be downloaded, and is not in the cache"):
        tagmask.load("hf://jane/horses")


def test_only_the_weights_and_the_config_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[Any, ...]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((repository, revision, sorted(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    tagmask.load("hf://jane/cows@v1.0")
    assert requests == [("jane/cows", "v1.0", ["config.json", "segmenter.safetensors"])]


def test_errors_of_the_hub_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*_: object, **__: object) -> str:
        response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        raise RepositoryNotFoundError("404 Client Error.", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_found)
    with pytest.raises(RunError, match=r"^hf://jane/cows does not exist, or is private"):
        tagmask.load("hf://jane/cows")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(RunError, match="is not a network that tagmask exported"):
        tagmask.load("hf://jane/cows")
    for address in ("hf://cows", "hf://", "hf://a/b/c", "hf://../x@y z"):
        with pytest.raises(RunError, match="write it as hf://owner/name"):
            tagmask.load(address)


UNSAFE: list[dict[str, Any]] = [
    {"backbone": "hf-hub:someone/else"}, {"backbone": "local-dir:/tmp/x"}, {"options": {"checkpoint_path": "x.pth"}},
    {"options": {"pretrained": True}}, {"architecture": "Unet", "options": {"encoder_weights": "imagenet"}},
    {"architecture": "Unet", "options": {"checkpoint_path": "x.pth"}}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", UNSAFE, ids=str)
def test_a_config_that_would_read_something_else_is_refused(folder: Path, change: dict[str, Any]) -> None:
    (folder / "x.pth").write_bytes(pickle.dumps("executed"))
    config = read_json(folder / "config.json")
    config["network"] |= change
    write_json(folder / "config.json", config)
    with pytest.raises(RunError, match=r"config.json is damaged .*: get it again from where it was published"):
        tagmask.load(folder)


def test_weights_must_be_safetensors(folder: Path) -> None:
    weights = folder / "segmenter.safetensors"
    weights.write_bytes(pickle.dumps({"weight": [1, 2]}))
    with pytest.raises(RunError, match=r"segmenter.safetensors is damaged .*: get it again from"):
        tagmask.load(folder)
    weights.unlink()
    with pytest.raises(RunError):
        tagmask.load(folder)


def test_a_backbone_of_someone_else_is_not_exported(
    hub_folder: MakeFolder, stage_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((stage_folder / "config.json").read_text())
    config["network"]["backbone"] = "hf-hub:someone/else"
    network = hub_source.Segmenter.load(stage_folder)
    monkeypatch.setattr(writer.Segmenter, "load", lambda path: network)
    monkeypatch.setattr(
        TrainedNetwork, "read_config", lambda self: hub_source.Segmenter.config_model.model_validate(config)
    )
    with pytest.raises(RunError, match="is not one of timm's own"):
        hub_folder()
    assert not list(tmp_path.rglob("config.json"))
