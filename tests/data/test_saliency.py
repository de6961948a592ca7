"""Reading saliency maps of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.saliency import read_and_resize_saliency
from tagmask.errors import DataError


@pytest.mark.parametrize("size", [(15, 20), (30, 40), (60, 80), (31, 41), (1, 1)])
def test_a_map_of_any_size_is_resized_to_its_image(tmp_path: Path, size: tuple[int, int]) -> None:
    """The result equals that of Pillow's bilinear resize."""
    grey = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    saliency = read_and_resize_saliency(tmp_path / "a.png", (30, 40))
    assert saliency.dtype == np.float32
    expected = Image.fromarray(grey.astype(np.float32)).resize((40, 30), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(saliency, np.asarray(expected) / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "fits"), [((50, 100), True), ((50, 102), True), ((50, 105), False), ((100, 50), False)]
)
def test_a_map_must_have_the_aspect_ratio_of_its_image(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    Image.new("L", size[::-1]).save(tmp_path / "a.png")
    if fits:
        assert not read_and_resize_saliency(tmp_path / "a.png", (200, 400)).any()
    else:
        message = rf"a\.png has {size[1]}×{size[0]} pixels and its image 400×200; give both the same aspect ratio\.$"
        with pytest.raises(DataError, match=message):
            read_and_resize_saliency(tmp_path / "a.png", (200, 400))


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for name in ("a.png", "b.png"):
        with pytest.raises(DataError, match=rf"{name} (is empty|does not exist)"):
            read_and_resize_saliency(tmp_path / name, (8, 8))
