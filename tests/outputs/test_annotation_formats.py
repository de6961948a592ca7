"""Formats of annotation tools: datumaro and Label Studio's own package must read back the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tagmask.data.scenes import CLASSES
from tagmask.errors import DataError, RunError
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs import cvat, voc
from tagmask.outputs.brush_rle import decode_brush_mask, encode_brush_mask
from tagmask.outputs.cvat import encode_runs
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings
from tests.outputs.conftest import Export, at_any_speed

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
LabelMaps = dict[str, np.ndarray]


def read_with_datumaro(path: Path, format: str) -> dict[str, dict[str, np.ndarray]]:
    """The union of the masks of each label, by image id and label name."""
    datumaro = pytest.importorskip("datumaro", reason="install tagmask[readers]")
    read: dict[str, dict[str, np.ndarray]] = {}
    data = datumaro.Dataset.import_from(str(path), format)
    names = [label.name for label in data.categories()[datumaro.AnnotationType.label]]
    for item in data:
        masks = read.setdefault(item.id, {})
        for annotation in item.annotations:
            if annotation.type in (datumaro.AnnotationType.mask, datumaro.AnnotationType.polygon):
                name, mask = names[annotation.label], np.asarray(annotation.image, bool)
                masks[name] = masks.get(name, np.zeros_like(mask)) | mask
    return read


def assert_same_masks(read: dict[str, dict[str, np.ndarray]], label_maps: LabelMaps, names: dict[int, str]) -> None:
    assert set(read) == set(label_maps)
    for image_id, labels in label_maps.items():
        present = {names[k] for k in np.unique(labels).tolist() if k in names}
        assert {name for name, mask in read[image_id].items() if mask.any()} == present
        for k, name in names.items():
            if name in present:
                np.testing.assert_array_equal(read[image_id][name], labels == k, err_msg=f"{image_id} {name}")


NAMES = dict(enumerate(CLASSES, 1))
WITH_IGNORED = NAMES | {IGNORE_INDEX: "ignored"}


def test_coco_in_datumaro(export: Export, label_maps: LabelMaps) -> None:
    assert_same_masks(read_with_datumaro(export("coco"), "coco_instances"), label_maps, NAMES)


def test_coco_panoptic_in_datumaro(export: Export, label_maps: LabelMaps) -> None:
    read = read_with_datumaro(export("coco-panoptic"), "coco_panoptic")
    assert_same_masks(read, label_maps, NAMES | {0: "background"})


def test_cvat_in_datumaro(export: Export, label_maps: LabelMaps) -> None:
    path = export("cvat", images="copy")
    assert_same_masks(read_with_datumaro(path, "cvat"), label_maps, WITH_IGNORED)


def test_voc_in_datumaro(export: Export, label_maps: LabelMaps) -> None:
    read = read_with_datumaro(export("voc", images="copy"), "voc_segmentation")
    assert_same_masks(read, label_maps, WITH_IGNORED | ({0: "background"} if "background" in read["a"] else {}))


def test_label_studio_finds_images_below_the_parent_of_their_folder(export: Export) -> None:
    """It refuses a folder of files that is its document root, and takes one below it."""
    tasks = json.loads((export("label-studio") / "tasks.json").read_text(encoding="utf-8"))
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=images/sub/b.png"


def test_label_studio_in_its_own_package(export: Export, label_maps: LabelMaps) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="install tagmask[readers]")
    path = export("label-studio")
    config = ElementTree.parse(path / "config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(WITH_IGNORED.values())
    tasks = json.loads((path / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["tagmask_id"] for task in tasks] == list(label_maps)
    for task, labels in zip(tasks, label_maps.values(), strict=True):
        read = np.zeros_like(labels)
        for result in task["predictions"][0]["result"]:
            height, width = result["original_height"], result["original_width"]
            assert (height, width) == labels.shape
            assert (result["from_name"], result["to_name"]) == ("label", "image")
            rgba = np.reshape(brush.decode_rle(result["value"]["rle"]), (height, width, 4))
            [name] = result["value"]["brushlabels"]
            read[rgba[..., 3] > 0] = next(k for k, known in WITH_IGNORED.items() if known == name)
        np.testing.assert_array_equal(read, labels)


@at_any_speed
@given(MASKS)
def test_brush_masks_are_decoded_as_by_label_studio(mask: np.ndarray) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="install tagmask[readers]")
    code = encode_brush_mask(mask)
    np.testing.assert_array_equal(np.reshape(brush.decode_rle(code), (*mask.shape, 4))[..., 3] > 0, mask)


@at_any_speed
@given(MASKS)
def test_brush_masks_of_label_studio_are_decoded(mask: np.ndarray) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="install tagmask[readers]")
    noisy = np.where(mask, np.random.default_rng(0).integers(1, 256, mask.shape), 0)
    code = brush.encode_rle(np.repeat(noisy.ravel(), 4))
    np.testing.assert_array_equal(decode_brush_mask(code, mask.shape), mask)


def test_long_runs_and_literals_of_brush_masks_by_hand() -> None:
    large = np.ones((300, 300), bool)
    np.testing.assert_array_equal(decode_brush_mask(encode_brush_mask(large), (300, 300)), large)
    # one pixel, words of 8 bits, four count sizes of 1 bit; two blocks of two literals: 0, 0 and 0, 7
    bits = (
        f"{4:032b}{7:05b}"
        + "0000" * 4
        + ("0" + "00" + "1" + f"{0:08b}{0:08b}")
        + ("0" + "00" + "1" + f"{0:08b}{7:08b}")
    )
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode_brush_mask(code, (1, 1)).tolist() == [[True]]


@pytest.mark.parametrize("damage", ["size", "short", "number", "text", "empty", "deep"])
def test_damaged_brush_masks(damage: str) -> None:
    code: Any = encode_brush_mask(np.eye(5, dtype=bool))
    damaged = {"short": code[:9], "number": [*code[:-1], 999], "text": "abc", "empty": [], "deep": [code]}
    with pytest.raises(DataError, match=r"a brush mask (is damaged|has 25 pixels, not 6×5)"):
        decode_brush_mask(damaged.get(damage, code), (5, 6) if damage == "size" else (5, 5))


@at_any_speed
@given(MASKS)
def test_runs_of_cvat_alternate_between_zeros_and_ones(mask: np.ndarray) -> None:
    runs = encode_runs(mask)
    decoded = np.concatenate([np.full(length, i % 2, bool) for i, length in enumerate(runs)])
    np.testing.assert_array_equal(decoded.reshape(mask.shape), mask)
    assert all(length > 0 for length in runs[1:])


def test_names_that_a_format_cannot_hold(tmp_path: Path) -> None:
    item = MaskItem("a", "a\x01.png", "a\x01.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(RunError, match=r"'a\\x01.png' has a character that XML cannot hold"):
        cvat.write(tmp_path, [item], ("x",), ExportSettings())
    with pytest.raises(RunError, match="the class 'a:b' has a colon"):
        voc.check(["a:b"], [])


def test_a_class_can_have_the_name_of_a_label_that_is_added(tmp_path: Path) -> None:
    labels = np.array([[1, IGNORE_INDEX]], np.uint8)
    cvat.write(tmp_path, [MaskItem("a", "a.png", "a.png", labels)], ("ignored",), ExportSettings())
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert [mask.get("label") for mask in root.iter("mask")] == ["ignored", "ignored_"]
    assert [label["name"] for label in json.loads((tmp_path / "labels.json").read_text())] == ["ignored", "ignored_"]


def test_voc_files(export: Export, label_maps: LabelMaps) -> None:
    path = export("voc", subset="val")
    assert (path / "ImageSets/Segmentation/val.txt").read_text(encoding="utf-8").splitlines() == list(label_maps)
    lines = (path / "labelmap.txt").read_text().splitlines()
    assert lines[1:3] == ["background:0,0,0::", f"{CLASSES[0]}:128,0,0::"]
    assert lines[-1] == "ignored:224,224,192::"
    with Image.open(path / "SegmentationClass" / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), label_maps["a"])
    assert not (path / "JPEGImages").exists()
