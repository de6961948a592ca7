"""The images of a list, for `tagmask predict --split`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import SHARED

from tagmask.data.new_images import find_new_images
from tagmask.errors import DataError


def save_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(folder / name)


def test_lists_of_voc_need_no_tags(tmp_path: Path) -> None:
    save_images(tmp_path / "JPEGImages", "2008_000001.jpg", "2008_000006.jpg", "2008_000011.jpg")
    save_images(tmp_path / "SegmentationClass", "2008_000001.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("2008_000011\n2008_000006\n")
    images = find_new_images([str(tmp_path)], ("cat",), split="test")
    paths = [str(tmp_path / "JPEGImages" / f"2008_0000{i}.jpg") for i in ("11", "06")]
    assert [(sample.id, sample.image, sample.tags) for sample in images.samples] == [
        ("2008_000011", paths[0], None), ("2008_000006", paths[1], None),
    ]  # fmt: skip
    assert images.problems == ()
    (tmp_path / "tags.csv").write_text("image,tags\n2008_000001,cat\n2008_000006,cat\n")
    tagged = find_new_images([str(tmp_path)], ("cat",), str(tmp_path / "tags.csv"), split="test")
    assert [sample.tags for sample in tagged.samples] == [None, (1,)]
    with pytest.raises(DataError, match=r"no split list 'tset' under .*ImageSets: did you mean 'test'"):
        find_new_images([str(tmp_path)], ("cat",), split="tset")


def test_masks_in_the_layout_of_voc_are_no_images(tmp_path: Path) -> None:
    save_images(tmp_path / "JPEGImages", "a.jpg")
    save_images(tmp_path / "SegmentationClass", "a.png")
    images = find_new_images([str(tmp_path)], ("cat",))
    assert [sample.image for sample in images.samples] == [str(tmp_path / "JPEGImages" / "a.jpg")]


def test_lists_of_other_folders(tmp_path: Path) -> None:
    save_images(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "list.txt").write_text("a/2.jpg\n\nb/1\nb/3.jpg\n")
    images = find_new_images([str(tmp_path / "photos")], ("cat",), split=str(tmp_path / "list.txt"))
    assert [sample.id for sample in images.samples] == ["a/2", "b/1"]
    assert [problem.severity for problem in images.problems] == ["error"]
    assert "list.txt, line 4: there is no image 'b/3.jpg'" in str(images.problems[0])


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    save_images(tmp_path, "1.jpg")
    folder = str(tmp_path)
    with pytest.raises(DataError, match=r"there is no list 'none\.txt', neither in the current folder nor in"):
        find_new_images([folder], ("cat",), split="none.txt")
    for paths in ([folder, folder], ["https://host/1.jpg"]):
        with pytest.raises(DataError, match=r"names images of one folder; name the folder, and nothing else\.$"):
            find_new_images(paths, ("cat",), split="list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no image"):
        find_new_images([folder], ("cat",), split="list.txt")
    with pytest.raises(DataError, match=r"1\.jpg is a file, not a folder"):
        find_new_images([str(tmp_path / "1.jpg")], ("cat",), split="list.txt")


@pytest.mark.skipif(not (SHARED / "data" / "voc").is_dir(), reason="needs the photographs")
def test_val_list_of_the_photographs() -> None:
    images = find_new_images([str(SHARED / "data" / "voc")], ("cat",), split="val")
    listed = (SHARED / "data" / "voc" / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert [sample.id for sample in images.samples] == listed
    assert images.problems == ()
