"""What is said about the licenses of pretrained weights."""

from __future__ import annotations

import pytest

from tagmask.models.weights_license import restriction_of_weights


@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch14_reg4_dinov2"])
def test_permissive_licenses_need_no_word(name: str) -> None:
    assert restriction_of_weights(name) is None


def test_other_licenses_are_named() -> None:
    sentence = restriction_of_weights("vit_small_patch16_dinov3")
    assert sentence
    assert "'dinov3-license'" in sentence
    assert "https://huggingface.co/timm/vit_small_patch16_dinov3" in sentence


def test_weights_without_a_license() -> None:
    sentence = restriction_of_weights("test_resnet_without_config")
    assert sentence == (
        "timm gives no license for the weights of test_resnet_without_config: find out what they may be used for."
    )
