"""Reading a user's own regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.region_files import read_regions, region_files_fingerprint, write_regions
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError

NUMBERS = np.array([[0, 1, 1], [300, 300, 1]])


def test_a_file_of_numbers_is_one_layer(tmp_path: Path) -> None:
    Image.fromarray(NUMBERS.astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_regions(tmp_path, "a", (2, 3)), NUMBERS[None])


def test_a_file_of_another_size_is_resized(tmp_path: Path) -> None:
    Image.fromarray(np.kron(NUMBERS, np.ones((5, 4))).astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_regions(tmp_path, "a", (2, 3)), NUMBERS[None])


def test_a_folder_of_masks_can_overlap(tmp_path: Path) -> None:
    (tmp_path / "x" / "a").mkdir(parents=True)
    for i, row in enumerate(([255, 255, 0], [0, 255, 255], [0, 0, 1])):
        Image.fromarray(np.array([row], np.uint8)).save(tmp_path / "x" / "a" / f"{i}.png")
    np.testing.assert_array_equal(read_regions(tmp_path, "x/a", (1, 3)), [[[1, 1, 2]], [[0, 1, 1]]])


def test_missing_regions_and_pictures_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no regions of b: give b.png, or a folder b of masks"):
        read_regions(tmp_path, "b", (2, 3))
    Image.new("RGB", (3, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png has the color mode RGB; save it as a grey PNG"):
        read_regions(tmp_path, "b", (2, 3))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png"):
        read_regions(tmp_path, "b", (2, 3))


def test_the_fingerprint_changes_with_the_content(tmp_path: Path, toy_images: TaggedImages) -> None:
    name = toy_images.samples[0].id
    Image.fromarray(NUMBERS.astype(np.uint16)).save(tmp_path / f"{name}.png")
    first = region_files_fingerprint(tmp_path, toy_images)
    assert region_files_fingerprint(tmp_path, toy_images) == first
    Image.fromarray(NUMBERS.astype(np.uint16) + 1).save(tmp_path / f"{name}.png")
    assert region_files_fingerprint(tmp_path, toy_images) != first


@pytest.mark.parametrize("num_layers", [0, 1, 3, 60])
def test_written_layers_are_read_again(num_layers: int, tmp_path: Path) -> None:
    """Of more than 50 layers, the first 50."""
    regions = np.random.default_rng(0).integers(0, 60000, (num_layers, 2, 3)).astype(np.int32)
    write_regions(tmp_path / "x" / "a.png", regions)
    expected = regions[:50] if num_layers else np.zeros((1, 2, 3), np.int32)
    np.testing.assert_array_equal(read_regions(tmp_path, "x/a", (2, 3)), expected)
