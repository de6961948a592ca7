"""Tags from exports of annotation tools: CVAT, Label Studio, YOLO's labels, and Excel workbooks."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tagmask.data import table_records
from tagmask.data.new_images import find_new_images
from tagmask.data.samples import TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError


def save_images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tags_by_id(images: TaggedImages) -> dict[str, list[str]]:
    return {s.id: [images.classes[t - 1] for t in s.tags or ()] for s in images.samples}


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>pets</name><size>4</size><mode>annotation</mode>
      <labels>
        <label><name>dog</name><color>#fa3253</color><type>any</type><attributes>
          <attribute><name>breed</name><mutable>False</mutable><input_type>text</input_type></attribute>
        </attributes></label>
        <label><name>cat</name><color>#c06060</color><type>any</type><attributes></attributes></label>
        <label><name>yak</name><color>#33ddff</color><type>any</type><attributes></attributes></label>
        <label><name>person</name><type>skeleton</type><attributes></attributes></label>
        <label><name>nose</name><type>points</type><attributes></attributes><parent>person</parent></label>
      </labels>
      <segments><segment><id>9</id><start>0</start><stop>3</stop></segment></segments>
      <owner><username>x</username><email>x@y.z</email></owner>
    </task>
    <dumped>2024-05-01 10:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="a/1.jpg" subset="train" width="2" height="2">
    <tag label="dog" source="manual"></tag>
    <box label="cat" source="manual" occluded="0" xtl="0.1" ytl="0.1" xbr="1.0" ybr="1.5" z_order="0">
      <attribute name="breed">persian</attribute>
    </box>
    <polygon label="cat" source="manual" occluded="0" points="0.0,0.0;1.0,0.0;1.0,1.0" z_order="0"></polygon>
  </image>
  <image id="1" name="a/2.jpg" subset="train" width="2" height="2">
    <mask label="dog" source="semi-auto" occluded="0" rle="1, 2" left="0" top="0" width="2" height="2"></mask>
    <skeleton label="person" source="manual" z_order="0">
      <points label="nose" source="manual" outside="0" occluded="0" points="1.0,1.0"></points>
    </skeleton>
  </image>
  <image id="2" name="3.jpg" subset="val" width="2" height="2"></image>
</annotations>
"""


def test_cvat(tmp_path: Path) -> None:
    root = save_images(tmp_path / "images", "a/1.jpg", "a/2.jpg", "3.jpg")
    source = DataSource(root=str(root), tags=str(write(tmp_path / "annotations.xml", CVAT)))
    images = source.read()
    assert images.classes == ("cat", "dog", "person", "yak")
    assert tags_by_id(images) == {"a/1": ["cat", "dog"], "a/2": ["dog", "person"], "3": []}
    assert images.problems == ()
    assert tags_by_id(source.model_copy(update={"split": "val"}).read()) == {"3": []}


def test_an_unpacked_export_of_cvat_is_recognized(tmp_path: Path) -> None:
    save_images(tmp_path, "images/a/1.jpg", "images/a/2.jpg", "images/3.jpg")
    write(tmp_path / "annotations.xml", CVAT)
    source = DataSource(root=str(tmp_path))
    assert source.detect_format() == "table"
    assert tags_by_id(source.read())["images/a/1"] == ["cat", "dog"]


def test_missing_images_of_cvat_are_named_by_their_number(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.jpg", "3.jpg")
    write(tmp_path / "annotations.xml", CVAT)
    [problem] = DataSource(root=str(tmp_path)).read().problems
    assert "annotations.xml, image 2: there is no image 'a/2.jpg' in" in str(problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation><object><name>cat</name></object></annotation>", "root element 'annotation', so it is not"),
        ("<annotations><track label='cat'></track></annotations>", "holds tracks of a video; export the task as"),
        ("<annotations><meta></meta></annotations>", "lists no image"),
        ("<annotations><image", "is not valid XML"),
        ("", "is not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "' + "x" * 99 + '">' + "".join(
            f'<!ENTITY {c} "{f"&{d};" * 99}">' for c, d in ("cb", "dc", "ed", "fe")
        ) + "]><annotations><image name='&f;'/></annotations>", "is not valid XML"),
    ],
)  # fmt: skip
def test_other_xml_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_tag_table(write(tmp_path / "a.xml", text))


