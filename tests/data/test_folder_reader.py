"""Reading one folder per class."""

from pathlib import Path

import pytest
from PIL import Image

from tagmask.data.folder_reader import read_folders
from tagmask.errors import DataError


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


def save_images(root: Path, *names: str) -> Path:
    for name in names:
        save_image(root / name)
    return root


def problem_texts(problems: tuple[object, ...], root: Path) -> list[str]:
    return [f"{p.severity}: {p}".replace(str(root), ".") for p in problems]  # type: ignore[attr-defined]


def test_one_folder_per_class(tmp_path: Path) -> None:
    images = read_folders(save_images(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/deep/er/2.png", "Background/3.jpg"))
    assert images.classes == ("cat", "dog")
    assert [(s.id, s.tags) for s in images.samples] == [
        ("Background/3", ()),
        ("cat/1", (1,)),
        ("cat/deep/er/2", (1,)),
        ("dog/1", (2,)),
    ]
    assert images.problems == ()


def test_files_and_folders_that_are_not_read(tmp_path: Path) -> None:
    root = save_images(tmp_path, "cat/1.jpg", ".hidden/1.jpg", "cat/.2.jpg", "__MACOSX/1.jpg", "loose.jpg")
    (root / "cat" / "notes.txt").write_text("")
    (root / "Thumbs.db").write_text("")
    (root / "cat" / "1.psd").write_text("")
    (root / "empty").mkdir()
    images = read_folders(root)
    assert [s.id for s in images.samples] == ["cat/1"]
    assert problem_texts(images.problems, root) == [
        "error: ./loose.jpg: is not in a class folder; move it into one.",
        "warning: .: has 1 file of other formats (cat/1.psd); convert them to JPEG or PNG if they are images.",
        "warning: ./empty: holds no image; fill or remove the folder.",
    ]


def test_one_class_with_an_unusual_name(tmp_path: Path) -> None:
    images = read_folders(save_images(tmp_path, "<script>alert(1)<|script> 🐈/a.jpg"))
    assert images.classes == ("<script>alert(1)<|script> 🐈",)
    assert images.samples[0].tags == (1,)


def test_splits(tmp_path: Path) -> None:
    root = save_images(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/yak/2.jpg")
    val = read_folders(root, split="val")
    assert val.classes == ("cat", "dog", "yak")
    assert [(s.id, s.tags) for s in val.samples] == [("val/cat/1", (1,)), ("val/yak/2", (3,))]
    assert val.problems == ()
    assert (
        "look like splits but are read as classes (train, val)" in problem_texts(read_folders(root).problems, root)[0]
    )
    for split in ("test", "../x", "tra"):
        with pytest.raises(DataError, match="has no folder"):
            read_folders(root, split=split)


def test_class_list_and_masks(tmp_path: Path) -> None:
    root = save_images(tmp_path, "cat/1.jpg", "dgo/1.jpg", "masks/cat/1.png")
    (root / "classes.txt").write_text("dog\ncat\n")
    images = read_folders(root, masks=root / "masks")
    assert images.classes == ("dog", "cat")
    assert [(s.tags, s.mask is not None) for s in images.samples] == [((2,), True)]
    assert problem_texts(images.problems, root) == [
        "error: ./dgo/1.jpg: the tag 'dgo' is not one of the classes; "
        "correct it or add it to the class list: did you mean 'dog'?"
    ]


def test_images_without_class_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tags.*image,tags.*cat/1\.jpg.*JPEGImages.*COCO"):
        read_folders(save_images(tmp_path, "1.jpg"))
