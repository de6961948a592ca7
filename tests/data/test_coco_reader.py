"""Reading COCO's format, and drawing its masks."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from tagmask.api import evaluate_predictions
from tagmask.data.coco_file_mask import CocoFileMask
from tagmask.data.coco_mask import CocoMask, CocoObject, decode_run_lengths
from tagmask.data.coco_reader import read_coco
from tagmask.data.samples import PngMask, TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.verify import verify_images
from tagmask.errors import DataError
from tagmask.progress import Reporter

H, W = 30, 40
CATEGORIES = [{"id": 90, "name": "yak"}, {"id": 3, "name": " cat"}, {"id": 17, "name": "dog"}]


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Compute run lengths down the columns, zeros first, with NumPy."""
    flat = mask.ravel(order="F").astype(bool)
    edges = np.flatnonzero(np.diff(np.r_[False, flat])) if flat.size else []
    return {"size": list(mask.shape), "counts": np.diff(np.r_[0, edges, flat.size]).tolist()}


def write(root: Path, annotations: list[Any], images: list[Any] | None = None, **more: Any) -> Path:
    (root / "images" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("b.jpg", "sub/a.jpg"):
        Image.new("RGB", (W, H)).save(root / "images" / name)
    if images is None:
        images = [{"id": 7, "file_name": "sub/a.jpg", "height": H, "width": W}, {"id": 2, "file_name": "b.jpg"}]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES} | more))
    return path


def read(root: Path, annotations: list[Any], images: list[Any] | None = None, **more: Any) -> TaggedImages:
    return read_coco(root / "images", write(root, annotations, images, **more))


def annotation(id_: int, category: int, segmentation: Any, image: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": id_, "image_id": image, "category_id": category, "segmentation": segmentation} | more


def test_classes_tags_and_order(tmp_path: Path) -> None:
    images = read(tmp_path, [annotation(1, 90, box(1, 1, 5, 5)), annotation(2, 3, box(2, 2, 3, 3))])
    assert images.classes == ("cat", "dog", "yak")
    assert images.problems == ()
    assert [(s.id, s.tags) for s in images.samples] == [("b", ()), ("sub/a", (1, 3))]
    empty = images.samples[0].mask
    assert empty is not None
    assert empty.read().shape == (H, W)  # its size is not in the file, but read from the image
    assert not empty.read().any()


def test_a_box(tmp_path: Path) -> None:
    images = read(tmp_path, [annotation(1, 17, box(1, 2, 3, 4))])
    expected = np.zeros((H, W), np.uint8)
    expected[2:6, 1:4] = 2  # dog
    mask = images.samples[1].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.read(), expected)


def test_small_objects_cover_large_ones_and_crowds(tmp_path: Path) -> None:
    crowd = np.zeros((H, W), np.uint8)
    crowd[:, 20:] = 1
    annotations = [
        annotation(1, 3, box(12, 12, 4, 4)),  # small, first in the file
        annotation(2, 90, box(10, 10, 20, 10)),  # large
        annotation(3, 17, uncompressed(crowd), iscrowd=1),
    ]
    mask = read(tmp_path, annotations).samples[1].mask
    assert mask is not None
    labels = mask.read()
    assert labels[13, 13] == 1
    assert labels[11, 11] == 3
    assert labels[15, 25] == 3
    assert labels[5, 25] == 255
    assert labels[5, 5] == 0
    assert (labels == 1).sum() == 16
    assert (labels == 3).sum() == 200 - 16
    assert (labels == 255).sum() == H * 20 - 100
    kept = mask.remap({3: 1}).read()  # keep only the yak: the cat on it and the crowd of dogs become background
    assert kept[13, 13] == kept[5, 25] == 0
    assert (kept == 1).sum() == 200 - 16


def test_ground_truth_of_published_figures(tmp_path: Path) -> None:
    """ReCAM's evaluation paints the annotations in the order of the file, and leaves out crowds."""
    crowd = np.zeros((H, W), np.uint8)
    crowd[:, 20:] = 1
    annotations = [
        annotation(1, 3, box(12, 12, 4, 4)),
        annotation(2, 90, box(10, 10, 20, 10)),
        annotation(3, 17, uncompressed(crowd), iscrowd=1),
    ]
    file = write(tmp_path, annotations)
    source = DataSource(
        root=str(tmp_path / "images"), annotations=str(file), coco_order="file", coco_crowds="background"
    )
    mask = source.read().samples[1].mask
    default = read_coco(tmp_path / "images", file).samples[1].mask
    assert mask is not None
    assert default is not None
    expected = np.zeros((H, W), np.uint8)
    expected[10:20, 10:30] = 3
    np.testing.assert_array_equal(mask.read(), expected)
    assert mask.fingerprint() != default.fingerprint()