def label_studio_task(number: int, data: dict[str, str], *results: dict[str, Any], canceled: bool = False) -> Any:
    annotation = {
        "id": 10 + number, "completed_by": 1, "was_cancelled": canceled, "ground_truth": False, "lead_time": 4.2,
        "result": [{"id": "x1", "from_name": "label", "to_name": "image", "origin": "manual", **r} for r in results],
    }  # fmt: skip
    return {
        "id": number, "annotations": [annotation], "drafts": [], "predictions": [], "data": data, "meta": {},
        "project": 3, "total_annotations": 1, "cancelled_annotations": 0,
    }  # fmt: skip


def test_label_studio(tmp_path: Path) -> None:
    root = save_images(tmp_path / "photos", "1.jpg", "0a1b2c3d-2.jpg", "sub dir/3.jpg", "4.jpg", "5.jpg", "6.jpg")
    box = {"x": 50.8, "y": 5.8, "width": 12.4, "height": 10.4, "rotation": 0, "rectanglelabels": ["dog"]}
    tasks = [
        label_studio_task(
            1, {"image": "/data/upload/1/99887766-1.jpg"},  # the file has its own name
            {"type": "choices", "value": {"choices": ["cat", "yak"]}},
            {"type": "rectanglelabels", "value": box, "original_width": 2, "original_height": 2, "image_rotation": 0},
        ),
        label_studio_task(2, {"image": "/data/upload/1/0a1b2c3d-2.jpg"},  # the file has the name of the upload
                          {"type": "brushlabels", "value": {"format": "rle", "rle": [0], "brushlabels": ["cow"]}}),
        label_studio_task(3, {"photo": "/data/local-files/?d=photos/sub%20dir/3.jpg"},
                          {"type": "taxonomy", "value": {"taxonomy": [["animal", "dog"]]}},
                          {"type": "textarea", "value": {"text": ["a comment"]}}),
        label_studio_task(4, {"image": "https://example.com/4.jpg"}),
        label_studio_task(5, {"image": "/data/upload/1/99887766-5.jpg"}, canceled=True),
        {"id": 6, "data": {"image": "/data/upload/1/99887766-6.jpg"}, "annotations": [], "predictions": []},
    ]  # fmt: skip
    table = write(tmp_path / "project-3-at-2024-05-01.json", json.dumps(tasks))
    images = DataSource(root=str(root), tags=str(table)).read()
    assert images.classes == ("cat", "cow", "dog", "yak")
    assert tags_by_id(images) == {
        "1": ["cat", "dog", "yak"], "0a1b2c3d-2": ["cow"], "sub dir/3": ["dog"], "example.com/4": []
    }  # fmt: skip
    assert "has 2 tasks without an annotation; annotate them" in str(images.problems[0])


