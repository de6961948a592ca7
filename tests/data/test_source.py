"""Finding out the format of a data source, and its paths."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from tagmask.data.source import DataSource
from tagmask.errors import DataError


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    save_image(tmp_path / "cat" / "1.jpg")
    save_image(tmp_path / "dog" / "1.jpg")
    return tmp_path


def test_folders(folders: Path) -> None:
    source = DataSource(root=str(folders))
    assert source.detect_format() == "folders"
    assert source.read().classes == ("cat", "dog")


def test_table_in_the_root_or_named(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "tags.csv").write_text("image,tags\ncat/1,zebra\ndog/1,\n")
    current = tmp_path / "elsewhere"
    current.mkdir()
    (current / "tags.csv").write_text("image,tags\ncat/1,wrong\n")
    monkeypatch.chdir(current)
    source = DataSource(root=str(folders))
    assert source.detect_format() == "table"
    assert source.read().classes == ("zebra",)  # not the table in the current directory
    assert DataSource(root=str(folders), tags="tags.csv").read().classes == ("wrong",)  # unless it is named


def test_voc(folders: Path) -> None:
    save_image(folders / "JPEGImages" / "1.jpg")
    (folders / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folders / "ImageSets" / "Segmentation" / "val.txt").write_text("1\n")
    (folders / "Annotations").mkdir()
    (folders / "Annotations" / "1.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
    source = DataSource(root=str(folders), split="val", classes=("horse", "cow"))
    assert source.detect_format() == "voc"
    assert source.read().samples[0].tags == (2,)
    (folders / "own.csv").write_text("image,tags\n1,horse\n")
    for tags, expected in (("xml", (2,)), ("own.csv", (1,)), (str(folders / "own.csv"), (1,))):
        assert source.model_copy(update={"tags": tags}).read().samples[0].tags == expected


def test_coco(folders: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "cat/1.jpg", "height": 2, "width": 2}], "annotations": []}
    (folders / "instances.json").write_text(json.dumps(content | {"categories": [{"id": 5, "name": "cat"}]}))
    source = DataSource(root=str(folders), annotations="instances.json")
    assert source.detect_format() == "coco"
    assert source.read().classes == ("cat",)
    with pytest.raises(DataError, match=r"'split' has no effect on .*, which is read as coco; leave it out"):
        DataSource(root=str(folders), annotations="instances.json", split="train").read()
    with pytest.raises(DataError, match="no JSON file is named"):
        DataSource(root=str(folders), format="coco").read()


def test_no_format_fits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tags.*image,tags.*cat/1\.jpg.*JPEGImages.*COCO"):
        DataSource(root=str(tmp_path)).read()
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        DataSource(root=str(tmp_path / "nowhere")).read()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder"):
        DataSource(root=str(tmp_path / "file")).read()
    with pytest.raises(DataError, match="https://host/photos holds no shards; name a table of its tags"):
        DataSource(root="https://host/photos").read()


def test_unknown_settings_and_classes(folders: Path) -> None:
    with pytest.raises(ValidationError):
        DataSource(root="x", tag="y")  # type: ignore[call-arg]
    with pytest.raises(DataError, match="'dgo' is not one of the classes: did you mean 'dog'"):
        DataSource(root=str(folders), classes=("dgo",)).read()


def test_too_many_classes_unless_restricted(folders: Path) -> None:
    def write(n: int) -> None:
        (folders / "tags.csv").write_text(
            "image," + ",".join(f"c{i:03}" for i in range(n)) + "\ncat/1" + ",1" * n + "\n"
        )

    write(254)
    assert DataSource(root=str(folders)).read().samples[0].tags == tuple(range(1, 255))
    write(255)
    with pytest.raises(DataError, match="has 255 classes, but a mask can hold only 254; select classes"):
        DataSource(root=str(folders)).read()
    assert DataSource(root=str(folders), classes=("c254", "c000")).read().samples[0].tags == (1, 2)


def test_masks_may_be_relative_to_the_root(folders: Path) -> None:
    save_image(folders / "masks" / "cat" / "1.png")
    images = DataSource(root=str(folders), masks="masks").read()
    assert [s.mask is not None for s in images.samples] == [True, False]
    assert images.classes == ("cat", "dog")


def test_only_paths_become_absolute(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column or a format may have the name of a folder or file."""
    monkeypatch.chdir(folders)
    (folders / "tags.csv").write_text("cat,dog\n")
    for name in ("images", "masks"):
        (folders / name).mkdir()
    source = DataSource(
        root="cat", format="images", masks="masks", tags="tags.csv", image_column="cat", tags_column="dog", split="dog"
    )
    absolute = source.with_absolute_paths()
    changes = {"root": str(folders / "cat"), "masks": str(folders / "masks"), "tags": str(folders / "tags.csv")}
    assert absolute == source.model_copy(update=changes)
