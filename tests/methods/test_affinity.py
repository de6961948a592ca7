"""Test the method `affinity`: maps spread along the attention or the features of a network."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from tagmask.errors import RecipeError
from tagmask.maps import ResponseMaps
from tagmask.methods import affinity as module
from tagmask.methods.affinity import Affinity
from tagmask.models.backbone import Backbone
from tests.methods.contract import MakeContext, MethodContract


class TestFeatureAffinity(MethodContract):
    method = Affinity
    settings: ClassVar = {"of": "features", "output_stride": 8, "inference_batch_size": 2}
    trains = False


class TestAttentionAffinity(MethodContract):
    """Other seeds have other random weights, but the maps are those of the first stage."""

    method = Affinity
    settings: ClassVar = {"backbone": "test_vit", "weights": "none", "blocks": 2, "inference_batch_size": 2}
    trains = False


def uniform(grid: tuple[int, int]) -> module.AffinityOf:
    n = grid[0] * grid[1]
    return lambda images: (torch.ones(len(images), n, n), grid)


def test_uniform_affinity_leaves_nothing() -> None:
    """The map becomes its mean everywhere, and then 0, because each map is scaled from its minimum."""
    maps = ResponseMaps(np.array([1]), np.random.default_rng(0).random((1, 4, 6)).astype(np.float32), (16, 24))
    [result] = Affinity(box_threshold=None).spread_maps(uniform((4, 6)), torch.zeros(1, 3, 16, 24), [maps])
    assert result.size == maps.size
    np.testing.assert_allclose(result.maps, 0, atol=1e-4)


def test_identity_affinity_keeps_a_map() -> None:
    values = np.random.default_rng(0).random((2, 4, 6)).astype(np.float32)
    maps = ResponseMaps(np.array([1, 3]), values, (16, 24))

    def identity(images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.eye(24).expand(len(images), -1, -1), (4, 6)

    [result] = Affinity(box_threshold=None).spread_maps(identity, torch.zeros(1, 3, 16, 24), [maps])
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    np.testing.assert_allclose(result.maps, (values - low) / (high - low), atol=1e-4)


def test_a_flipped_image_has_flipped_maps() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", "none", 8).eval()
    method = Affinity(of="features", output_stride=8)
    images = torch.randn(1, 3, 32, 48)
    values = np.random.default_rng(0).random((1, 8, 12)).astype(np.float32)
    pair = [ResponseMaps(np.array([1]), v, (32, 48)) for v in (values, values[:, :, ::-1].copy())]
    affinity_of = method.affinity_of(backbone)
    [plain] = method.spread_maps(affinity_of, images, pair[:1])
    [flipped] = method.spread_maps(affinity_of, images.flip(3), pair[1:])
    np.testing.assert_allclose(flipped.maps[:, :, ::-1], plain.maps, atol=5e-3)  # scaled from nearly equal values


def test_large_images_are_reduced(
    make_context: MakeContext, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CELLS", 12)
    grids = []
    original = Affinity.spread_maps

    def spread_maps(self: Affinity, affinity_of: module.AffinityOf, images: torch.Tensor, maps: list[ResponseMaps]):
        grids.append(affinity_of(images)[1])
        return original(self, affinity_of, images, maps)

    monkeypatch.setattr(Affinity, "spread_maps", spread_maps)
    context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
    Affinity(of="features", output_stride=8).run(context)
    assert grids
    assert all(h * w <= 16 for h, w in grids)  # rounded up to whole cells


def test_attention_needs_a_vit(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
    with pytest.raises(RecipeError, match=r"'test_resnet' has no attention .* set of to features"):
        Affinity().run(context)
