"""The boundary network of IRN: its layers, its frozen backbone, and its outputs for flipped images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagmask.errors import RecipeError
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries


@pytest.fixture
def network() -> BoundaryNetwork:
    torch.manual_seed(0)
    return BoundaryNetwork(Backbone("resnet18", output_stride=16)).eval()


def test_the_branches_have_the_layers_of_the_authors_code() -> None:
    network = BoundaryNetwork(Backbone("resnet50", output_stride=16))
    boundary, displacement = network.boundary_parameters(), network.displacement_parameters()
    channels = (64, 256, 512, 1024, 2048)
    assert sum(p.numel() for p in boundary) == 32 * sum(channels) + 5 * 2 * 32 + 5 * 32 + 1
    reduced = 64 * 64 + 256 * 128 + (512 + 1024 + 2048) * 256 + 2 * (64 + 128 + 3 * 256)
    merged = (3 * 256) * 256 + (64 + 128 + 256) * 256 + 2 * (256 + 256) + 256 * 2
    assert sum(p.numel() for p in displacement) == reduced + merged
    assert len(boundary) + len(displacement) == sum(p.requires_grad for p in network.parameters())


def test_the_first_level_is_the_output_of_the_max_pooling(network: BoundaryNetwork) -> None:
    image = torch.randn(1, 3, 64, 48)
    net = network.backbone.net
    with torch.inference_mode():
        expected = net.maxpool(net.act1(net.bn1(net.conv1(image))))
        torch.testing.assert_close(network._features(image)[0], expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv2_050", "convnext_atto", "vgg11", "vit_tiny_patch16_224", "densenet121"]
)
def test_any_backbone_with_feature_levels_is_supported(name: str) -> None:
    network = BoundaryNetwork(Backbone(name)).eval()
    boundary, displacement = predict_boundaries(network, torch.randn(1, 3, 45, 70))
    assert boundary.shape == (1, 12, 18)
    assert displacement.shape == (1, 2, 12, 18)
    assert 0 <= boundary.min() <= boundary.max() <= 1


def test_a_backbone_without_feature_levels_is_an_error() -> None:
    backbone = Backbone("resnet18")
    backbone.net.feature_info = []
    with pytest.raises(RecipeError, match="feature levels"):
        BoundaryNetwork(backbone)


def test_the_boundary_of_a_flipped_image_is_flipped(network: BoundaryNetwork) -> None:
    image = torch.randn(2, 3, 32, 64)
    original, _ = predict_boundaries(network, image)
    flipped, _ = predict_boundaries(network, image.flip(3))
    torch.testing.assert_close(flipped.flip(2), original, rtol=1e-4, atol=1e-5)


def test_the_mean_displacement_is_subtracted_only_in_eval_mode(network: BoundaryNetwork) -> None:
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(image)[1]
        network.mean_displacement = torch.tensor([1.0, -2.0])
        after, training = network(image)[1], network.train()(image)[1]
    torch.testing.assert_close(before - after, torch.tensor([1.0, -2.0])[:, None, None].expand(2, 8, 8)[None])
    torch.testing.assert_close(training, before)


def test_training_does_not_change_the_backbone(network: BoundaryNetwork) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    boundary, displacement = network(torch.randn(2, 3, 32, 32))
    (boundary.sum() + displacement.sum()).backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.backbone.state_dict().items())


def test_a_loaded_network_predicts_the_same(network: BoundaryNetwork, tmp_path: Path) -> None:
    network.mean_displacement = torch.tensor([0.5, 1.5])
    network.save(tmp_path)
    image = torch.randn(1, 3, 40, 30)
    loaded = BoundaryNetwork.load(tmp_path)
    for expected, actual in zip(predict_boundaries(network, image), predict_boundaries(loaded, image), strict=True):
        torch.testing.assert_close(actual, expected)
