"""COCO JSON is read back with pycocotools and supervision: the masks must be the same, pixel for pixel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from scipy import ndimage

from tagmask.data.scenes import CLASSES, make_scene
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.coco import to_coco, write_coco
from tagmask.outputs.polygons import polygons

LABEL_MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


def loaded(path: Path) -> COCO:
    return COCO(str(path))


def read_back(coco: COCO, image_id: int) -> np.ndarray:
    """The label map that pycocotools sees."""
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


def in_memory(value: dict) -> COCO:
    coco = COCO()
    coco.dataset = json.loads(json.dumps(value))
    coco.createIndex()
    return coco


@pytest.mark.parametrize("as_polygons", [False, True])
@given(label_maps=st.lists(LABEL_MAPS, max_size=3))
def test_any_label_map_reads_back_as_it_was(as_polygons: bool, label_maps: list[np.ndarray]) -> None:
    coco = in_memory(to_coco([(f"{i}.jpg", m) for i, m in enumerate(label_maps)], ("a", "b"), polygons=as_polygons))
    assert len(coco.imgs) == len(label_maps)
    for image_id, labels in enumerate(label_maps, 1):
        np.testing.assert_array_equal(read_back(coco, image_id), np.where(labels == IGNORE_INDEX, 0, labels))


@given(arrays(bool, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.booleans()))
def test_polygon_areas_by_the_shoelace_formula_add_up_to_the_region(region: np.ndarray) -> None:
    area = 0.0
    for flat in polygons(region):
        x, y = np.array(flat, float).reshape(-1, 2).T
        area += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
        steps = np.abs(np.diff(np.stack([x, y], 1), axis=0, append=[[x[0], y[0]]]))
        assert ((steps > 0).sum(1) == 1).all(), "every side runs along pixel edges, and every corner turns"
    assert area == region.sum()


def test_a_ring_is_cut_into_pieces_without_holes() -> None:
    ring = np.ones((5, 6), bool)
    ring[1:4, 2:4] = False
    found = to_coco([("ring.png", ring.astype(np.uint8))], ("a",), polygons=True)["annotations"]
    assert len(found) == 1  # one connected region
    assert found[0]["area"] == 24
    assert sorted(found[0]["segmentation"]) == [
        [0, 0, 6, 0, 6, 2, 4, 2, 4, 1, 2, 1, 2, 2, 0, 2],
        [0, 2, 2, 2, 2, 4, 4, 4, 4, 2, 6, 2, 6, 5, 0, 5],
    ]


def test_a_class_is_one_rle_and_each_of_its_regions_one_polygon_annotation() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:4], labels[4:, 6:], labels[0, 7] = 2, 2, IGNORE_INDEX
    whole = to_coco([("a.png", labels)], ("x", "y"))
    assert [(a["category_id"], a["area"], a["bbox"]) for a in whole["annotations"]] == [(2, 10, [1, 1, 7, 5])]
    assert isinstance(whole["annotations"][0]["segmentation"]["counts"], str)
    apart = to_coco([("a.png", labels)], ("x", "y"), polygons=True)["annotations"]
    assert [a["segmentation"] for a in apart] == [[[1, 1, 4, 1, 4, 3, 1, 3]], [[6, 4, 8, 4, 8, 6, 6, 6]]]
    assert [a["id"] for a in apart] == [1, 2]


@pytest.mark.parametrize("as_polygons", [False, True])
def test_scenes_from_a_generator_to_a_file_and_back(tmp_path: Path, as_polygons: bool) -> None:
    names = [f"sub/{i} ünïcode 🦉 <b>.jpg" for i in range(4)]
    masks = [make_scene(i, size=160).mask for i in range(4)]
    path = tmp_path / "new" / "masks.json"
    write_coco(path, zip(names, masks, strict=True), CLASSES, polygons=as_polygons)

    coco = loaded(path)
    assert [image["file_name"] for image in coco.dataset["images"]] == names
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image_id, mask in enumerate(masks, 1):
        np.testing.assert_array_equal(read_back(coco, image_id), mask)
    again = to_coco(zip(names, masks, strict=True), CLASSES, polygons=as_polygons)
    assert json.loads(path.read_text()) == again
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_set_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    write_coco(tmp_path / "none.json", [], ("a",))
    assert loaded(tmp_path / "none.json").dataset["images"] == []
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_coco(tmp_path / "one.json", [(name, np.zeros((2, 2), np.uint8))], ("a",))
    assert loaded(tmp_path / "one.json").dataset["images"][0]["file_name"] == name


def test_only_one_label_map_is_held_at_a_time(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref] = []

    def items() -> Iterator[tuple[str, np.ndarray]]:
        for i in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            labels = np.full((4, 4), 1, np.uint8)
            alive.append(weakref.ref(labels))
            yield f"{i}.jpg", labels
            del labels

    write_coco(tmp_path / "masks.json", items(), ("a",))
    assert len(alive) == 20


def test_what_is_wrong_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.jpg: the label map has the value 3; there are 2 classes"):
        write_coco(tmp_path / "m.json", [("b.jpg", np.full((2, 2), 3, np.uint8))], ("a", "b"))
    with pytest.raises(ValueError, match=r"not \[H, W\] uint8"):
        to_coco([("b.jpg", np.zeros((2, 2), np.int64))], ("a",))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m.json").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*m\.json"):
        write_coco(tmp_path / "m.json", [], ("a",))
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_supervision_sees_the_same_masks(tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    from PIL import Image

    scenes = [make_scene(i, size=128) for i in range(3)]
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(tmp_path / f"{i}.png")
    for as_polygons in (False, True):
        write_coco(tmp_path / "m.json", ((f"{i}.png", s.mask) for i, s in enumerate(scenes)), CLASSES,
                   polygons=as_polygons)  # fmt: skip
        data = sv.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "m.json"), force_masks=True)
        assert data.classes == list(CLASSES)
        for path, _, found in data:
            ground_truth = scenes[int(Path(path).stem)].mask
            for k in np.unique(found.class_id):
                mask, right = found.mask[found.class_id == k].any(0), ground_truth == k + 1
                # OpenCV also fills the pixels just right and below of a polygon's edges.
                most = ndimage.binary_dilation(right, np.ones((3, 3))) if as_polygons else right
                assert (right <= mask).all()
                assert (mask <= most).all()
