"""Models that make saliency maps."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tagmask.compute import Compute
from tagmask.errors import RecipeError
from tagmask.models import saliency as module
from tagmask.models.backbone import Backbone
from tagmask.models.saliency import MAX_TOKENS, REMBG_MODELS, Rembg, TokenCut, load_saliency_model
from tagmask.refine.map_cutting import refine_labels
from tagmask.refine.settings import CrfSettings


class ColorTokens(nn.Module):
    """In place of a ViT: its features are the mean colors of patches of 4 × 4 pixels."""

    mean, std, side_multiple = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.size = images.shape[2:]
        return nn.functional.avg_pool2d(images, 4)


def draw_square(size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """A red square on blue, and its pixels."""
    inside = np.zeros(size, bool)
    inside[8:24, 16:32] = True
    return np.where(inside[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8), inside


def test_tokencut_finds_a_square() -> None:
    image, inside = draw_square()
    saliency = TokenCut(ColorTokens(), Compute())(image)  # type: ignore[arg-type]
    assert saliency.dtype == np.float32
    assert ((saliency > 0.5) != inside).sum() == 4  # the bilinear map cuts the corners
    assert (saliency.min(), saliency.max()) == (0, 1)


def test_the_crf_refines_the_foreground() -> None:
    """The square is off the grid of the patches."""
    image, inside = np.roll(draw_square()[0], 2, (0, 1)), np.roll(draw_square()[1], 2, (0, 1))
    plain, refined = (TokenCut(ColorTokens(), Compute(), crf=crf)(image) for crf in (None, CrfSettings()))  # type: ignore[arg-type]
    expected = refine_labels(image, (plain > 0.5).astype(np.uint8), np.array([1]), CrfSettings())
    np.testing.assert_array_equal(refined, expected)
    assert ((refined > 0.5) != inside).sum() < ((plain > 0.5) != inside).sum()


def test_large_images_have_a_limited_number_of_tokens() -> None:
    tokens, image = ColorTokens(), draw_square((400, 480))[0]
    assert TokenCut(tokens, Compute())(image).shape == (400, 480)  # type: ignore[arg-type]
    assert 0.9 * MAX_TOKENS < tokens.size[0] * tokens.size[1] / 16 <= 1.05 * MAX_TOKENS


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_tokencut_on_networks_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = TokenCut(Backbone(name), Compute())
    assert model.is_cnn == (name == "test_resnet")
    saliency = model(np.random.default_rng(0).integers(0, 256, (70, 100, 3)).astype(np.uint8))
    assert saliency.shape == (70, 100)
    assert 0 < saliency.mean() < 1


def test_rembg_uses_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    rembg = pytest.importorskip("rembg")
    from rembg.sessions.base import BaseSession

    class RedSession(BaseSession):
        """In place of a network: the red channel."""

        def __init__(self, name: str) -> None:
            self.model_name = name

        def predict(self, img: Image.Image, *args: Any, **kwargs: Any) -> list[Image.Image]:
            return [img.getchannel("R")]

    monkeypatch.setattr(rembg, "new_session", RedSession)
    image, inside = draw_square()
    model = load_saliency_model("rembg:u2net", Compute())
    assert isinstance(model, Rembg)
    assert model.session.model_name == "u2net"
    np.testing.assert_array_equal(model(image), inside.astype(np.float32))


def test_our_models_of_rembg_exist_there_and_run_on_this_machine() -> None:
    sessions = pytest.importorskip("rembg.sessions").sessions
    assert all(sessions[name].is_local() and not sessions[name].requires_credentials() for name in REMBG_MODELS)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rembg:bria-rmbg", "the license of bria-rmbg permits non-commercial use only"),
        ("rembg:u2nett", "'u2nett' is no model of rembg for saliency maps: did you mean 'u2net'?"),
        ("rembg:sam", "'sam' is no model of rembg"),
        ("u2net", "'u2net' makes no saliency maps: give rembg:<model> or tokencut:<timm model>"),
        ("tokencut:", "'tokencut:' makes no saliency maps"),
        ("tokencut:no_such_vit", "'no_such_vit' is not a timm model"),
    ],
)
def test_other_models_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_saliency_model(name, Compute(), "none")
    assert sentence in str(error.value)


def test_rembg_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'pip install "tagmask\[rembg\]"'):
        Rembg("u2net")


def test_a_model_of_rembg_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rembg")

    def fail(name: str) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(sys.modules["rembg"], "new_session", fail)
    with pytest.raises(RecipeError, match=r"rembg could not load its model 'u2net' \(no connection\)"):
        Rembg("u2net")