def test_png_masks_replace_the_drawn_ones(tmp_path: Path) -> None:
    file = write(tmp_path, [annotation(1, 3, box(12, 12, 4, 4)), annotation(2, 3, box(1, 1, 4, 4), image=2)])
    (tmp_path / "truth" / "sub").mkdir(parents=True)
    Image.fromarray(np.full((H, W), 2, np.uint8)).save(tmp_path / "truth" / "sub" / "a.png")
    images = DataSource(root=str(tmp_path / "images"), annotations=str(file), masks=str(tmp_path / "truth")).read()
    masks = {sample.id: sample.mask for sample in images.samples}
    assert isinstance(masks["sub/a"], PngMask)
    assert isinstance(masks["b"], CocoFileMask)
    assert (masks["sub/a"].read() == 2).all()
    assert [str(problem).replace(str(tmp_path) + "/", "") for problem in images.problems] == [
        "truth: has no PNG for 1 image (b), so that the ground truth is drawn from instances.json; add the PNGs if "
        "figures are to be compared with published ones."
    ]
    Image.fromarray(np.full((H, W), 3, np.uint8)).save(tmp_path / "truth" / "b.png")
    assert DataSource(root=images_of(file), annotations=str(file), masks=str(tmp_path / "truth")).read().problems == ()


def images_of(file: Path) -> str:
    return str(file.parent / "images")


def random_annotations(seed: int) -> list[dict[str, Any]]:
    """Return overlapping polygons and boxes, and two crowds in the middle of the file."""
    rng = np.random.default_rng(seed)
    annotations = []
    for i in range(1, 13):
        polygon = (rng.random((int(rng.integers(3, 7)), 2)) * (W, H)).ravel().tolist()
        annotations.append(annotation(i, int(rng.choice([3, 17, 90])), [polygon], iscrowd=0))
    for i in (4, 8):
        annotations[i] |= {"segmentation": uncompressed(rng.random((H, W)) < 0.3), "iscrowd": 1}
    return annotations


@pytest.mark.parametrize("seed", range(3))
def test_ground_truth_as_pycocotools_draws_it(tmp_path: Path, seed: int) -> None:
    """The public code of ReCAM: for each annotation of getAnnIds(iscrowd=False), labels[annToMask == 1] = class."""
    file = write(tmp_path, random_annotations(seed))
    coco = COCO(str(file))
    in_order = coco.loadAnns(coco.getAnnIds(imgIds=[7], iscrowd=False))
    new_ids = {3: 1, 17: 2, 90: 3}

    def draw(annotations: list[dict[str, Any]], start: np.ndarray) -> np.ndarray:
        for item in annotations:
            start[coco.annToMask(item) == 1] = new_ids[item["category_id"]]
        return start

    crowds = np.zeros((H, W), bool)
    for item in coco.loadAnns(coco.getAnnIds(imgIds=[7], iscrowd=True)):
        crowds |= coco.annToMask(item) == 1
    by_area = sorted(in_order, key=lambda item: -int(coco.annToMask(item).sum()))
    drawn = {}
    for order, objects in (("file", in_order), ("area", by_area)):
        for pixels, label in (("background", 0), ("ignored", 255)):
            source = DataSource.model_validate({
                "root": images_of(file), "annotations": str(file), "coco_order": order, "coco_crowds": pixels,
            })  # fmt: skip
            mask = source.read().samples[1].mask
            assert mask is not None
            drawn[order, pixels] = mask.read()
            start = np.where(crowds, label, 0).astype(np.uint8)
            np.testing.assert_array_equal(drawn[order, pixels], draw(objects, start))
    assert len({labels.tobytes() for labels in drawn.values()}) == 4, "the choice makes a difference"