def test_label_studio_for_prediction(tmp_path: Path) -> None:
    root = save_images(tmp_path / "photos", "1.jpg")
    task = label_studio_task(
        1, {"image": "/data/upload/1/99887766-1.jpg"}, {"type": "choices", "value": {"choices": ["cat"]}}
    )
    table = write(tmp_path / "p.json", json.dumps([task]))
    assert tags_by_id(find_new_images([str(root)], ("cat", "dog"), str(table))) == {"1": ["cat"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            [{"id": 1, "image": "/data/upload/1/1.jpg", "choice": "cat"}],
            "not an export of Label Studio's tasks; .*JSON-MIN",
        ),
        ([], "has no task with an annotation"),
        ([1], "not an export of Label Studio"),
        ([{"data": {}, "annotations": [{"result": None}]}], None),
        ([{"data": None, "annotations": "x"}, {"data": {}}], "has no task with an annotation"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: Any, expected: str | None) -> None:
    path = write(tmp_path / "a.json", json.dumps(content))
    if expected is None:
        [row] = read_tag_table(path).rows
        assert "task 1: has no image in its data" in str(row.problem)
    else:
        with pytest.raises(DataError, match=expected):
            read_tag_table(path)


def test_json_lines_in_a_json_file_are_still_a_table(tmp_path: Path) -> None:
    assert read_tag_table(write(tmp_path / "a.json", '{"image": "1.jpg", "tags": ["cat"]}\n')).names == ("cat",)


YAML = "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: dog\n  1: cat\n"


def test_yolo_as_ultralytics_lays_it_out(tmp_path: Path) -> None:
    save_images(tmp_path, "images/train/1.jpg", "images/train/2.jpg", "images/val/3.jpg")
    write(tmp_path / "data.yaml", YAML)
    write(tmp_path / "labels/train/1.txt", "1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "labels/val/3.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    source = DataSource(root=str(tmp_path))
    assert source.detect_format() == "yolo"
    images = source.read()
    assert images.classes == ("dog", "cat")
    assert [(s.id, s.tags) for s in images.samples] == [
        ("images/train/1", (1, 2)), ("images/train/2", ()), ("images/val/3", (1,))
    ]  # fmt: skip
    assert "has no labels for 1 image (images/train/2.jpg)" in str(images.problems[0])
    assert [s.id for s in source.model_copy(update={"split": "val"}).read().samples] == ["images/val/3"]
    with pytest.raises(DataError, match="has no folder of images for the split 'test'"):
        source.model_copy(update={"split": "test"}).read()


def test_yolo_as_roboflow_exports_it(tmp_path: Path) -> None:
    save_images(tmp_path, "train/images/1.jpg", "valid/images/2.jpg")
    write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['dog', 'cat']\n")
    write(tmp_path / "train/labels/1.txt", "1 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "valid/labels/2.txt", "")
    source = DataSource(root=str(tmp_path))
    assert [s.tags for s in source.read().samples] == [(2,), ()]
    assert [s.id for s in source.model_copy(update={"split": "val"}).read().samples] == ["valid/images/2"]


def test_yolo_with_a_list_of_classes(tmp_path: Path) -> None:
    """As Label Studio exports it; and as labelImg does, beside the images."""
    save_images(tmp_path, "images/1.jpg")
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "classes.txt", "dog\ncat\n")
    assert tags_by_id(DataSource(root=str(tmp_path)).read()) == {"images/1": ["dog"]}
    images_only = DataSource(root=str(tmp_path / "images"), format="yolo", tags=str(tmp_path / "classes.txt"))
    assert tags_by_id(images_only.read()) == {"1": ["dog"]}
    beside = save_images(tmp_path / "beside", "1.jpg")
    write(beside / "1.txt", "1 0.5 0.5 0.2 0.2\n")
    write(beside / "classes.txt", "dog\ncat\n")
    assert tags_by_id(DataSource(root=str(beside), format="yolo").read()) == {"1": ["cat"]}


@pytest.mark.parametrize("line", ["2 0 0 0 0", "x 0 0 0 0", "-1 0 0 0 0", "9" * 5000, "²"])
def test_bad_labels_of_yolo(tmp_path: Path, line: str) -> None:
    save_images(tmp_path, "images/1.jpg", "images/2.jpg")
    write(tmp_path / "data.yaml", YAML)
    write(tmp_path / "labels/1.txt", f"0 0 0 0 0\n{line}\n")
    images = DataSource(root=str(tmp_path)).read()
    assert [s.id for s in images.samples] == ["images/2"]
    assert "in line 2, which is not 0 to 1; correct it or the class names" in str(images.problems[0])
    assert len(str(images.problems[0])) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nc: 2\n", "has no list 'names'"),
        ("names: 3\n", "are not a list of names"),
        ("names: {1: dog}\n", "do not begin at 0"),
        ("names: [dog, dog]\n", "names a class twice"),
        ("names: [\n", "is not YAML"),
        ("a: &a [x]\nnames: *a\n", "anchors or aliases"),
    ],
)
def test_bad_data_yaml(tmp_path: Path, text: str, expected: str) -> None:
    save_images(tmp_path, "images/1.jpg")
    write(tmp_path / "data.yaml", text)
    with pytest.raises(DataError, match=expected):
        DataSource(root=str(tmp_path), format="yolo").read()


