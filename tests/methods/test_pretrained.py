"""Maps of a ready timm classifier."""

from __future__ import annotations

from collections.abc import Callable
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
from tagmask.stage import StageContext
from tests.methods.contract import MethodContract

COLORS = {"red": [0], "green": [1, 3], "blue": [2]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of 1,000 outputs, as timm would save it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), file)
    return file


class TestPretrained(MethodContract):
    method = Pretrained
    trains = False

    @pytest.fixture(autouse=True)
    def _settings(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"backbone": "resnet10t", "weights": str(weights), "outputs": COLORS, "scales": (1.0,)}
        monkeypatch.setattr(type(self), "settings", settings)


def test_activations_are_the_softmax_parts_of_the_networks_own_logits(weights: Path) -> None:
    """The mean of a class's linear activations is its logit, less the bias and what all logits have in common."""
    method = Pretrained(backbone="resnet10t", weights=str(weights), outputs=COLORS, output_stride=32)
    classifier = method.classifier(("red", "green")).eval()
    net = timm.create_model("resnet10t").eval()
    net.load_state_dict(safetensors.torch.load_file(weights))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits = net(images) - net.get_classifier().bias
        centred = logits - logits.mean(1, keepdim=True)
        expected = torch.stack([centred[:, 0], (centred[:, 1] + centred[:, 3]) / 2], 1)
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)


def test_classes_are_found_by_the_names_of_imagenet() -> None:
    assert outputs_of(("Golden Retriever", "tench"), 1000, {}) == [[207], [0]]
    assert outputs_of(("crane",), 1000, {}) == [[134, 517]]  # the bird and the machine
    assert outputs_of(("crane",), 1000, {"crane": [134]}) == [[134]]


@pytest.mark.parametrize(
    ("classes", "n", "given", "sentence"),
    [
        (("golden retriver",), 1000, {}, "did you mean 'golden retriever'"),
        (("dog",), 10, {}, r"pretrained.outputs=\{dog: \[7, 8\]\}"),
        (("dog",), 10, {"dog": [10]}, r"outputs of 'dog' are \[10\], but the network has 0 to 9"),
        (("dog",), 10, {"dog": []}, "is not one that the network knows"),
    ],
)
def test_classes_that_the_network_lacks_are_named(
    classes: tuple[str, ...], n: int, given: dict[str, list[int]], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        outputs_of(classes, n, given)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "mobilenetv3_small_050", "mixer_s16_224", "eva02_tiny_patch14_336", "levit_128s"],
)
def test_a_head_that_is_more_than_linear_is_an_error(name: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), file)
    with pytest.raises(RecipeError, match="not a linear layer of its mean features"):
        Pretrained(backbone=name, weights=str(file)).classifier(("tench",))


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "inception_v3"])
def test_the_rows_of_a_linear_head_make_the_networks_own_logits(name: str) -> None:
    """Swin keeps its channels last; Inception needs more than 64 pixels."""
    torch.manual_seed(0)
    net: Any = timm.create_model(name).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features = net.forward_features(images)
        channels_last = features.movedim(features.shape.index(net.num_features), -1)
        found = channels_last.flatten(1, 2).mean(1) @ linear_head(net, name).T
        torch.testing.assert_close(found + net.get_classifier().bias, net(images), rtol=1e-3, atol=1e-4)


def test_timm_s_own_weights_have_their_own_number_of_outputs(weights: Path) -> None:
    """timm would replace their head by a random one, and say nothing."""
    with pytest.raises(RecipeError, match="num_outputs goes with a weights file"):
        Pretrained(num_outputs=3)
    with pytest.raises(RecipeError, match="num_outputs goes with a weights file"):
        Recipe.model_validate({"stages": {"pretrained": {"num_outputs": 1000}}})
    with pytest.raises(RecipeError, match="leave num_classes out of the options"):
        Pretrained(options={"num_classes": 3})
    assert Pretrained(num_outputs=3, weights=str(weights)).num_outputs == 3


def test_another_number_of_outputs(
    tmp_path: Path, make_context: Callable[..., StageContext], toy_images: TaggedImages
) -> None:
    """A network that somebody fine-tuned on classes of their own."""
    net: Any = timm.create_model("resnet10t", num_classes=3)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "w.safetensors")
    outputs = {name: [i] for i, name in enumerate(toy_images.classes)}
    method = Pretrained(
        backbone="resnet10t", weights=str(tmp_path / "w.safetensors"), num_outputs=3, outputs=outputs, scales=(1.0,)
    )
    context = make_context(images=replace(toy_images, samples=toy_images.samples[:2]))
    method.run(context)
    assert all(context.folder.maps_path(sample.id).exists() for sample in context.images.samples)