def test_scores_by_ground_truth(tmp_path: Path) -> None:
    """mIoU by hand: a cat of 200 pixels first, a yak of 400 pixels over all of it, and a crowd of 100 other pixels."""
    crowd = np.zeros((H, W), np.uint8)
    crowd[:10, 30:] = 1
    annotations = [
        annotation(1, 3, box(0, 10, 10, 20)),
        annotation(2, 90, box(0, 10, 20, 20)),
        annotation(3, 90, uncompressed(crowd), iscrowd=1),
    ]
    file = write(tmp_path, annotations, [{"id": 7, "file_name": "sub/a.jpg", "height": H, "width": W}])
    labels = np.zeros((H, W), np.uint8)  # the prediction: a cat and a yak of 200 pixels each, and a yak on the crowd
    labels[10:, :10], labels[10:, 10:20], labels[:10, 30:] = 1, 3, 3
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "masks" / "sub" / "a.png")
    source = DataSource(root=images_of(file), annotations=str(file))

    def ious(**settings: str) -> list[float]:
        report = evaluate_predictions(tmp_path / "masks", source.model_copy(update=settings), device="cpu", quiet=True)
        return [round(float(value), 6) for value in np.nan_to_num(report[1].iou, nan=-1)]

    background = H * W - 500  # and the 100 pixels of the crowd
    assert ious() == [1, 1, -1, 1]
    assert ious(coco_crowds="background") == [round(background / (background + 100), 6), 1, -1, round(200 / 300, 6)]
    assert ious(coco_order="file") == [1, 0, -1, 0.5]
    both = ious(coco_order="file", coco_crowds="background")
    assert both == [round(background / (background + 100), 6), 0, -1, 0.4]  # 200 of 400 + 100
    Image.fromarray(labels).save(tmp_path / "truth.png")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth.png").rename(tmp_path / "truth" / "a.png")
    assert ious(masks=str(tmp_path / "truth")) == [1, 1, -1, 1]


def test_all_shapes_as_pycocotools_decodes_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    blob = (random.random((H, W)) > 0.5).astype(np.uint8)
    other = np.zeros((H, W), np.uint8)
    other[3:20, 5:9] = 1
    compressed = rle.encode(np.asfortranarray(other))
    shapes = [
        [[3.25, 4.5, 30.1, 2.2, 25.7, 28.9], [-5.0, 20.0, 8.5, 22.0, 45.0, 35.0]],  # two parts, one beyond the border
        uncompressed(blob),
        {"size": [H, W], "counts": compressed["counts"].decode()},
        [[0.0, 0.0, 1.0, 1.0], *box(0, 0, 7, 7)],  # a "polygon" of two points is nothing
    ]
    for shape in shapes:
        path = write(tmp_path, [annotation(1, 3, shape)])
        api = COCO(str(path))
        judged = api.anns[1] | {"segmentation": [p for p in shape if len(p) >= 6] if isinstance(shape, list) else shape}
        api.imgs[7].update(height=H, width=W)
        mask = read_coco(tmp_path / "images", path).samples[1].mask
        assert mask is not None
        np.testing.assert_array_equal(mask.read(), api.annToMask(judged))


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_run_lengths_of_pycocotools_are_decoded(mask: np.ndarray) -> None:
    counts = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert decode_run_lengths(counts).tolist() == uncompressed(mask)["counts"]


def test_long_runs() -> None:
    counts = rle.frPyObjects({"size": [2000, 3000], "counts": [0, 3_000_000, 5, 2_000_000, 999_995]}, 2000, 3000)[
        "counts"
    ]
    assert decode_run_lengths(counts).tolist() == [0, 3_000_000, 5, 2_000_000, 999_995]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12) | st.text("0123abPQ`no~", max_size=12).map(str.encode))
@example(b"3aP")  # 3, 17, and a number without its last group
def test_every_text_of_run_lengths_is_a_mask_or_a_data_error(counts: bytes) -> None:
    mask = CocoMask((4, 5), (CocoObject(1, False, counts or b"0"),))
    message = ""
    try:
        assert set(np.unique(mask.read())) <= {0, 1}
    except DataError as error:
        message = str(error)
    assert message in ("", "has a run-length mask that does not fill the image; correct or remove it")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [W, H], "counts": [H * W]}, r"run-length mask of size \[40, 30\] in an image of size \[30, 40\]"),
        ({"size": [H, W], "counts": [3, 4]}, "does not fill the image"),
        ({"size": [H, W], "counts": [H * W + 1, -1]}, "does not fill the image"),
        ({"size": [H, W]}, "does not fill the image"),
        ([[1, 2, 3, 4, 5, "x"]], "polygon that is not a list x, y, x, y"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon that is not a list x, y, x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon that is not a list x, y, x, y"),
        ([[1, 2, 3, 4, 5, 1e12]], "polygon that is not a list x, y, x, y"),
        ([1, 2, 3, 4, 5, 6], "neither polygons nor run lengths"),
        ("x", "neither polygons nor run lengths"),
    ],
)
def test_bad_segmentation(tmp_path: Path, segmentation: Any, message: str) -> None:
    images = read(tmp_path, [annotation(11, 3, segmentation)])
    assert [s.id for s in images.samples] == ["b"]
    assert len(images.problems) == 1
    assert images.problems[0].where.endswith("instances.json, image 7")
    with pytest.raises(DataError, match=f"annotation 11 has a .*{message}"):
        raise DataError(str(images.problems[0]))


