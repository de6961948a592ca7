"""Networks that are converted for inference, and horizontally flipped and scaled images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tagmask.compute import Compute
from tagmask.data.transforms import normalize_images
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import (
    Resize,
    fold_norms_inplace,
    prepare_for_inference_inplace,
    scaled_size,
    scaled_with_hflip,
    with_hflip,
)
from tagmask.models.segmenter import Segmenter


def randomize_norms(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, with norms that change their input, as after training."""
    torch.manual_seed(0)
    for norm in batch_norms(network):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network.eval()


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "num_left"),
    [
        ("resnet18", 0),
        ("mobilenetv2_050", 0),
        ("efficientnet_b0", 0),
        ("regnety_002", 0),
        ("densenet121", 62),  # of 121: in each layer, one of the two norms precedes both convolutions
        ("resnetv2_18", None),  # likewise, and the output of the first convolution is used twice
        ("convnext_atto", 0),  # has no batch norms
    ],
)
def test_a_folded_network_computes_the_same_features(name: str, num_left: int | None) -> None:
    network = randomize_norms(Backbone(name))
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        before = network(images)
        fold_norms_inplace(network)
        after = network(images)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    if num_left is not None:
        assert len(batch_norms(network)) == num_left


def test_folded_convolutions_keep_the_padding_of_their_own_class() -> None:
    network = randomize_norms(Backbone("mobilenetv2_050", options={"pad_type": "same"}))
    images = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        before = network(images)
        fold_norms_inplace(network)
        assert torch.allclose(before, network(images), atol=1e-4 * float(before.abs().max()))
    assert not batch_norms(network)


@pytest.mark.parametrize("architecture", ["deeplabv2", "Unet"])
def test_all_norms_of_a_segmenter_are_folded(architecture: str) -> None:
    network = randomize_norms(Segmenter(architecture, "resnet18", ("cat",)))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network(images)
        after = prepare_for_inference_inplace(network, Compute())(images)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
    assert not batch_norms(network)


class StandardizedConv(nn.Conv2d):
    """A convolution that changes its own weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class OutputUsedTwice(nn.Module):
    """A convolution whose output is used by the norm and by the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize("network", [nn.Sequential(StandardizedConv(3, 4, 3), nn.BatchNorm2d(4)), OutputUsedTwice()])
def test_layers_that_cannot_be_folded_are_restored(network: nn.Module) -> None:
    randomize_norms(network)
    images = torch.randn(1, 3, 20, 20)
    before, layers = network(images), list(network.modules())
    fold_norms_inplace(network)
    assert torch.equal(before, network(images))
    assert list(network.modules()) == layers


@pytest.mark.parametrize("name", ["conv1", "bn1"])
def test_forward_hooks_receive_the_same_tensors_as_before(name: str) -> None:
    network = randomize_norms(Classifier(Backbone("resnet18"), ("cat",)))
    outputs = []
    network.backbone.net.get_submodule(name).register_forward_hook(lambda *args: outputs.append(args[2].clone()))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(images)
        prepare_for_inference_inplace(network, Compute())
        outputs = outputs[:1]
        network(images)
    assert batch_norms(network) == [network.backbone.net.bn1]
    assert torch.allclose(*outputs, atol=1e-5)


def test_a_norm_without_statistics_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    fold_norms_inplace(network)
    assert len(batch_norms(network)) == 1


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(500, 0.5, 250), (375, 0.5, 188), (101, 0.5, 50), (3, 1.5, 4), (1, 0.1, 1)]
)
def test_scaled_size_rounds_half_to_even_and_is_at_least_one_pixel(side: int, scale: float, expected: int) -> None:
    assert scaled_size((side, side), scale) == (expected, expected)


def test_the_flipped_images_follow_the_images() -> None:
    images = torch.rand(2, 3, 6, 8)
    both = with_hflip(images)
    assert torch.equal(both[:2], images)
    assert torch.equal(both[2:], images.flip(3))


@pytest.mark.parametrize("size", [(23, 41), (23, 20), (60, 41), (77, 99), (1, 1)])
def test_bicubic_resizing_is_that_of_pil(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 23, 41, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = normalize_images(torch.from_numpy(pixels).permute(0, 3, 1, 2), mean, std)
    resized = Resize("bicubic", mean, std)(images, size)
    expected = [np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC)) for p in pixels]
    again = (255 * (resized * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])).round()
    np.testing.assert_array_equal(again.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_images_are_scaled_before_they_are_flipped() -> None:
    images = torch.rand(2, 3, 6, 8)
    assert torch.equal(scaled_with_hflip(images, 1), with_hflip(images))
    both = scaled_with_hflip(images, 0.5)
    assert both.shape == (4, 3, 3, 4)
    assert torch.equal(both[2:], both[:2].flip(3))