def test_yolo_without_any_label(tmp_path: Path) -> None:
    save_images(tmp_path, "images/1.jpg")
    write(tmp_path / "data.yaml", YAML)
    with pytest.raises(DataError, match=r"no image of .* has a file of labels, for example .*labels/1\.txt"):
        DataSource(root=str(tmp_path), format="yolo").read()


def test_other_yaml_files_do_not_make_a_data_set_of_yolo(tmp_path: Path) -> None:
    save_images(tmp_path, "cat/1.jpg")
    write(tmp_path / "data.yaml", "license: mine\n")
    assert DataSource(root=str(tmp_path)).detect_format() == "folders"


def save_workbook(path: Path, *rows: list[Any]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("notes").append(["image", "wrong"])
    book.save(path)
    return path


def test_workbooks(tmp_path: Path) -> None:
    path = save_workbook(tmp_path / "t.xlsx", ["Image", "Tags", None], ["1.jpg", "cat; dog"], [None], ["2.jpg", None])
    table = read_tag_table(path)
    assert [(row.line, row.image, row.tags) for row in table.rows] == [(2, "1.jpg", ("cat", "dog")), (4, "2.jpg", ())]
    path = save_workbook(tmp_path / "u.xlsx", ["image", "cat", "dog"], [7, 1, 0.0], [8, True, None])
    assert [(row.image, row.tags) for row in read_tag_table(path).rows] == [("7", ("cat",)), ("8", ("cat",))]


def test_bad_workbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_workbook(tmp_path / "t.xlsx", ["image", "tags"], ["1.jpg", "cat"])
    with zipfile.ZipFile(tmp_path / "empty.xlsx", "w"):
        pass
    with pytest.raises(DataError, match="is not an Excel workbook"):
        read_tag_table(tmp_path / "empty.xlsx")
    with pytest.raises(DataError, match="cannot be read"):
        read_tag_table(tmp_path / "missing.xlsx")
    monkeypatch.setattr(table_records, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="is too large when it is unpacked"):
        read_tag_table(path)
    monkeypatch.setattr(table_records, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"install openpyxl with pip install \"tagmask\[xlsx\]\", or save it as CSV"):
        read_tag_table(path)


@pytest.mark.parametrize(("place", "is_read"), [("1048576", True), ("999999999", False)])
def test_a_workbook_that_claims_to_have_a_billion_rows(tmp_path: Path, place: str, is_read: bool) -> None:
    path = save_workbook(tmp_path / "t.xlsx", ["image", "tags"], ["1.jpg", "cat"])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    files[sheet] = files[sheet].replace(b'2"', f'{place}"'.encode())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    if is_read:
        assert [row.line for row in read_tag_table(path).rows] == [int(place)]
    else:
        with pytest.raises(DataError, match="lists no image"):
            read_tag_table(path)


def test_a_workbook_with_too_many_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_workbook(tmp_path / "t.xlsx", ["image", "tags"], *[["1.jpg", "cat"]] * 9)
    monkeypatch.setattr(table_records, "_MAX_CELLS", 19)
    with pytest.raises(DataError, match="has more than 19 cells; save it as CSV"):
        read_tag_table(path)
