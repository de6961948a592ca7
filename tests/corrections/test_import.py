"""Masks go out, are corrected, and come back."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagmask.corrections import archive
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX, write_label_map
from tagmask.outputs.brush_rle import encode_brush_mask
from tagmask.review_folder import ReviewFolder
from tests.corrections.conftest import CLASSES, Import, LabelMaps

Export = Callable[..., Path]
EXACT = ["png", "cvat", "label-studio", "coco"]


def submit(path: Path) -> Path:
    """Turn the predictions of Label Studio's tasks into submitted annotations."""
    tasks = json.loads((path / "tasks.json").read_text())
    for task in tasks:
        [prediction] = task.pop("predictions")
        task["annotations"] = [{"result": prediction["result"], "was_cancelled": False, "updated_at": "2026-02-01"}]
    (path / "tasks.json").write_text(json.dumps(tasks))
    return path


def exported(export: Export, format: str, **settings: Any) -> Path:
    path = export(format, **settings)
    if format == "label-studio":
        submit(path)
    if format == "cvat":
        (path / "labels.json").unlink()
    return path


def zipped(path: Path) -> Path:
    return Path(shutil.make_archive(str(path), "zip", path))


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("format", EXACT)
def test_no_pixel_changes_on_the_way_out_and_back(
    export: Export, import_: Import, review: ReviewFolder, label_maps: LabelMaps, format: str, as_zip: bool
) -> None:
    path = exported(export, format)
    imported = import_(zipped(path) if as_zip else path, format)
    assert sorted(imported.accepted) == sorted(label_maps)
    assert imported.corrected == imported.unknown == ()
    assert imported.changed_tags == {}
    for image_id, labels in label_maps.items():
        np.testing.assert_array_equal(review.read_mask(image_id), labels)
    states = review.read_states()
    assert {event.state for event in states.values()} == {"accepted"}
    assert {event.source for event in states.values()} == {f"import of {path.name}{'.zip' * as_zip} ({format})"}
    assert import_(path, format, only_changed=True).accepted == ()


def test_a_second_round_of_corrections_starts_from_the_first(
    export: Export, import_: Import, review: ReviewFolder, label_maps: LabelMaps, mask_path: Callable[[str], Path]
) -> None:
    """COCO has no ignored pixels: those that the first round made background do not come back in the second."""
    run_mask = label_maps["a"]
    corrected = np.where(run_mask == IGNORE_INDEX, 0, run_mask)
    review.record("a", "corrected", corrected, source="page")
    write_label_map(mask_path("a"), corrected)  # what is exported
    path = export("coco")
    write_label_map(mask_path("a"), run_mask)
    assert import_(path, "coco", only_changed=True).corrected == ()
    again = import_(path, "coco")
    assert (again.known, again.corrected) == (("a",), ())
    assert review.read_states()["a"].state == "corrected"
    np.testing.assert_array_equal(review.read_mask("a"), corrected)


def test_polygons_are_imported_and_named(
    export: Export, import_: Import, review: ReviewFolder, label_maps: LabelMaps
) -> None:
    imported = import_(export("coco-polygons", min_area=0, simplify=0), "coco")
    assert "2 masks with polygons, whose outlines are not exact to a pixel" in str(imported)
    np.testing.assert_array_equal(review.read_mask("a"), label_maps["a"])  # exact polygons of pycocotools
    simplified = import_(export("coco-polygons", min_area=2, simplify=2), "coco")
    assert "a" in simplified.corrected


def test_corrected_pixels_and_tags(
    tmp_path: Path, import_: Import, review: ReviewFolder, label_maps: LabelMaps
) -> None:
    folder = tmp_path / "drawn"
    without_dog = np.where(label_maps["a"] == 2, 0, label_maps["a"])
    without_dog[without_dog == IGNORE_INDEX] = 0
    with_cat = label_maps["empty"].copy()
    with_cat[4, 4] = 1
    for name, labels in (("a", without_dog), ("masks/empty", with_cat), ("other", with_cat)):
        write_label_map(folder / f"{name}.png", labels)
    imported = import_(folder, "png")
    assert imported.corrected == ("a", "empty")
    assert imported.changed_tags == {"a": ("cat",), "empty": ("cat",)}
    assert imported.unknown == ("other.png",)
    assert "1 image left out, which the run does not have: other.png" in str(imported)
    assert review.read_states()["a"].tags == ("cat",)
    np.testing.assert_array_equal(review.read_mask("empty"), with_cat)


def test_a_file_that_is_imported_again_records_nothing(
    export: Export, import_: Import, review: ReviewFolder, label_maps: LabelMaps
) -> None:
    path = exported(export, "cvat")
    import_(path, "cvat")
    log = (review.path / "log.jsonl").read_bytes()
    again = import_(path, "cvat")
    assert sorted(again.known) == sorted(label_maps)
    assert str(again) == "0 reviewed masks: 0 corrected, 0 accepted without a change. 3 masks as reviewed before."
    assert (review.path / "log.jsonl").read_bytes() == log


