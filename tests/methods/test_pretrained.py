"""Test the maps of a ready timm classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from tagmask.data.samples import TaggedImages
from tagmask.errors import RecipeError
from tagmask.methods.pretrained import Pretrained, linear_head, outputs_of
from tagmask.recipe import Recipe
from tests.methods.contract import MakeContext, MethodContract

COLORS = {"red": [0], "green": [1, 3], "blue": [2]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights file of a small random network with 1,000 outputs."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), file)
    return file


class TestPretrained(MethodContract):
    method = Pretrained
    trains = False

    @pytest.fixture(autouse=True)
    def _settings(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"backbone": "test_resnet", "weights": str(weights), "outputs": COLORS, "scales": (1.0,)}
        monkeypatch.setattr(type(self), "settings", settings)


def test_logits_are_those_of_the_network_without_bias_and_mean(weights: Path) -> None:
    """The mean over all logits does not change the softmax of the network."""
    method = Pretrained(backbone="test_resnet", weights=str(weights), outputs=COLORS, output_stride=32)
    classifier = method.classifier(("red", "green")).eval()
    net = timm.create_model("test_resnet").eval()
    net.load_state_dict(safetensors.torch.load_file(weights))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits = net(images) - net.get_classifier().bias
        centered = logits - logits.mean(1, keepdim=True)
        expected = torch.stack([centered[:, 0], (centered[:, 1] + centered[:, 3]) / 2], 1)
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)


def test_classes_are_looked_up_among_the_names_of_imagenet() -> None:
    assert outputs_of(("Golden Retriever", "tench"), 1000, {}) == [[207], [0]]
    assert outputs_of(("crane",), 1000, {}) == [[134, 517]]  # the bird and the construction machine
    assert outputs_of(("crane",), 1000, {"crane": [134]}) == [[134]]


@pytest.mark.parametrize(
    ("classes", "num_outputs", "given", "sentence"),
    [
        (("golden retriver",), 1000, {}, "did you mean 'golden retriever'"),
        (("dog",), 10, {}, r"pretrained.outputs=\{dog: \[7, 8\]\}"),
        (("dog",), 10, {"dog": [10]}, r"outputs of 'dog' are \[10\], but the network has 0 to 9"),
        (("dog",), 10, {"dog": []}, "is not a class that the network knows"),
    ],
)
def test_a_class_that_the_network_does_not_know_is_an_error(
    classes: tuple[str, ...], num_outputs: int, given: dict[str, list[int]], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        outputs_of(classes, num_outputs, given)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "mobilenetv3_small_050", "mixer_s16_224", "eva02_tiny_patch14_336", "levit_128s"],
)
def test_a_network_whose_head_is_not_linear_is_an_error(name: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), file)
    with pytest.raises(RecipeError, match="not a linear layer of its mean features"):
        Pretrained(backbone=name, weights=str(file)).classifier(("tench",))


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "inception_v3"])
def test_linear_head_returns_the_weights_of_the_logits(name: str) -> None:
    """The channels of Swin are last; Inception needs images of more than 64 pixels."""
    torch.manual_seed(0)
    net: Any = timm.create_model(name).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features = net.forward_features(images)
        channels_last = features.movedim(features.shape.index(net.num_features), -1)
        logits = channels_last.flatten(1, 2).mean(1) @ linear_head(net, name).T
        torch.testing.assert_close(logits + net.get_classifier().bias, net(images), rtol=1e-3, atol=1e-4)


def test_num_outputs_is_only_for_weights_files(weights: Path) -> None:
    """timm silently replaces the head of its own weights by a random one if the number of outputs is another."""
    with pytest.raises(RecipeError, match="num_outputs is for weights files only"):
        Pretrained(num_outputs=3)
    with pytest.raises(RecipeError, match="num_outputs is for weights files only"):
        Recipe.model_validate({"stages": {"pretrained": {"num_outputs": 1000}}})
    with pytest.raises(RecipeError, match="leave num_classes out of the options"):
        Pretrained(options={"num_classes": 3})
    assert Pretrained(num_outputs=3, weights=str(weights)).num_outputs == 3


def test_a_weights_file_with_another_number_of_outputs(
    tmp_path: Path, make_context: MakeContext, toy_images: TaggedImages
) -> None:
    net: Any = timm.create_model("test_resnet", num_classes=3)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "w.safetensors")
    outputs = {name: [i] for i, name in enumerate(toy_images.classes)}
    method = Pretrained(
        backbone="test_resnet", weights=str(tmp_path / "w.safetensors"), num_outputs=3, outputs=outputs, scales=(1.0,)
    )
    context = make_context(images=replace(toy_images, samples=toy_images.samples[:2]))
    method.run(context)
    assert all(context.folder.maps_path(sample.id).exists() for sample in context.images.samples)
