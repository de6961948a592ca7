"""The CAM classifier, and the backbone from which later networks start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tagmask.errors import RecipeError, RunError
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier, initial_backbone

CLASSES = ("cat", "dog 🐕", "<b>")
OPTIONS = {"pad_type": "same"}


def create_classifier(name: str = "resnet18", stride: int = 8, options: dict[str, Any] | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=stride, options=options), CLASSES).eval()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_logits_are_the_mean_of_the_activations(name: str) -> None:
    """Equations 1 and 2 of Zhou et al., CVPR 2016, before the ReLU."""
    classifier = create_classifier(name)
    images = torch.rand(2, 3, 64, 48)
    features = classifier.backbone(images)
    expected = torch.einsum("bdhw,kd->bkhw", features, classifier.weight)
    torch.testing.assert_close(classifier(images), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classifier.activations(images), expected.clamp(min=0), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_map_weight_changes_the_activations_but_not_the_logits(tmp_path: Path) -> None:
    classifier = create_classifier()
    images = torch.rand(1, 3, 32, 32)
    logits = classifier(images)
    classifier.map_weight = torch.ones(3, 512)
    assert torch.equal(classifier(images), logits)
    activations = classifier.activations(images)
    torch.testing.assert_close(activations[:, 0], classifier.backbone(images).sum(1))
    classifier.save(tmp_path)
    assert torch.equal(Classifier.load(tmp_path).activations(images), activations)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("mobilenetv2_050", 16), ("vit_tiny_patch16_224", 16)])
@torch.inference_mode()
def test_a_loaded_classifier_equals_the_saved_one(tmp_path: Path, name: str, stride: int) -> None:
    classifier = create_classifier(name, stride)
    classifier.save(tmp_path, weights="none")
    loaded = Classifier.load(tmp_path)
    images = torch.rand(1, 3, 50, 70)
    assert loaded.classes == CLASSES
    assert not loaded.training
    assert torch.equal(loaded(images), classifier(images))
    assert torch.equal(loaded.activations(images), classifier.activations(images))
    assert {f.name for f in tmp_path.iterdir()} == {"classifier.safetensors", "config.json"}


@torch.inference_mode()
def test_a_classifier_can_be_loaded_with_another_stride(tmp_path: Path) -> None:
    classifier = create_classifier(stride=16)
    classifier.save(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    assert classifier.activations(images).shape[2:] == (4, 4)
    assert Classifier.load(tmp_path, output_stride=8).activations(images).shape[2:] == (8, 8)


def test_a_folder_without_a_classifier_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"classifier\.safetensors does not exist"):
        initial_backbone(tmp_path, None, "classifier", 16, None)


def test_the_gradient_of_the_logits_reaches_the_weight_and_the_backbone() -> None:
    classifier = create_classifier().train()
    classifier(torch.rand(2, 3, 40, 40)).square().sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    for parameter in (classifier.weight, classifier.backbone.net.conv1.weight):
        assert parameter.grad.abs().sum() > 0


def is_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_the_initial_backbone_is_the_classifier_s(tmp_path: Path) -> None:
    classifier = create_classifier("mobilenetv2_050", options=OPTIONS)
    classifier.save(tmp_path)
    backbone = initial_backbone(tmp_path, None, "classifier", 16, None)
    expected = {"name": "mobilenetv2_050", "output_stride": 16, "options": OPTIONS, "dilation": "full"}
    assert backbone.config == expected
    assert is_equal(backbone, classifier.backbone)


def test_the_initial_backbone_is_dilated_as_the_classifier_s(tmp_path: Path) -> None:
    Classifier(Backbone("resnet18", dilation="irn"), CLASSES).save(tmp_path)
    assert initial_backbone(tmp_path, None, "classifier", 8, None).config["dilation"] == "irn"
    assert initial_backbone(tmp_path, None, "none", 8, None, "full").config["dilation"] == "full"
    assert initial_backbone(tmp_path, "resnet10t", "none", 8, None).config["dilation"] == "full"


def test_the_initial_backbone_can_have_other_weights(tmp_path: Path) -> None:
    classifier = create_classifier("mobilenetv2_050", options=OPTIONS)
    classifier.save(tmp_path)
    backbone = initial_backbone(tmp_path, "mobilenetv2_050", "none", 16, None)
    assert backbone.config["options"] == OPTIONS
    assert not is_equal(backbone, classifier.backbone)
    assert initial_backbone(tmp_path, None, "none", 16, {}).config["options"] == {}
    assert initial_backbone(tmp_path, "resnet18", "none", 16, None).config["options"] == {}
    torch.save(classifier.backbone.net.state_dict(), tmp_path / "weights.pth")
    assert is_equal(initial_backbone(tmp_path, None, str(tmp_path / "weights.pth"), 16, None), classifier.backbone)


def test_the_classifier_s_weights_do_not_fit_another_backbone(tmp_path: Path) -> None:
    create_classifier().save(tmp_path)
    with pytest.raises(RecipeError, match="the classifier's weights are of 'resnet18' and do not fit 'resnet26d'"):
        initial_backbone(tmp_path, "resnet26d", "classifier", 16, None)
