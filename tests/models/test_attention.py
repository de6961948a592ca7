"""Test the recorded attention against timm's own extraction, and against attention computed by hand."""

from __future__ import annotations

import pytest
import torch
from timm.utils import AttentionExtract

from tagmask.errors import RecipeError
from tagmask.models.attention import AttentionRecorder
from tagmask.models.backbone import Backbone

TINY = {"embed_dim": 24, "num_heads": 2, "depth": 3}


def make(name: str = "vit_tiny_patch16_224", **options: object) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, options={**TINY, **options}).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_it_is_the_attention_of_timm(name: str, options: dict[str, object]) -> None:
    backbone = make(name, **options)
    images = torch.randn(2, 3, 48, 64)
    prefix = backbone.net.num_prefix_tokens
    reference = make(name, **options).net
    for block in reference.blocks:  # type: ignore[union-attr, operator]
        block.attn.fused_attn = False
    extract = AttentionExtract(reference, ["blocks.[12].attn.attn_drop"], method="hook")
    with torch.inference_mode():
        expected = torch.stack(list(extract(images).values())).mean((0, 2))[:, prefix:, prefix:]
        attention, grid = AttentionRecorder(backbone, 2)(images)
    assert grid == (3, 4)
    torch.testing.assert_close(attention, expected)


def test_a_second_call_starts_anew() -> None:
    recorder, images = AttentionRecorder(make(), 3), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(recorder(images)[0], recorder(images)[0])


def test_rotary_networks_have_attention(recwarn: pytest.WarningsRecorder) -> None:
    """DINOv3 is an Eva network of timm: rotary position embedding, and register tokens."""
    backbone = make("vit_small_patch16_dinov3")
    with torch.inference_mode():
        attention, grid = AttentionRecorder(backbone, 2)(torch.randn(1, 3, 48, 32))
    assert grid == (3, 2)
    assert attention.shape == (1, 6, 6)
    assert (attention >= 0).all()
    assert (attention.sum(2) < 1).all()  # the rest goes to the prefix tokens


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_networks_without_attention_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"has no attention .* set of to features, or choose a ViT"):
        AttentionRecorder(Backbone(name), 2)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(RecipeError, match="has only 3 blocks"):
        AttentionRecorder(make(), 8)
