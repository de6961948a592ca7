"""The root of a data set is refused, and the right command is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tagmask.data.source import DataSource
from tagmask.errors import DataError


def make_files(root: Path, *names: str) -> Path:
    """Write the files of a data set; .jpg files are images."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            Image.new("RGB", (2, 2)).save(path)
        else:
            path.write_text("{}")
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["train2017/1.jpg", "val2017/2.jpg", "annotations/instances_val2017.json", "annotations/captions.json"],
            "is the root of a COCO download: .* {0}/val2017 --annotations {0}/annotations/instances_val2017.json",
        ),
        (
            ["images/train2017/1.jpg", "images/val2017/2.jpg", "annotations/instances_train2017.json"],
            "{0}/images/train2017 --annotations {0}/annotations/instances_train2017.json",
        ),
        (
            ["train/1.jpg", "valid/1.jpg", "train/_annotations.coco.json", "valid/_annotations.coco.json"],
            "{0}/train --annotations {0}/train/_annotations.coco.json",
        ),
        (["images/1.jpg", "instances.json"], "{0}/images --annotations {0}/instances.json"),
        (["VOC2007/JPEGImages/1.jpg", "VOC2012/JPEGImages/2.jpg"], "root of a VOC download: .*{0}/VOC2012 --split"),
        (["VOCdevkit/VOC2012/JPEGImages/2.jpg"], "{0}/VOCdevkit/VOC2012 --split train"),
        (["train/cat/1.jpg", "test/cat/2.jpg"], r"splits and not classes \(test, train\): name a split"),
        (["train/1.jpg", "val/2.jpg"], "splits and not classes .* {0}/train --tags tags.csv"),
        (["images/1.jpg", "masks/1.jpg"], "parts of a data set and not classes .* {0}/images --tags tags.csv"),
    ],
)
def test_roots_are_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    root = make_files(tmp_path, *names)
    with pytest.raises(DataError, match=expected.format(root)):
        DataSource(root=str(root)).read()


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "bus/1.jpg"],  # a class of VOC has the name of a split
        ["cat/1.jpg", "dog/1.jpg", "instances.json"],
        ["photos 2017/1.jpg", "cat/1.jpg"],
    ],
)
def test_classes_are_not_refused(tmp_path: Path, names: list[str]) -> None:
    root = make_files(tmp_path, *names)
    assert len(DataSource(root=str(root)).read().classes) == 2


def test_the_format_can_be_insisted_on(tmp_path: Path) -> None:
    root = make_files(tmp_path, "train/1.jpg", "test/1.jpg")
    assert DataSource(root=str(root), format="folders").read().classes == ("test", "train")
