"""How pictures are drawn and embedded: sizes, colors, outlines."""

from __future__ import annotations

import base64
import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from tagmask.data.scenes import make_scene
from tagmask.report.colors import css_color, label_colors
from tagmask.report.drawing import display_size, draw_mask, resize_picture
from tagmask.report.pictures import Thumbnail, thumbnail

# How people with dichromacy see linear RGB: Machado, Oliveira and Fernandes, "A Physiologically-based Model for
# Simulation of Color Vision Deficiency", IEEE TVCG 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ.sum(1)


def cielab(colors: np.ndarray, vision: str) -> np.ndarray:
    """Return colors [N, 3] uint8 sRGB in CIELAB, as people with this vision see them."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    ratio = seen @ XYZ.T / WHITE
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def decode(small: Thumbnail) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(small.uri.partition(",")[2]))).convert("RGB"))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("num_classes", "smallest"), [(6, 42), (12, 22)])
def test_colors_of_few_classes_can_be_told_apart(vision: str, num_classes: int, smallest: float) -> None:
    colors = cielab(label_colors()[1 : num_classes + 1], vision)
    differences = [np.linalg.norm(a - b) for a, b in combinations(colors, 2)]
    assert min(differences) > smallest  # 2.3 is just noticeable


def test_cielab_of_the_test_itself() -> None:
    white, red = cielab(np.array([[255, 255, 255], [255, 0, 0]]), "normal")
    np.testing.assert_allclose(white, (100, 0, 0), atol=0.01)
    np.testing.assert_allclose(red, (53.24, 80.09, 67.20), atol=0.05)  # the published values of sRGB red


def test_every_label_has_a_color() -> None:
    colors = label_colors()
    assert colors.shape == (256, 3)
    assert css_color(1) == "#ff694b"
    assert len(np.unique(colors[1:255], axis=0)) > 200


@pytest.mark.parametrize("gray", range(0, 256, 15))
@pytest.mark.parametrize("label", range(1, 13))
def test_outline_is_visible_on_every_gray(gray: int, label: int) -> None:
    """Along the outline there are two neighbors whose luminance differs by at least half of the range."""
    labels = np.zeros((240, 240), np.uint8)
    labels[60:180, 60:180] = label
    drawn = draw_mask(np.full((240, 240, 3), gray, np.uint8), labels)
    luminance = np.array(Image.fromarray(drawn).convert("L"), int)
    assert np.abs(np.diff(luminance[120])).max() > 127
    assert np.abs(np.diff(luminance[:, 120])).max() > 127


def test_outlines_and_colors_of_a_mask() -> None:
    labels = np.zeros((400, 400), np.uint8)
    labels[100:200, 100:300], labels[200:300, 100:300], labels[350:, 350:] = 1, 2, 255
    image = np.full((400, 400, 3), 100, np.uint8)
    drawn = draw_mask(image, labels)
    mixed = {label: np.rint(50 + label_colors()[label] / 2) for label in (1, 2)}
    np.testing.assert_array_equal(drawn[150, 200], mixed[1])
    np.testing.assert_array_equal(drawn[250, 200], mixed[2])
    assert drawn[50, 50].tolist() == [100, 100, 100]
    assert drawn[150, 97:103].tolist() == [[100] * 3, [0] * 3, [0] * 3, [255] * 3, [255] * 3, mixed[1].tolist()]
    # between two classes: white, black, black, white
    assert drawn[197:203, 200, 0].tolist() == [mixed[1][0], 255, 0, 0, 255, mixed[2][0]]
    hatched = drawn[360:, 360:].reshape(-1, 3)
    assert len(np.unique(hatched, axis=0)) == 3  # the image, and lines that are lighter and darker
    with pytest.raises(ValueError, match=r"image is \[400, 400, 3\], labels are \[3, 3\]"):
        draw_mask(image, np.zeros((3, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (400, 400)), ((96, 96), (384, 384)), ((375, 500), (300, 400)), ((1000, 10), (480, 5)),
     ((3, 4000), (1, 400)), ((480, 400), (480, 400)), ((250, 201), (250, 201))],
)  # fmt: skip
def test_display_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert display_size(size) == expected
    image = np.zeros((*size, 3), np.uint8)
    assert resize_picture(image).shape == (*expected, 3)
    assert draw_mask(image, np.ones(size, np.uint8)).shape == (*expected, 3)


def test_thumbnail_is_a_small_webp() -> None:
    image = make_scene(1, size=400).image
    small = thumbnail(image)
    assert small.uri.startswith("data:image/webp;base64,")
    assert (small.width, small.height) == (400, 400)
    assert len(small.uri) < 60_000
    assert np.abs(decode(small).astype(int) - image).mean() < 5


def test_other_arrays_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4\] uint8, not \[H, W, 3\]"):
        thumbnail(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        thumbnail(np.zeros((4, 4, 3)))
