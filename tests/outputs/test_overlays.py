"""Tests of overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.scenes import make_scene
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.overlays import overlay, write_overlay

GRAY = np.full((12, 14, 3), 100, np.uint8)


def test_colors_outline_and_background_by_hand() -> None:
    labels = np.zeros((12, 14), np.uint8)
    labels[2:8, 3:9] = 1  # the VOC color of class 1 is (128, 0, 0)
    drawn = overlay(GRAY, labels, opacity=0.25)
    inner = np.zeros_like(labels, bool)
    inner[3:7, 4:8] = True
    assert (drawn[inner] == [107, 75, 75]).all()  # 100 · 0.75 + color · 0.25
    assert (drawn[(labels == 1) & ~inner] == [192, 128, 128]).all()  # halfway from the color to white
    assert (drawn[labels == 0] == 100).all()


def test_ignored_pixels_are_hatched_and_both_sides_of_a_boundary_are_outlined() -> None:
    labels = np.full((12, 14), IGNORE_INDEX, np.uint8)
    labels[:, :5], labels[:, 5:9] = 1, 2
    drawn = overlay(GRAY, labels)
    hatched = drawn[:, 9:]
    assert (hatched == hatched[..., :1]).all(), "the lines are black and white"
    assert set(np.unique(hatched)) == {30, 100, 208}  # 100 · 0.3 + 0 or 255 · 0.7, rounded
    assert (hatched == 208).mean() == pytest.approx(1 / 6, abs=0.04)
    for column, color in ((4, [192, 128, 128]), (5, [128, 192, 128]), (8, [128, 192, 128])):
        assert (drawn[:, column] == color).all()


def test_the_input_image_does_not_change_and_opacity_0_draws_only_outlines() -> None:
    scene = make_scene(3)
    before = scene.image.copy()
    assert (overlay(scene.image, np.zeros_like(scene.mask)) == before).all()
    unchanged = (overlay(scene.image, scene.mask, opacity=0) == before).all(-1)
    assert 0.8 < unchanged.mean() < 1
    np.testing.assert_array_equal(scene.image, before)


def test_an_image_of_one_pixel() -> None:
    assert overlay(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.uint8)).tolist() == [[[64, 0, 0]]]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png"])
def test_the_suffix_selects_the_format(tmp_path: Path, suffix: str) -> None:
    scene = make_scene(1)
    path = tmp_path / "a" / f"overlay{suffix}"
    write_overlay(path, scene.image, scene.mask)
    with Image.open(path) as picture:
        assert picture.format == ("PNG" if suffix == ".png" else "JPEG")
        difference = np.abs(np.array(picture).astype(int) - overlay(scene.image, scene.mask))
    assert difference.mean() < (0.001 if suffix == ".png" else 6)
    assert list(path.parent.iterdir()) == [path]


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        write_overlay(tmp_path / "a.gif", GRAY, np.zeros((12, 14), np.uint8))
    with pytest.raises(ValueError, match=r"\[12, 14, 3\] uint8, labels are \[14, 12\]"):
        overlay(GRAY, np.zeros((14, 12), np.uint8))
