"""The CAM classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagmask.errors import RunError
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import FILE, Classifier
from tagmask.models.saved_network import write_weights

CLASSES = ("cat", "dog 🐕", "<b>")


def a_classifier(name: str = "resnet18", stride: int = 8) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=stride), CLASSES).eval()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_logits_are_the_mean_of_the_activations(name: str) -> None:
    """CAM's identity (Zhou et al. 2016, eq. 2), before the ReLU."""
    classifier = a_classifier(name)
    images = torch.rand(2, 3, 64, 48)
    features = classifier.backbone(images)
    plain = torch.einsum("bdhw,kd->bkhw", features, classifier.weight)
    torch.testing.assert_close(classifier(images), plain.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classifier.activations(images), plain.clamp(min=0), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_response_maps_may_have_weights_of_their_own(tmp_path: Path) -> None:
    classifier = a_classifier()
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
def test_it_comes_back_the_same(tmp_path: Path, name: str, stride: int) -> None:
    classifier = a_classifier(name, stride)
    classifier.save(tmp_path, weights="none")
    loaded = Classifier.load(tmp_path)
    images = torch.rand(1, 3, 50, 70)
    assert loaded.classes == CLASSES
    assert not loaded.training
    assert torch.equal(loaded(images), classifier(images))
    assert torch.equal(loaded.activations(images), classifier.activations(images))
    assert {f.name for f in tmp_path.iterdir()} == {FILE, "config.json"}


def test_what_is_no_classifier_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"classifier\.safetensors does not exist"):
        Classifier.load(tmp_path)
    write_weights(tmp_path / FILE, {"a": torch.zeros(1)}, {"kind": "segmenter"})
    with pytest.raises(RunError, match="does not hold a classifier but a segmenter"):
        Classifier.load(tmp_path)


def test_the_loss_reaches_both_parts() -> None:
    classifier = a_classifier().train()
    classifier(torch.rand(2, 3, 40, 40)).square().sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    for parameter in (classifier.weight, classifier.backbone.net.conv1.weight):
        assert parameter.grad.abs().sum() > 0
