"""What is said about the licenses of pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagmask.models.weights_license import restriction_of_hub_model, restriction_of_weights


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
        "the license of the weights of test_resnet_without_config is not known: find out what they may be used for."
    )


def test_sam_3_is_restricted_whatever_its_readme_says(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert restriction_of_hub_model(str(tmp_path), "sam2") is None
    sentence = restriction_of_hub_model(str(tmp_path), "sam3_video")
    assert sentence
    assert "'SAM License'" in sentence


def test_a_model_without_a_readme(tmp_path: Path) -> None:
    sentence = restriction_of_hub_model(str(tmp_path), "sam2")
    assert sentence == f"the license of the weights of {tmp_path} is not known: find out what they may be used for."
