"""Where held-out images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tagmask.data.held_out import held_out_source
from tagmask.data.source import DataSource, align_classes
from tagmask.errors import DataError


def save_images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    return root


@pytest.fixture
def training(tmp_path: Path) -> DataSource:
    """Two training images, with a table of both and of two held-out images in the same folder."""
    root = save_images(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    table = tmp_path / "tags.csv"
    table.write_text("image,tags,split\n1.jpg,dog,train\n2.jpg,cat,train\n3.jpg,dog,val\n")
    return DataSource(root=str(root), tags=str(table), split="train")


def test_no_held_out_images(training: DataSource) -> None:
    assert held_out_source(training, None) is None
    with pytest.raises(DataError, match="the masks drawn have no held-out images: add --val FOLDER or --val-tags FILE"):
        held_out_source(training, None, masks="drawn")


@pytest.mark.parametrize(
    ("val", "arguments", "changes"),
    [
        ("val", {}, {"split": "val"}),
        ("val", {"annotations": "val.json"}, {"split": "val", "annotations": "val.json"}),
        ("val", {"masks": "drawn"}, {"split": "val", "masks": "drawn"}),
        (None, {"annotations": "val.json"}, {"annotations": "val.json"}),
        (None, {"tags": "val.csv"}, {"tags": "val.csv", "split": None}),
    ],
)
def test_a_part_of_the_training_folder(
    training: DataSource, val: str | None, arguments: dict[str, str], changes: dict[str, Any]
) -> None:
    assert held_out_source(training, val, **arguments) == training.model_copy(update=changes)


def test_a_table_can_be_given_as_val(training: DataSource, tmp_path: Path) -> None:
    table = tmp_path / "val.csv"
    table.write_text("image,tags\n3.jpg,dog\n")
    source = held_out_source(training, str(table))
    assert source == held_out_source(training, None, tags=str(table))
    assert source is not None
    assert [sample.id for sample in source.read().samples] == ["3"]


def test_a_folder_does_not_get_the_tags_of_training_images_of_the_same_names(
    training: DataSource, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "new", "1.jpg", "deep/2.jpg")
    save_images(tmp_path / "drawn", "1.png")
    source = held_out_source(training, str(folder), masks=str(tmp_path / "drawn"))
    assert source is not None
    images = align_classes(source.read(), source, ("cat", "dog"))
    assert [(s.id, s.tags, s.mask is not None) for s in images.samples] == [("1", None, True), ("deep/2", None, False)]
    assert images.classes == ("cat", "dog")


def test_a_folder_with_its_own_table(training: DataSource, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "new", "1.jpg")
    table = tmp_path / "val.csv"
    table.write_text("image,tags\n1.jpg,cat\n")
    source = held_out_source(training, str(folder), tags=str(table))
    assert source is not None
    assert source.read().classes == ("cat",)
    (folder / "tags.csv").write_text("image,tags\n1.jpg,cow\n")
    source = held_out_source(training, str(folder))
    assert source is not None
    assert source.read().classes == ("cow",)


def test_settings_that_mean_files_in_both_folders_are_kept(tmp_path: Path) -> None:
    for name in ("photos", "new"):
        save_images(tmp_path / name, "1.jpg", "masks/1.png")
        (tmp_path / name / "own.csv").write_text(f"image,tags\n1.jpg,{name}\n")
    training = DataSource(root=str(tmp_path / "photos"), tags="own.csv", masks="masks")
    source = held_out_source(training, str(tmp_path / "new"))
    assert source is not None
    images = source.read()
    assert images.classes == ("new",)
    assert images.samples[0].mask is not None


def test_the_class_list_of_the_training_images_is_kept(tmp_path: Path) -> None:
    """Without it, the ids of the held-out masks would follow from the tags that happen to be in the other table."""
    for name in ("photos", "new"):
        save_images(tmp_path / name, "1.jpg")
        (tmp_path / name / "tags.csv").write_text("image,tags\n1.jpg,cat\n")
    (tmp_path / "photos" / "classes.txt").write_text("dog\ncat\n")
    training = DataSource(root=str(tmp_path / "photos"))
    source = held_out_source(training, str(tmp_path / "new"))
    assert source is not None
    assert source.read().classes == ("dog", "cat")
    (tmp_path / "new" / "classes.txt").write_text("cat\ndog\n")
    source = held_out_source(training, str(tmp_path / "new"))
    assert source is not None
    assert source.read().classes == ("cat", "dog")


def test_folders_of_classes(tmp_path: Path) -> None:
    training = DataSource(root=str(save_images(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg")))
    source = held_out_source(
        training, str(save_images(tmp_path / "new", "cat/1.jpg", "masks/cat/1.png")), masks="masks"
    )
    assert source is not None
    assert source.detect_format() == "folders"
    assert source.read().classes == ("cat",)
    source = held_out_source(training, str(save_images(tmp_path / "flat", "1.jpg")))
    assert source is not None
    assert source.read().samples[0].tags is None


def test_what_does_not_exist_is_named(training: DataSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder no/where of held-out images does not exist; correct the path"):
        held_out_source(training, "no/where")
    coco = DataSource(root=training.root, annotations="x.json")
    with pytest.raises(DataError, match="the folder nowhere of held-out images does not exist"):
        held_out_source(coco, "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    source = held_out_source(training, str(empty))
    assert source is not None
    with pytest.raises(DataError, match=r"there is no image in .*empty"):
        source.read()
