"""Listing images, and finding their masks."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tagmask.data.folder_reader import read_folders
from tagmask.data.image_files import ImageFiles, attach_masks
from tagmask.data.samples import PngMask, Sample
from tagmask.errors import DataError


def save_images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    return root


def test_results_of_tagmask_are_not_images(tmp_path: Path) -> None:
    """`tagmask run photos --out photos/run`, then the same again, or `predict` on the same folder."""
    root = save_images(tmp_path, "cat/1.jpg", "run/segment/masks/cat/1.png", "predicted/masks/1.png", "masks/1.png")
    (root / "run" / "run.json").write_text('{"format": 2, "tagmask": "0.2.0"}')
    (root / "predicted" / "legend.txt").write_text("0 0 0 0 background\n1 128 0 0 cat\n")
    assert ImageFiles(root).names == ["cat/1.jpg", "masks/1.png"]
    assert ImageFiles(root / "run").names == ["segment/masks/cat/1.png"]  # unless the folder itself is named
    assert read_folders(root, masks=root / "masks").problems == ()


def test_other_folders_with_the_same_files_are_images(tmp_path: Path) -> None:
    root = save_images(tmp_path, "a/1.jpg", "b/masks/2.jpg", "c/3.jpg")
    (root / "a" / "run.json").write_text('{"name": "my run"}')
    (root / "b" / "legend.txt").write_text("cat = red")
    (root / "c" / "legend.txt").write_text("0 0 0 0 background")
    assert ImageFiles(root).names == ["a/1.jpg", "b/masks/2.jpg", "c/3.jpg"]


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    files = ImageFiles(save_images(tmp_path, "images/a/1.jpg", "images/b/1.jpg", "2.jpg"))
    assert files.find("a/1.jpg") == "images/a/1.jpg"
    assert files.find("A/1") == "images/a/1.jpg"
    assert files.find("2") == "2.jpg"
    with pytest.raises(DataError, match=r"may be images/a/1\.jpg or images/b/1\.jpg"):
        files.find("1.jpg")


def test_masks_in_other_subfolders_are_found_by_unique_names(tmp_path: Path) -> None:
    save_images(tmp_path / "drawn", "animals/1.png", "animals/2.png", "plants/2.png")
    samples = [Sample("1", "1.jpg", ()), Sample("2", "2.jpg", ())]
    attached, problems = attach_masks(samples, [tmp_path / "drawn"], [])
    assert [sample.mask for sample in attached] == [PngMask(tmp_path / "drawn/animals/1.png"), None]
    assert problems == []
    attached, problems = attach_masks([Sample("x/3", "3.jpg", ())], [tmp_path / "drawn"], [])
    assert attached[0].mask is None
    assert "name the files after the images, for example x/3.png" in str(problems[0])
