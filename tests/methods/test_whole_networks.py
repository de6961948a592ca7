"""Test the maps of whole networks, from the image on, against those of the public code (goldens/networks.npz)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tagmask.data.transforms import normalize_images
from tagmask.methods.amn import mean_logits
from tagmask.methods.cam import response_maps
from tagmask.methods.recam import ReCamNetwork
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import Resize
from tagmask.models.label_conditioned import LabelConditionedNetwork

with np.load(Path(__file__).parents[1] / "goldens" / "networks.npz") as file:
    GOLDENS = {name: file[name] for name in file}
SEED, TAGS = int(GOLDENS["seed"]), GOLDENS["tags"].tolist()
CLASSES = tuple(f"class {n}" for n in range(1, 21))  # of VOC


def weight_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """Make the weights of a layer by the formula of the goldens' README."""
    values = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * abs(values)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 0.2 + 0.02 * values if "bn3" in name else 1 + 0.1 * values
    elif len(shape) == 4 and shape[0] == 21:
        values = 0.01 * values
    elif len(shape) == 2:
        values = 0.3 * values
    elif shape[-1] == 1 and shape[0] == 20:
        values = 0.02 * values
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def fill(module: nn.Module, names: dict[str, str] | None = None) -> None:
    """Give each layer its weights; `names` maps our names to those of the formula, where they differ."""
    state = {
        name: weight_of((names or {}).get(name, name), tuple(value.shape))
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    module.load_state_dict(state, strict=False)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    network = Backbone("resnet50.tv_in1k", dilation="irn")
    fill(network.net)
    return network.eval()


@pytest.fixture(scope="module")
def images(backbone: Backbone) -> Tensor:
    pixels = torch.from_numpy(GOLDENS["image"]).permute(2, 0, 1)[None]
    return normalize_images(pixels, backbone.mean, backbone.std)


@pytest.fixture(scope="module")
def classifier(backbone: Backbone) -> Classifier:
    network = Classifier(backbone, CLASSES)
    network.weight.data = weight_of("head.weight", (20, 2048, 1, 1))[:, :, 0, 0]
    return network.eval()


def bicubic(backbone: Backbone) -> Resize:
    return Resize("bicubic", backbone.mean, backbone.std)


@torch.inference_mode()
def test_features_are_those_of_irns_resnet50(backbone: Backbone, images: Tensor) -> None:
    features = backbone(images)[0, ::64].numpy()
    np.testing.assert_allclose(features, GOLDENS["cam_features"], atol=1e-5)


@pytest.mark.parametrize("method", ["cam", "recam"])
@torch.inference_mode()
def test_maps_of_a_classifier(method: str, classifier: Classifier, images: Tensor) -> None:
    if method == "recam":
        network = ReCamNetwork(classifier)
        network.second_weight.data = weight_of("second.weight", (20, 2048, 1, 1))[:, :, 0, 0]
        classifier = network.combined_classifier("product")
    [maps] = response_maps(classifier.activations, images, [TAGS], resize=bicubic(classifier.backbone))
    np.testing.assert_allclose(maps.maps, GOLDENS[f"{method}_low"], atol=1e-4)
    assert maps.classes.tolist() == TAGS


@torch.inference_mode()
def test_probabilities_of_amn(backbone: Backbone, images: Tensor) -> None:
    network = LabelConditionedNetwork(backbone, CLASSES, dropout=0).eval()
    fill(network.condition, {"weight": "label_enc.weight", "bias": "label_enc.bias"})
    fill(network.head, {name: f"head.{name.removeprefix('branches.')}" for name in network.head.state_dict()})
    tags: Any = torch.zeros(1, len(CLASSES))
    tags[0, np.array(TAGS) - 1] = 1
    probabilities = mean_logits(network, images, tags, resize=bicubic(backbone)).softmax(1)[0, [0, *TAGS]]
    np.testing.assert_allclose(probabilities, GOLDENS["amn_low"], atol=1e-4)
