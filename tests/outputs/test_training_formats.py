"""Formats for training: folders of images and masks, and YOLO's polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tagmask.data.images import read_image
from tagmask.data.scenes import CLASSES
from tagmask.errors import RunError
from tagmask.outputs import mmseg
from tagmask.outputs.image_files import write_image
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings
from tests.outputs.conftest import IDS, Export

LabelMaps = dict[str, np.ndarray]
FOLDERS = {
    "ultralytics-semantic": ("images/train", "masks/train"),
    "huggingface": ("train/images", "train/masks"),
    "fiftyone": ("data", "labels"),
    "mmseg": ("img_dir/train", "ann_dir/train"),
}


@pytest.mark.parametrize("format", list(FOLDERS))
def test_masks_are_gray_and_lie_beside_unchanged_images(export: Export, label_maps: LabelMaps, format: str) -> None:
    path = export(format)
    images, masks = (path / folder for folder in FOLDERS[format])
    for folder in (images, masks):
        assert {str(file.relative_to(folder)) for file in folder.rglob("*.png")} == {f"{i}.png" for i in IDS}
    for image_id, labels in label_maps.items():
        with Image.open(masks / f"{image_id}.png") as mask:
            assert mask.mode == "L", "OpenCV reads colors from an indexed PNG"
            np.testing.assert_array_equal(np.array(mask), labels)
        original = path.parents[1] / "images" / f"{image_id}.png"
        assert (images / f"{image_id}.png").read_bytes() == original.read_bytes()


def test_opencv_reads_the_class_ids(export: Export, label_maps: LabelMaps) -> None:
    cv2 = pytest.importorskip("cv2", reason="install tagmask[readers]")
    path = export("ultralytics-semantic") / "masks" / "train" / "a.png"
    for flag in (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_UNCHANGED):
        np.testing.assert_array_equal(cv2.imread(str(path), flag), label_maps["a"])


def test_yaml_of_ultralytics(export: Export) -> None:
    semantic = yaml.safe_load((export("ultralytics-semantic", subset="val") / "data.yaml").read_text())
    assert semantic == {
        "train": "images/val", "val": "images/val", "masks_dir": "masks",
        "names": dict(enumerate(["background", *CLASSES])),
    }  # fmt: skip
    segments = yaml.safe_load((export("yolo-seg") / "data.yaml").read_text())
    assert segments == {"train": "images/train", "val": "images/train", "names": dict(enumerate(CLASSES))}


def test_huggingface_datasets_reads_images_and_masks(
    export: Export, label_maps: LabelMaps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="install tagmask[readers]")
    path = export("huggingface")
    data = datasets.load_dataset("imagefolder", data_dir=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert data.num_rows == len(label_maps)
    for row, (image_id, labels) in zip(data, label_maps.items(), strict=True):
        np.testing.assert_array_equal(np.array(row["mask"]), labels)
        np.testing.assert_array_equal(np.array(row["image"]), read_image(path / "train/images" / f"{image_id}.png"))
    assert json.loads((path / "id2label.json").read_text()) == {
        str(i): name for i, name in enumerate(["background", *CLASSES])
    }


def test_supervision_reads_yolo_polygons(export: Export, label_maps: LabelMaps) -> None:
    sv = pytest.importorskip("supervision", reason="install tagmask[dev]")
    path = export("yolo-seg", min_area=0, simplify=0)
    for subfolder in (".", "sub"):
        data = sv.DetectionDataset.from_yolo(
            str(path / "images/train" / subfolder), str(path / "labels/train" / subfolder), str(path / "data.yaml"),
            force_masks=True,
        )  # fmt: skip
        assert list(data.classes) == list(CLASSES)
        assert len(data) == 2
        for file, _, detections in data:
            image_id = str(Path(file).relative_to(path / "images/train").with_suffix(""))
            labels = label_maps[image_id]
            found = set(detections.class_id.tolist()) if len(detections) else set()
            assert found == set(np.unique(labels[(labels > 0) & (labels < 255)]) - 1)
            for k in found:
                drawn, expected = detections.mask[detections.class_id == k].any(0), labels == k + 1
                # OpenCV also fills the pixels just right of and below a polygon's edges; holes are filled.
                assert (expected <= drawn).all()
                assert drawn.sum() <= 1.35 * expected.sum() + 20


def test_metadata_of_fiftyone_and_mmseg(export: Export) -> None:
    targets = json.loads((export("fiftyone") / "mask_targets.json").read_text())
    assert targets == {**{str(k): name for k, name in enumerate(CLASSES, 1)}, "255": "ignored"}
    metainfo = json.loads((export("mmseg") / "metainfo.json").read_text())
    assert metainfo["classes"] == ["background", *CLASSES]
    assert metainfo["palette"][:2] == [[0, 0, 0], [128, 0, 0]]
    assert (metainfo["img_suffix"], metainfo["seg_map_suffix"]) == (".png", ".png")


def test_mmseg_refuses_images_of_two_suffixes(tmp_path: Path) -> None:
    labels = np.zeros((4, 4), np.uint8)
    items = []
    for name in ("a.png", "b.bmp"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
        items.append(MaskItem(name[0], name, str(tmp_path / name), labels))
    with pytest.raises(RunError, match=r"b\.bmp does not end in '\.png'"):
        mmseg.write(tmp_path / "out", items, (), ExportSettings())


def test_images_can_be_linked_or_left_out(export: Export) -> None:
    path = export("mmseg", images="link")
    link = path / "img_dir/train/sub/b.png"
    assert link.is_symlink()
    assert link.read_bytes() == (path.parents[1] / "images/sub/b.png").read_bytes()
    assert not (export("mmseg", images="none") / "img_dir").exists()
    assert (export("voc", images="copy") / "JPEGImages/sub/b.png").exists()
    with pytest.raises(RunError, match="the format 'png' has no place for images"):
        export("png", images="copy")


@pytest.mark.parametrize("images", ["copy", "link"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_rotated_images_are_saved_upright(tmp_path: Path, orientation: int, images: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = tmp_path / "a.jpg"
    pixels = np.linspace(0, 255, 24 * 16 * 3).reshape(24, 16, 3).astype(np.uint8)
    Image.fromarray(pixels).save(source, exif=exif, quality=95)
    item = MaskItem("a", "a.jpg", str(source), np.zeros((1, 1), np.uint8))
    assert write_image(item, tmp_path / "out", ExportSettings(images=images)) == "a.jpg"
    written = tmp_path / "out" / "a.jpg"
    assert written.is_symlink() == (images == "link" and orientation == 1)
    with Image.open(written) as image:
        assert image.format == "JPEG"
        plain = np.array(image).astype(int)  # without applying EXIF
    assert plain.shape == ((24, 16, 3) if orientation == 1 else (16, 24, 3))
    assert np.abs(plain - read_image(source)).mean() < 3
