"""Tests of COCO JSON: pycocotools, datumaro and supervision must read back the same masks, pixel by pixel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from scipy import ndimage
from shapely import Polygon

from tagmask.data.scenes import CLASSES, make_scene
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs import coco as rle_format
from tagmask.outputs import coco_polygons
from tagmask.outputs.coco_instances import instance_annotation, write_instances
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings
from tests.outputs.conftest import at_any_speed

LABEL_MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


def item(file_name: str, labels: np.ndarray) -> MaskItem:
    return MaskItem(Path(file_name).stem, file_name, file_name, labels)


EXACT = ExportSettings(simplify=0)
JSON_FILE = Path("annotations/instances_train.json")


def write(folder: Path, items: Iterable[MaskItem], classes: tuple[str, ...], *, polygons: bool = False) -> Path:
    """Write a folder in one of the two formats, exactly, and return the JSON file."""
    (coco_polygons if polygons else rle_format).write(folder, items, classes, EXACT)
    return folder / JSON_FILE


def written(items: list[MaskItem], classes: tuple[str, ...], *, polygons: bool = False) -> dict:
    """The content of the file that is written."""
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(write(Path(folder), items, classes, polygons=polygons).read_text(encoding="ascii"))


def read_back(coco: COCO, image_id: int) -> np.ndarray:
    """The label map that pycocotools reads."""
    image = coco.loadImgs(image_id)[0]
    labels = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
        mask = coco.annToMask(annotation).astype(bool)
        assert not labels[mask].any(), "two annotations share a pixel"
        assert annotation["area"] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        size = [columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == [columns[0], rows[0], *size]
        labels[mask] = annotation["category_id"]
    return labels


def in_memory(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


@pytest.mark.parametrize("as_polygons", [False, True])
@at_any_speed
@given(label_maps=st.lists(LABEL_MAPS, max_size=3))
def test_any_label_map_reads_back_unchanged(as_polygons: bool, label_maps: list[np.ndarray]) -> None:
    items = [item(f"{i}.jpg", labels) for i, labels in enumerate(label_maps)]
    coco = in_memory(written(items, ("a", "b"), polygons=as_polygons))
    assert len(coco.imgs) == len(label_maps)
    for image_id, labels in enumerate(label_maps, 1):
        np.testing.assert_array_equal(read_back(coco, image_id), np.where(labels == IGNORE_INDEX, 0, labels))


def test_a_ring_is_cut_into_pieces_without_holes() -> None:
    ring = np.ones((5, 6), bool)
    ring[1:4, 2:4] = False
    annotations = written([item("ring.png", ring.astype(np.uint8))], ("a",), polygons=True)["annotations"]
    assert len(annotations) == 1  # one connected region
    assert annotations[0]["area"] == 24
    upper = Polygon([(0, 0), (6, 0), (6, 2), (4, 2), (4, 1), (2, 1), (2, 2), (0, 2)])
    lower = Polygon([(0, 2), (2, 2), (2, 4), (4, 4), (4, 2), (6, 2), (6, 5), (0, 5)])
    pieces = [Polygon(np.reshape(flat, (-1, 2))) for flat in annotations[0]["segmentation"]]
    assert {piece.normalize() for piece in pieces} == {upper.normalize(), lower.normalize()}


def test_one_rle_annotation_per_class_and_one_polygon_annotation_per_region() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:4], labels[4:, 6:], labels[0, 7] = 2, 2, IGNORE_INDEX
    per_class = written([item("a.png", labels)], ("x", "y"))["annotations"]
    assert [(a["category_id"], a["area"], a["bbox"]) for a in per_class] == [(2, 10, [1, 1, 7, 5])]
    assert isinstance(per_class[0]["segmentation"]["counts"], str)
    per_region = written([item("a.png", labels)], ("x", "y"), polygons=True)["annotations"]
    pieces = [[Polygon(np.reshape(flat, (-1, 2))) for flat in a["segmentation"]] for a in per_region]
    assert sorted(piece.bounds for [piece] in pieces) == [(1, 1, 4, 3), (6, 4, 8, 6)]
    assert [a["area"] for a in per_region] == [piece.area for [piece] in pieces]
    assert [a["id"] for a in per_region] == [1, 2]


@pytest.mark.parametrize("as_polygons", [False, True])
def test_scenes_read_back_unchanged(tmp_path: Path, as_polygons: bool) -> None:
    names = [f"sub/{i} ünïcode 🦉 <b>.jpg" for i in range(4)]
    masks = [make_scene(i, size=160).mask for i in range(4)]
    path = write(tmp_path / "new", map(item, names, masks), CLASSES, polygons=as_polygons)

    coco = COCO(str(path))
    assert [image["file_name"] for image in coco.dataset["images"]] == names
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image_id, mask in enumerate(masks, 1):
        np.testing.assert_array_equal(read_back(coco, image_id), mask)
    assert list(path.parent.iterdir()) == [path]


def test_no_images_and_file_names_that_are_not_utf_8(tmp_path: Path) -> None:
    empty = COCO(str(write(tmp_path / "none", [], ("a",)))).dataset
    assert empty["images"] == empty["annotations"] == []
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    path = write(tmp_path / "one", [item(name, np.zeros((2, 2), np.uint8))], ("a",))
    assert COCO(str(path)).dataset["images"][0]["file_name"] == name


def test_only_one_label_map_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref] = []

    def items() -> Iterator[MaskItem]:
        for i in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            labels = np.full((4, 4), 1, np.uint8)
            alive.append(weakref.ref(labels))
            yield item(f"{i}.jpg", labels)
            del labels

    write(tmp_path, items(), ("a",))
    assert len(alive) == 20


def test_errors_say_what_is_wrong_and_leave_no_file_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.jpg: the label map has the value 3, but there are 2 classes"):
        write(tmp_path, [item("b.jpg", np.full((2, 2), 3, np.uint8))], ("a", "b"))
    with pytest.raises(ValueError, match=r"not \[H, W\] uint8"):
        write(tmp_path, [item("b.jpg", np.zeros((2, 2), np.int64))], ("a",))
    assert list((tmp_path / JSON_FILE).parent.iterdir()) == []
    (tmp_path / JSON_FILE).mkdir()
    with pytest.raises(RunError, match=r"cannot write .*instances_train\.json"):
        write(tmp_path, [], ("a",))
    assert list((tmp_path / JSON_FILE).parent.iterdir()) == [tmp_path / JSON_FILE]


def test_supervision_reads_the_same_masks(tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    from PIL import Image

    scenes = [make_scene(i, size=128) for i in range(3)]
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(tmp_path / f"{i}.png")
    for as_polygons in (False, True):
        items = (item(f"{i}.png", scene.mask) for i, scene in enumerate(scenes))
        path = write(tmp_path, items, CLASSES, polygons=as_polygons)
        data = sv.DetectionDataset.from_coco(str(tmp_path), str(path), force_masks=True)
        assert data.classes == list(CLASSES)
        for image, _, detections in data:
            ground_truth = scenes[int(Path(image).stem)].mask
            for k in np.unique(detections.class_id):
                mask, expected = detections.mask[detections.class_id == k].any(0), ground_truth == k + 1
                # OpenCV also fills the pixels just right of and below the edges of a polygon.
                largest = ndimage.binary_dilation(expected, np.ones((3, 3))) if as_polygons else expected
                assert (expected <= mask).all()
                assert (mask <= largest).all()


def test_instances_read_back_with_their_scores(tmp_path: Path) -> None:
    masks = [np.zeros((6, 8), bool) for _ in range(3)]
    masks[0][1:3, 1:4] = masks[1][4:, 6:] = masks[2][0, 0] = True
    first = [instance_annotation(2, masks[0], 0.91234), instance_annotation(2, masks[1], 0.5)]
    second = [instance_annotation(1, masks[2], 1.0)]
    items = [("a.jpg", (6, 8), first), ("empty.jpg", (3, 3), []), ("b.jpg", (6, 8), second)]
    write_instances(tmp_path / "instances.json", items, ("x", "y"))
    coco = COCO(str(tmp_path / "instances.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [(a["id"], a["image_id"], a["category_id"], a["score"]) for a in annotations] == [
        (1, 1, 2, 0.9123), (2, 1, 2, 0.5), (3, 3, 1, 1.0),
    ]  # fmt: skip
    for annotation, mask in zip(annotations, masks, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    assert annotations[0]["bbox"] == [1, 1, 3, 2]
