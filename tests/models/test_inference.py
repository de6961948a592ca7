"""Networks prepared to answer: norms folded into convolutions, views of images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tagmask.compute import Compute
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import fold_norms, prepare_for_inference, scaled, with_hflip
from tagmask.models.segmenter import Segmenter


def lived(network: nn.Module) -> nn.Module:
    """The network, in eval mode, with norms that do something."""
    torch.manual_seed(0)
    for norm in norms(network):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network.eval()


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenetv2_050", 0),
        ("efficientnet_b0", 0),
        ("regnety_002", 0),
        ("densenet121", 62),  # of 121: in its layers, one norm of two comes before both convolutions
        ("resnetv2_18", None),  # likewise, and the first convolution's output is used twice
        ("convnext_atto", 0),  # without batch norms
    ],
)
def test_a_folded_network_says_the_same(name: str, left: int | None) -> None:
    network = lived(Backbone(name))
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        before = network(images)
        fold_norms(network)
        after = network(images)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    if left is not None:
        assert len(norms(network)) == left


def test_images_padded_by_the_convolution_itself_are_padded_still() -> None:
    network = lived(Backbone("mobilenetv2_050", options={"pad_type": "same"}))
    images = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        before = network(images)
        fold_norms(network)
        assert torch.allclose(before, network(images), atol=1e-4 * float(before.abs().max()))
    assert not norms(network)


@pytest.mark.parametrize("architecture", ["deeplabv2", "Unet"])
def test_a_segmenter_is_folded_with_its_decoder(architecture: str) -> None:
    network = lived(Segmenter(architecture, "resnet18", ("cat",)))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network(images)
        after = prepare_for_inference(network, Compute())(images)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
    assert not norms(network)


class Standardised(nn.Conv2d):
    """A convolution that changes its own weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class Twice(nn.Module):
    """A convolution whose output is used twice: by the norm, and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize("network", [nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)), Twice()])
def test_what_cannot_be_folded_stays_as_it_is(network: nn.Module) -> None:
    lived(network)
    images = torch.randn(1, 3, 20, 20)
    before, layers = network(images), list(network.modules())
    fold_norms(network)
    assert torch.equal(before, network(images))
    assert list(network.modules()) == layers


@pytest.mark.parametrize("name", ["conv1", "bn1"])
def test_whoever_listens_hears_what_was_there_before(name: str) -> None:
    network = lived(Classifier(Backbone("resnet18"), ("cat",)))
    heard = []
    network.backbone.net.get_submodule(name).register_forward_hook(lambda *args: heard.append(args[2].clone()))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(images)
        prepare_for_inference(network, Compute())
        heard = heard[:1]
        network(images)
    assert norms(network) == [network.backbone.net.bn1]
    assert torch.allclose(*heard, atol=1e-5)


def test_a_norm_without_statistics_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    fold_norms(network)
    assert len(norms(network)) == 1


@pytest.mark.parametrize(("side", "scale", "expected"), [(500, 0.5, 250), (375, 0.5, 188), (3, 1.5, 5), (1, 0.1, 1)])
def test_scaled_rounds_half_up_and_leaves_a_pixel(side: int, scale: float, expected: int) -> None:
    assert scaled((side, side), scale) == (expected, expected)


def test_mirror_images_follow_the_images() -> None:
    images = torch.rand(2, 3, 6, 8)
    both = with_hflip(images)
    assert torch.equal(both[:2], images)
    assert torch.equal(both[2:], images.flip(3))
    assert with_hflip(images, 0.5).shape == (4, 3, 3, 4)