def test_bad_items(tmp_path: Path) -> None:
    listed = [
        {"id": 1, "file_name": "b.jpg", "height": H, "width": W},
        {"id": 1, "file_name": "sub/a.jpg"},
        {"id": 2, "file_name": "b.jpg"},
        {"id": 3, "file_name": "nowhere.jpg"},
        {"id": 4},
        "nothing",
        {"id": 5, "file_name": "sub/a.jpg", "height": 10**9, "width": 10**9},
        {"id": 6, "file_name": "sub/a.jpg", "height": H, "width": W},
    ]
    annotations = [annotation(1, 44, None, image=6), annotation(2, 3, None, image=99), {"id": 3}, None]
    images = read(tmp_path, annotations, listed)
    messages = [f"{p.severity}: {p}".replace(str(tmp_path) + "/", "") for p in images.problems]
    assert [s.id for s in images.samples] == ["b"]
    assert messages == [
        "error: instances.json, image 1: has the id of another image; give it a unique id.",
        "error: instances.json, image 5 of the list: has no 'id' or no text 'file_name'; correct or remove it.",
        "error: instances.json, image 6 of the list: has no 'id' or no text 'file_name'; correct or remove it.",
        "warning: instances.json: has 3 annotations of images that it does not list; remove them, or add the images.",
        "error: instances.json, image 2: is the same file as instances.json, image 1, b.jpg; remove one.",
        "error: instances.json, image 3: there is no image 'nowhere.jpg' in images; "
        "correct the name or remove the line.",
        "error: instances.json, image 5: has 1000000000×1000000000 pixels, more than 100 million; make it smaller.",
        "error: instances.json, image 6: has annotation 1 with the unknown category 44; correct it.",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[1]", "has no list 'images'"),
        ('{"images": []}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        ('{"images": [1], "annotations": [], "categories": []}', "has no category"),
        ('{"images": [1], "annotations": [], "categories": [{"id": 1}]}', "a category without a number 'id'"),
        (
            '{"images": [1], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a "}]}',
            "two categories with the name or id 'a'",
        ),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, [])
    path.write_text(content)
    with pytest.raises(DataError, match=rf"instances\.json (has )?{message}"):
        read_coco(tmp_path / "images", path)


def test_annotations_without_segmentation_give_tags_but_no_masks(tmp_path: Path) -> None:
    images = read(tmp_path, [annotation(1, 3, None)])
    assert [(s.tags, s.mask) for s in images.samples] == [((), None), ((1,), None)]
    mixed = read(tmp_path, [annotation(1, 3, None), annotation(2, 17, box(1, 1, 3, 3), image=2)])
    assert [(s.tags, s.mask is None) for s in mixed.samples] == [((2,), False), ((1,), True)]
    assert "annotations without segmentation, which leaves 1 image without a mask" in str(mixed.problems[0])


def test_a_category_named_background_is_not_a_class(tmp_path: Path) -> None:
    images = read(
        tmp_path,
        [annotation(1, 0, box(1, 1, 3, 3))],
        categories=[{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}],
    )
    assert images.classes == ("cat",)
    assert images.samples[1].tags == ()


def test_masks_are_small_and_can_be_pickled(tmp_path: Path) -> None:
    triangle = [[3.25, 4.5, 30.1, 2.2, 25.7, 28.9]]
    images = read(tmp_path, [annotation(i, 3, triangle, image=2 if i else 7) for i in range(500)])
    one = images.samples[1]
    assert len(pickle.dumps(one)) < 700  # it does not hold the 499 objects of the other image
    assert pickle.loads(pickle.dumps(one)) == one
    assert len(pickle.dumps(images.samples[0])) < 500 * 150


def test_restrict(tmp_path: Path) -> None:
    images = read(tmp_path, [annotation(1, 90, box(1, 1, 5, 5)), annotation(2, 3, box(20, 2, 3, 3))]).restrict(["yak"])
    assert images.samples[1].tags == (1,)
    assert images.samples[1].mask is not None
    assert (images.samples[1].mask.read() == 1).sum() == 25


def test_saliency(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    (tmp_path / "saliency" / "sub").mkdir(parents=True)
    Image.new("L", (W, H)).save(tmp_path / "saliency" / "sub" / "a.png")
    images = read_coco(tmp_path / "images", path, saliency=tmp_path / "saliency")
    assert [s.saliency and s.saliency.name for s in images.samples] == [None, "a.png"]


@pytest.mark.parametrize("name", ["https://example.com/b.jpg", "/etc/hostname", "../outside.jpg", "{root}/outside.jpg"])
def test_file_names_outside_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (W, H)).save(tmp_path / "outside.jpg")
    images = read(tmp_path, [], [{"id": 1, "file_name": name.format(root=tmp_path)}, {"id": 2, "file_name": "b.jpg"}])
    assert [sample.id for sample in images.samples] == ["b"]
    assert "write its path in the folder" in str(images.problems[0]) or "there is no image" in str(images.problems[0])


def test_absolute_names_inside_the_folder_are_read(tmp_path: Path) -> None:
    images = read(tmp_path, [], [{"id": 1, "file_name": str(tmp_path / "images" / "b.jpg")}])
    assert [sample.id for sample in images.samples] == ["b"]


def test_a_wrong_size_is_noticed_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [annotation(i, 3, box(0, 0, 9000, 9000)) for i in range(200)]
    images = read(tmp_path, objects, [{"id": 7, "file_name": "b.jpg", "height": 9999, "width": 10000}])
    monkeypatch.setattr(CocoMask, "read", lambda mask: pytest.fail("was drawn"))
    with pytest.raises(DataError, match=r"has 10000×9999 pixels and its image 40×30; give both the same size"):
        verify_images(images, skip_bad=False, workers=1, progress=Reporter().progress)


def test_messages_do_not_repeat_long_values(tmp_path: Path) -> None:
    long = "x" * 5000
    images = read(tmp_path, [annotation(1, long, None)], [{"id": 7, "file_name": "b.jpg"}])  # type: ignore[arg-type]
    assert all(len(str(problem)) < 500 + len(str(tmp_path)) for problem in images.problems)
    images = read(tmp_path, [], [{"id": long, "file_name": long}])
    assert all(len(str(problem)) < 500 + len(str(tmp_path)) for problem in images.problems)


def test_a_truth_value_is_not_a_size(tmp_path: Path) -> None:
    listed = [{"id": 7, "file_name": "b.jpg", "height": H, "width": True}]
    [sample] = read(tmp_path, [annotation(1, 90, box(1, 1, 5, 5))], listed).samples
    assert sample.mask is not None
    assert sample.mask.read().shape == (H, W)


def test_a_category_whose_name_is_a_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a category without a number 'id' or a text 'name'"):
        read(tmp_path, [], categories=[{"id": 1, "name": ["cat"]}])


def test_samples_hold_no_polygons(tmp_path: Path) -> None:
    """The memory of a sample does not depend on the number of points of its polygons."""
    polygons = [[5.25 + i % 7, i % 29 + 0.5] for i in range(5000)]
    shape = [number for point in polygons for number in point]
    images = read(tmp_path, [annotation(1, 3, [shape]), annotation(2, 17, box(1, 1, 4, 4))])
    sample = images.samples[1]
    assert len(pickle.dumps(sample)) < 1000
    drawn = CocoMask((H, W), tuple(CocoObject(c, False, (np.array(s, np.float64).tobytes(),)) for c, s in
                                   ((1, shape), (2, box(1, 1, 4, 4)[0]))))  # fmt: skip
    assert sample.mask is not None
    assert set(np.unique(drawn.read())) >= {1, 2}
    np.testing.assert_array_equal(sample.mask.read(), drawn.read())
    restricted = images.restrict(["dog"]).samples[1].mask
    assert restricted is not None
    np.testing.assert_array_equal(restricted.read(), (drawn.read() == 2).astype(np.uint8))
    assert restricted.fingerprint() != sample.mask.fingerprint()


def test_a_file_that_changes_while_it_is_used_gives_one_sentence(tmp_path: Path) -> None:
    images = read(tmp_path, [annotation(1, 3, box(1, 1, 4, 4))])
    [mask] = [sample.mask for sample in images.samples if sample.mask and sample.mask.read().any()]
    file = tmp_path / "instances.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"instances\.json has changed while it was used: run the same command again"):
        mask.read()
    file.unlink()
    with pytest.raises(DataError, match=r"instances\.json cannot be read any more \(No such file"):
        mask.read()
