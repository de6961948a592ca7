"""Tests of `ResponseMaps`: files, upsampling, label maps, figures."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tagmask.maps
from tagmask.maps import ResponseMaps, grid_size, strongest_activation, upsample


def random_maps(
    size: tuple[int, int] = (10, 7), classes: tuple[int, ...] = (2, 5), background: bool = False
) -> ResponseMaps:
    rng = np.random.default_rng(0)
    grid = grid_size(size)
    background_map = rng.random(grid).astype(np.float32) if background else None
    maps = rng.random((len(classes), *grid)).astype(np.float32)
    return ResponseMaps(np.array(classes, int), maps, size, background_map)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("classes", [(2, 5), ()])
def test_load_returns_what_save_wrote(tmp_path: Path, classes: tuple[int, ...], background: bool) -> None:
    maps = random_maps(classes=classes, background=background)
    maps.save(tmp_path / "sub" / "a.safetensors")
    read = ResponseMaps.load(tmp_path / "sub" / "a.safetensors")
    assert read.size == (10, 7)
    assert read.classes.tolist() == list(classes)
    assert read.maps.dtype == np.float16
    np.testing.assert_array_equal(read.maps, maps.maps.astype(np.float16))
    assert (read.background is None) == (maps.background is None)
    if maps.background is not None:
        np.testing.assert_allclose(read.background, maps.background, atol=5e-4)  # half of 2^-10


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps are \[1, 2, 2\]; 1 classes on an image of 10×7 need \[1, 3, 2\]"):
        ResponseMaps(np.array([1]), np.zeros((1, 2, 2)), (10, 7))
    with pytest.raises(ValueError, match="background"):
        ResponseMaps(np.array([1]), np.zeros((1, 3, 2)), (10, 7), np.zeros((2, 2)))


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((4, 5), (1, 2)), ((375, 500), (94, 125))])
def test_grid_size_is_a_quarter_rounded_up(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert grid_size(size) == grid


def test_full_size_by_hand() -> None:
    # Pixel x is at (x + 0.5) / 4 − 0.5 on the grid; between the cell centers 0 and 1 the map rises linearly.
    maps = ResponseMaps(np.array([1]), np.array([[[0.0, 1.0]]]), (3, 7))
    expected = [0, 0, 0.125, 0.375, 0.625, 0.875, 1]
    np.testing.assert_allclose(maps.full_size(), np.broadcast_to(expected, (1, 3, 7)), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_upsample_equals_bilinear_resizing_in_pillow(h: int, w: int, down: int, right: int) -> None:
    grid = np.random.default_rng(h * w).random((h, w)).astype(np.float32)
    pillow = np.array(Image.fromarray(grid).resize((4 * w, 4 * h), Image.Resampling.BILINEAR))
    size = (4 * h - down, 4 * w - right)
    np.testing.assert_allclose(upsample(grid[None], size)[0], pillow[: size[0], : size[1]], atol=1e-5)


def constant_maps(*values: float, background: float | None = None) -> ResponseMaps:
    """Maps with one value everywhere, of classes 3, 4, ..."""
    maps = np.array(values, np.float32)[:, None, None]
    background_map = None if background is None else np.array([[background]], np.float32)
    return ResponseMaps(np.arange(3, 3 + len(values)), maps, (2, 2), background_map)


@pytest.mark.parametrize(
    ("maps", "threshold", "label"),
    [
        ((0.5, 0.4), 0.3, 3),
        ((0.4, 0.5), 0.3, 4),
        ((0.25, 0.1), 0.25, 0),  # background wins a tie
        ((0.25, 0.25), 0.2, 3),  # the lower class id wins a tie
        ((0.0, 0.0), 0.0, 0),
        ((1.0, 0.5), 1.0, 0),
        ((), 0.3, 0),
    ],
)
def test_label_map_at_a_threshold(maps: tuple[float, ...], threshold: float, label: int) -> None:
    labels = constant_maps(*maps).label_map(threshold)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[label] * 2] * 2


@pytest.mark.parametrize(("alpha", "label"), [(0.5, 0), (0.55, 0), (0.56, 3), (1, 3), (16, 3)])
def test_label_map_by_the_rule_of_psa(alpha: float, label: int) -> None:
    # The activation of the background is (1 − 0.6)^α, which equals 0.6 at α = ln 0.6 / ln 0.4 = 0.5575.
    assert constant_maps(0.6, 0.2).label_map(alpha=alpha).tolist() == [[label] * 2] * 2
    assert constant_maps().label_map(alpha=alpha).tolist() == [[0] * 2] * 2


@pytest.mark.parametrize(("background", "label"), [(0.4, 3), (0.5, 0), (0.6, 0)])
def test_label_map_with_a_background_map(background: float, label: int) -> None:
    assert constant_maps(0.5, background=background).label_map().tolist() == [[label] * 2] * 2


def test_label_map_needs_exactly_one_rule() -> None:
    for maps, arguments in ((constant_maps(0.5), {}), (constant_maps(0.5), {"threshold": 0.1, "alpha": 2.0})):
        with pytest.raises(ValueError, match="one of threshold and alpha"):
            maps.label_map(**arguments)


def test_label_map_cuts_the_upsampled_maps() -> None:
    maps = ResponseMaps(np.array([7]), np.array([[[0.0, 1.0]]]), (3, 7))
    assert maps.label_map(0.5).tolist() == [[0, 0, 0, 0, 7, 7, 7]] * 3


@pytest.mark.parametrize("classes", [(), (1, 2)])
def test_figure_has_the_size_of_the_image(classes: tuple[int, ...]) -> None:
    image = np.full((10, 7, 3), 200, np.uint8)
    figure = random_maps(classes=classes).figure(image)
    assert figure.size == (7, 10)
    assert figure.mode == "RGB"


def test_figure_gets_warmer_with_the_activation() -> None:
    maps = ResponseMaps(np.array([1]), np.array([[[0.0, 0.0, 1.0, 1.0]]]), (4, 16))
    pixels = np.array(maps.figure(np.full((4, 16, 3), 128, np.uint8))).astype(int)
    cold, hot = pixels[0, 0], pixels[0, -1]
    assert hot[0] > hot[2]
    assert cold[2] > cold[0]


def test_maps_may_be_views_of_torch_tensors() -> None:
    maps = torch.rand(2, 6, 4).numpy()[:, ::2, ::2]
    assert ResponseMaps(np.array([1, 2]), maps, (10, 7)).full_size().shape == (2, 10, 7)


def test_strongest_activation_names_the_first_of_equal_maps() -> None:
    maps = np.array([[[0.2, 0.0]], [[0.2, 0.0]], [[0.1, 0.0]]], np.float32)
    highest, index = strongest_activation(maps, (1, 8))
    assert highest[0, [0, 7]].tolist() == pytest.approx([0.2, 0])
    assert index[0, [0, 7]].tolist() == [0, -1]


@pytest.mark.parametrize("size", [(10, 7), (1, 1), (400, 3)])
@pytest.mark.parametrize("classes", [(), (4,), (1, 2, 17)])
def test_notebooks_show_one_heat_map_per_class(classes: tuple[int, ...], size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(random_maps(size, classes)._repr_png_())) as picture:
        assert picture.format == "PNG"
        one_panel = Image.open(io.BytesIO(random_maps(size, (1,))._repr_png_())).width
        assert len(classes) <= 1 or picture.width > len(classes) * one_panel


def test_the_heat_map_in_a_notebook_is_warm_where_the_class_is_active() -> None:
    maps = ResponseMaps(np.array([1]), np.array([[[0.0, 0.0, 1.0, 1.0]]]), (4, 16))
    pixels = np.array(Image.open(io.BytesIO(maps._repr_png_()))).astype(int)
    left, right = pixels[-1, 0], pixels[-1, -1]
    assert left[2] > left[0]
    assert right[0] > right[2]


@pytest.mark.parametrize("module", ["tagmask.maps", "tagmask.refine.map_cutting"])
def test_importing_does_not_import_torch(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)"], check=True)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(tagmask.maps)
    assert result.attempted
    assert not result.failed
