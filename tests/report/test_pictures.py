from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tagmask.data.scenes import make_scene
from tagmask.label_map import voc_palette
from tagmask.report.pictures import Thumbnail, thumbnail


def decode(small: Thumbnail) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(small.uri.partition(",")[2])))


def test_mask_keeps_all_colors() -> None:
    colors = np.array(voc_palette(), np.uint8).reshape(256, 3)[make_scene(2).mask]
    small = thumbnail(colors)
    assert small.uri.startswith("data:image/png;base64,")
    assert small.crisp
    np.testing.assert_array_equal(np.array(decode(small).convert("RGB")), colors)


def test_large_mask_is_resized_without_new_colors() -> None:
    colors = np.array(voc_palette(), np.uint8).reshape(256, 3)[make_scene(2, size=700).mask]
    small = thumbnail(colors)
    picture = decode(small)
    assert picture.size == (small.width, small.height) == (320, 320)
    assert not small.crisp
    assert {tuple(c) for c in np.array(picture.convert("RGB")).reshape(-1, 3)} <= {
        tuple(c) for c in colors.reshape(-1, 3)
    }


def test_photograph_becomes_a_small_jpeg() -> None:
    image = make_scene(1, size=640).image
    small = thumbnail(image)
    assert small.uri.startswith("data:image/jpeg;base64,")
    assert len(small.uri) < 60_000
    expected = np.array(Image.fromarray(image).resize((320, 320), Image.Resampling.BOX), int)
    assert np.abs(np.array(decode(small)) - expected).mean() < 4


@pytest.mark.parametrize(("shape", "size"), [((1, 1), (1, 1)), ((3, 4000), (320, 1)), ((4000, 100), (12, 480))])
def test_unusual_shapes(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert decode(thumbnail(np.zeros((*shape, 3), np.uint8))).size == size


def test_other_arrays_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4\] uint8, not \[H, W, 3\]"):
        thumbnail(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        thumbnail(np.zeros((4, 4, 3)))