def test_an_unchanged_mask_without_a_tagged_class_keeps_the_tags(
    tmp_path: Path, import_: Import, review: ReviewFolder, mask_path: Callable[[str], Path]
) -> None:
    only_cat = np.zeros((18, 25), np.uint8)
    only_cat[3:9, 3:9] = 1
    for path in (mask_path("a"), tmp_path / "drawn" / "a.png"):
        write_label_map(path, only_cat)
    imported = import_(tmp_path / "drawn", "png")
    assert (imported.accepted, imported.doubtful, imported.changed_tags) == (("a",), ("a",), {})
    assert "1 unchanged mask without a class that the image is tagged with, or with another one: a" in str(imported)
    assert review.read_states()["a"].tags is None


@pytest.mark.parametrize("task", [{"annotations": []}, {"label": [{"rle": [1]}]}])
def test_label_studio_files_without_submitted_annotations(tmp_path: Path, import_: Import, task: Any) -> None:
    (tmp_path / "ls.json").write_text(json.dumps([{"data": {"image": "a.jpg"}, **task}]))
    with pytest.raises(DataError, match=r"no submitted annotation; submit them in Label Studio, .* not JSON-MIN"):
        import_(tmp_path / "ls.json", "label-studio")


def test_cvat_polygons_order_and_names(
    tmp_path: Path, import_: Import, review: ReviewFolder, label_maps: LabelMaps
) -> None:
    """As CVAT writes it: another folder before the name, a polygon, and a mask above it that is listed first."""
    content = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
    <image id="0" name="upload/sub/ü b.png" width="25" height="19">
      <mask label="dog &amp; &lt;b&gt;" rle="0, 2, 1, 1" left="3" top="2" width="2" height="2" z_order="1"></mask>
      <polygon label="cat" points="2.00,1.00;8.00,1.00;8.00,6.00;2.00,6.00" z_order="0"></polygon>
    </image></annotations>"""
    (tmp_path / "c.xml").write_text(content, encoding="utf-8")
    imported = import_(tmp_path / "c.xml", "cvat")
    assert imported.corrected == ("sub/ü b",)
    assert imported.num_polygons == 1
    expected = np.zeros((19, 25), np.uint8)
    expected[1:6, 2:8] = 1
    expected[2, 3:5], expected[3, 4] = 2, 2
    np.testing.assert_array_equal(review.read_mask("sub/ü b"), expected)


def test_label_studio_takes_the_last_submitted_annotation(
    tmp_path: Path, import_: Import, review: ReviewFolder
) -> None:
    def annotation(label: str, **fields: Any) -> dict[str, Any]:
        mask = np.zeros((18, 25), bool)
        mask[2:5, 3:9] = True
        value = {"format": "rle", "rle": encode_brush_mask(mask), "brushlabels": [label]}
        result = {"type": "brushlabels", "original_width": 25, "original_height": 18, "value": value}
        return {"result": [result], **fields}

    old, new = annotation("cat", updated_at="2026-01-01T10:00"), annotation(CLASSES[1], updated_at="2026-01-02T09:00")
    skipped = annotation("cat", updated_at="2026-03-01", was_cancelled=True)
    tasks = [
        {"data": {"image": "/data/upload/7/0123abcd-a.jpg"}, "annotations": [new, old, skipped]},
        {"data": {"image": "/data/local-files/?d=sub/%C3%BC%20b.png"}, "annotations": [skipped]},
        {"data": {"image": "s3://bucket/empty.jpg"}, "predictions": [old], "annotations": []},
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    imported = import_(tmp_path / "ls.json", "label-studio")
    assert imported.corrected == ("a",), "nobody has submitted the others"
    assert set(np.unique(review.read_mask("a"))) == {0, 2}
    assert review.read_mask("a")[3, 4] == 2


def test_coco_masks_of_cvat_are_crowds_with_plain_counts(tmp_path: Path, import_: Import, review: ReviewFolder) -> None:
    annotation = {"image_id": 5, "category_id": 9, "iscrowd": 1,
                  "segmentation": {"counts": [2 * 18, 3, 23 * 18 - 3], "size": [18, 25]}}  # fmt: skip
    content = {
        "categories": [{"id": 9, "name": "cat"}],
        "images": [{"id": 5, "file_name": "empty.jpg", "width": 25, "height": 20}],
        "annotations": [annotation],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has a run-length mask of size"):
        import_(tmp_path / "c.json", "coco")
    annotation["segmentation"] = {"counts": [2 * 20, 3, 23 * 20 - 3], "size": [20, 25]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    import_(tmp_path / "c.json", "coco")
    expected = np.zeros((20, 25), np.uint8)
    expected[:3, 2] = 1
    np.testing.assert_array_equal(review.read_mask("empty"), expected)


def test_labels_and_sizes_that_do_not_fit(export: Export, import_: Import, review: ReviewFolder) -> None:
    path = exported(export, "cvat") / "annotations.xml"
    text = path.read_text(encoding="utf-8")
    for old, new, message in (
        ('label="cat"', 'label="catt"', "the label 'catt' is not a class of the run: did you mean 'cat'"),
        ('height="18"', 'height="36"', "'a' has 25×36 pixels, but the image has 25×18"),
        ('rle="', 'rle="9999999999, ', "do not fill its box"),
        ('left="', 'left="9', "a mask leaves its image"),
        ("<mask", "<box/><mask", r"annotations\.xml: a\.jpg: a box is no mask"),
        ('label="cat"', "", "is not CVAT's XML for images"),
        ("</annotations>", "", "is not CVAT's XML for images"),
        ("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>', "it declares entities"),
    ):
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            import_(path, "cvat")
    path.write_text(text.replace("</annotations>", text[text.index("<image id") :]), encoding="utf-8")
    with pytest.raises(DataError, match=r"has two masks of 'a' \(a\.jpg, a\.jpg\)"):
        import_(path, "cvat")
    assert review.read_states() == {}, "nothing is imported if one mask is wrong"


@pytest.mark.parametrize("format", EXACT)
def test_files_that_are_something_else(tmp_path: Path, import_: Import, format: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        import_(tmp_path / "none.zip", format)
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="is not a zip archive"):
        import_(tmp_path / "x.zip", format)
    suffix = {"png": ".png", "cvat": ".xml"}.get(format, ".json")
    for content in (b"", b"[" * 100_000, b"{}", b'{"images": 3}', b'[{"data": {}}]', b"[1]", b"\xff\xfe\x00"):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\{suffix}"):
            import_(tmp_path / f"a{suffix}", format)
    with pytest.raises(DataError, match=r"no mask of an image of this run|has no"):
        (tmp_path / "folder").mkdir()
        import_(tmp_path / "folder", format)


def test_png_files_that_are_no_masks_of_the_run(tmp_path: Path, import_: Import) -> None:
    for labels, message in (
        (np.full((18, 25), 3, np.uint8), "has the value 3, but the run has 2 classes"),
        (np.zeros((18, 26), np.uint8), "26×18 pixels, but the image has 25×18"),
        (np.zeros((18, 25, 3), np.uint8), "it has the color mode RGB"),
    ):
        Image.fromarray(labels).save(tmp_path / "a.png")
        with pytest.raises(DataError, match=message):
            import_(tmp_path / "a.png", "png")


def test_two_masks_of_an_image(tmp_path: Path, import_: Import, label_maps: LabelMaps) -> None:
    for folder in ("x", "y"):
        write_label_map(tmp_path / "d" / folder / "a.png", label_maps["a"])
    with pytest.raises(DataError, match=r"has two masks of 'a' \(x/a\.png, y/a\.png\); remove one"):
        import_(tmp_path / "d", "png")


def test_names_in_an_archive_are_never_opened_as_paths(
    tmp_path: Path, import_: Import, review: ReviewFolder, label_maps: LabelMaps
) -> None:
    write_label_map(tmp_path / "a.png", label_maps["a"])
    before = {path for path in tmp_path.parent.rglob("*") if review.path not in path.parents}
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as file:
        for name in ("../../../a.png", "/etc/passwd.png", "C:\\x\\..\\evil.png"):
            file.writestr(name, (tmp_path / "a.png").read_bytes())
    imported = import_(tmp_path / "slip.zip", "png")
    assert imported.accepted == ("a",)
    assert len(imported.unknown) == 2
    after = {path for path in tmp_path.parent.rglob("*") if review.path not in path.parents}
    assert after - before == {tmp_path / "slip.zip", review.path}


def test_zip_bombs_are_not_unpacked(tmp_path: Path, import_: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.json", b" " * 2**25)
    with pytest.raises(DataError, match=r"a\.json in .* is compressed 10\d\d times"):
        import_(bomb, "coco")
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    with pytest.raises(DataError, match="has more than 1 MB"):
        import_(bomb, "coco")
    monkeypatch.setattr(archive, "MAX_FILES", 0)
    with pytest.raises(DataError, match="has 1 files, more than 0"):
        import_(bomb, "coco")


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_png_of_huge_size_is_not_decoded(tmp_path: Path, import_: Import) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 4000, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"40000×4000 pixels, but the image has 25×18|cannot be read"):
        import_(tmp_path / "a.png", "png")


def test_ambiguous_names(tmp_path: Path, mask_path: Callable[[str], Path]) -> None:
    from tagmask.corrections.known_images import KnownImages
    from tagmask.data.samples import Sample

    images = KnownImages([Sample("x/1", "/d/x/1.jpg", ()), Sample("y/1", "/d/y/1.jpg", ())], CLASSES, mask_path)
    assert images.find("photos\\x\\1.JPG") == images.find("x/1.png") == "x/1"
    assert images.find("2.jpg") is None
    with pytest.raises(DataError, match="may be x/1 or y/1"):
        images.find("1.jpg")


def test_an_unknown_format(tmp_path: Path, import_: Import) -> None:
    with pytest.raises(DataError, match="format 'cvatt' is not known: did you mean 'cvat'"):
        import_(tmp_path, "cvatt")
