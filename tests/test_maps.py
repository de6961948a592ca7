"""`ResponseMaps`: its ways to and from disk, to a label map, to a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagmask.maps import ResponseMaps, grid_size, upsample


def some_maps(size: tuple[int, int] = (10, 7), classes: tuple[int, ...] = (2, 5), background: bool = False):
    rng = np.random.default_rng(0)
    grid = grid_size(size)
    own = rng.random(grid).astype(np.float32) if background else None
    return ResponseMaps(np.array(classes, int), rng.random((len(classes), *grid)).astype(np.float32), size, own)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("classes", [(2, 5), ()])
def test_it_comes_back_from_disk(tmp_path: Path, classes: tuple[int, ...], background: bool) -> None:
    maps = some_maps(classes=classes, background=background)
    maps.save(tmp_path / "sub" / "a.safetensors")
    read = ResponseMaps.load(tmp_path / "sub" / "a.safetensors")
    assert read.size == (10, 7)
    assert read.classes.tolist() == list(classes)
    assert read.maps.dtype == np.float16
    np.testing.assert_array_equal(read.maps, maps.maps.astype(np.float16))
    assert (read.background is None) == (maps.background is None)
    if maps.background is not None:
        np.testing.assert_allclose(read.background, maps.background, atol=5e-4)  # half of 2^-10


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"maps are \[1, 2, 2\]; 1 classes on an image of 10×7 need \[1, 3, 2\]"):
        ResponseMaps(np.array([1]), np.zeros((1, 2, 2)), (10, 7))
    with pytest.raises(ValueError, match="background"):
        ResponseMaps(np.array([1]), np.zeros((1, 3, 2)), (10, 7), np.zeros((2, 2)))


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((4, 5), (1, 2)), ((375, 500), (94, 125))])
def test_the_grid_is_a_quarter_rounded_up(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert grid_size(size) == grid


def test_full_size_by_hand() -> None:
    # Pixel x lies at (x + 0.5) / 4 − 0.5 on the grid; between the centres 0 and 1 the map rises evenly.
    maps = ResponseMaps(np.array([1]), np.array([[[0.0, 1.0]]]), (3, 7))
    expected = [0, 0, 0.125, 0.375, 0.625, 0.875, 1]
    np.testing.assert_allclose(maps.full_size(), np.broadcast_to(expected, (1, 3, 7)), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_full_size_is_pillow_s_bilinear(h: int, w: int, down: int, right: int) -> None:
    grid = np.random.default_rng(h * w).random((h, w)).astype(np.float32)
    pillow = np.array(Image.fromarray(grid).resize((4 * w, 4 * h), Image.Resampling.BILINEAR))
    size = (4 * h - down, 4 * w - right)
    np.testing.assert_allclose(upsample(grid[None], size)[0], pillow[: size[0], : size[1]], atol=1e-5)


def constant(*values: float, background: float | None = None) -> ResponseMaps:
    """Maps that are the same in every place, of classes 3, 4, ..."""
    maps = np.array(values, np.float32)[:, None, None]
    own = None if background is None else np.array([[background]], np.float32)
    return ResponseMaps(np.arange(3, 3 + len(values)), maps, (2, 2), own)


@pytest.mark.parametrize(
    ("maps", "threshold", "label"),
    [
        ((0.5, 0.4), 0.3, 3),
        ((0.4, 0.5), 0.3, 4),
        ((0.25, 0.1), 0.25, 0),  # a tie is background's
        ((0.25, 0.25), 0.2, 3),  # between classes, the lower id's
        ((0.0, 0.0), 0.0, 0),
        ((1.0, 0.5), 1.0, 0),
        ((), 0.3, 0),
    ],
)
def test_label_map_at_a_threshold(maps: tuple[float, ...], threshold: float, label: int) -> None:
    labels = constant(*maps).label_map(threshold)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[label] * 2] * 2


@pytest.mark.parametrize(("alpha", "label"), [(0.5, 0), (0.55, 0), (0.56, 3), (1, 3), (16, 3)])
def test_label_map_by_psa_s_rule(alpha: float, label: int) -> None:
    # The background's activation is (1 − 0.6)^α: it is 0.6, too, at α = ln 0.6 / ln 0.4 = 0.5575.
    assert constant(0.6, 0.2).label_map(alpha=alpha).tolist() == [[label] * 2] * 2
    assert constant().label_map(alpha=alpha).tolist() == [[0] * 2] * 2


@pytest.mark.parametrize(("background", "label"), [(0.4, 3), (0.5, 0), (0.6, 0)])
def test_label_map_with_a_map_of_the_background(background: float, label: int) -> None:
    assert constant(0.5, background=background).label_map().tolist() == [[label] * 2] * 2


def test_label_map_needs_one_rule() -> None:
    for maps, arguments in ((constant(0.5), {}), (constant(0.5), {"threshold": 0.1, "alpha": 2.0})):
        with pytest.raises(ValueError, match="one of threshold and alpha"):
            maps.label_map(**arguments)


def test_label_map_cuts_at_pixels_not_at_the_grid() -> None:
    maps = ResponseMaps(np.array([7]), np.array([[[0.0, 1.0]]]), (3, 7))
    assert maps.label_map(0.5).tolist() == [[0, 0, 0, 0, 7, 7, 7]] * 3


@pytest.mark.parametrize("classes", [(), (1, 2)])
def test_figure_is_a_picture_of_the_image_s_size(classes: tuple[int, ...]) -> None:
    image = np.full((10, 7, 3), 200, np.uint8)
    figure = some_maps(classes=classes).figure(image)
    assert figure.size == (7, 10)
    assert figure.mode == "RGB"


def test_figure_gets_warmer_with_the_activation() -> None:
    maps = ResponseMaps(np.array([1]), np.array([[[0.0, 0.0, 1.0, 1.0]]]), (4, 16))
    pixels = np.array(maps.figure(np.full((4, 16, 3), 128, np.uint8))).astype(int)
    cold, hot = pixels[0, 0], pixels[0, -1]
    assert hot[0] > hot[2]
    assert cold[2] > cold[0]


def test_maps_may_be_torch_s_views() -> None:
    maps = torch.rand(2, 6, 4).numpy()[:, ::2, ::2]
    assert ResponseMaps(np.array([1, 2]), maps, (10, 7)).full_size().shape == (2, 10, 7)
