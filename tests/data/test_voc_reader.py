"""Reading the layout of PASCAL VOC."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import PngMask, TaggedImages
from tagmask.data.voc_reader import VOC_CLASSES, read_voc
from tagmask.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc"


def write_annotation(root: Path, name: str, *objects: str, more: str = "") -> None:
    """Write an annotation like those of VOC: objects may be difficult, and have parts with names of their own."""
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    parts = "<part><name>head</name></part>"
    body = "".join(f"<object><name>{o}</name><difficult>1</difficult>{parts}</object>" for o in objects)
    path.write_text(f"<annotation><filename>{name}.jpg</filename>{body}{more}</annotation>")


def write_mask(root: Path, folder: str, name: str, *ids: int) -> None:
    path = root / folder / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array([ids], np.uint8)).save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    (tmp_path / "JPEGImages").mkdir()
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("1.jpg", "2.jpeg", "3.PNG", "4.jpg"):
        Image.new("RGB", (3, 1)).save(tmp_path / "JPEGImages" / name)
    write_annotation(tmp_path, "1", "cat", "person", "cat")
    write_annotation(tmp_path, "2", "sheep")
    write_annotation(tmp_path, "3")
    write_mask(tmp_path, "SegmentationClass", "1", 8, 255, 0)
    write_mask(tmp_path, "SegmentationClassAug", "1", 8, 8, 0)
    write_mask(tmp_path, "SegmentationClassAug", "2", 17, 0, 0)
    (lists / "train.txt").write_text("2\n1\n3\n")
    return tmp_path


def tags_of(images: TaggedImages) -> dict[str, list[str]]:
    return {s.id: [images.classes[k - 1] for k in s.tags or ()] for s in images.samples}


def problem_texts(images: TaggedImages, root: Path) -> list[str]:
    return [f"{p.severity}: {p}".replace(str(root) + "/", "") for p in images.problems]


def test_tags_from_annotations(voc: Path) -> None:
    images = read_voc(voc, split="train")
    assert images.classes == VOC_CLASSES
    assert images.problems == ()
    assert list(tags_of(images).items()) == [("2", ["sheep"]), ("1", ["cat", "person"]), ("3", [])]
    assert [s.image for s in images.samples] == [str(voc / "JPEGImages" / n) for n in ("2.jpeg", "1.jpg", "3.PNG")]


def test_voc_masks_precede_the_augmented_masks(voc: Path) -> None:
    masks = [s.mask for s in read_voc(voc, split="train").samples]
    assert [isinstance(m, PngMask) and m.path.relative_to(voc).as_posix() for m in masks] == [
        "SegmentationClassAug/2.png",
        "SegmentationClass/1.png",
        False,
    ]
    only_aug = read_voc(voc, split="train", masks=voc / "SegmentationClassAug").samples[1]
    assert only_aug.mask is not None
    assert only_aug.mask.read().tolist() == [[8, 8, 0]]


def test_train_aug_list(voc: Path) -> None:
    (voc / "train_aug.txt").write_text(
        "/JPEGImages/2.jpeg /SegmentationClassAug/2.png\n/JPEGImages/1.jpg /SegmentationClassAug/1.png\r\n"
    )
    for split in (str(voc / "train_aug.txt"), "train_aug.txt"):
        images = read_voc(voc, split=split)
        assert images.problems == ()
        assert [s.id for s in images.samples] == ["2", "1"]
        assert [s.mask and s.mask.read().tolist() for s in images.samples] == [[[17, 0, 0]], [[8, 8, 0]]]


def test_tags_from_masks(voc: Path) -> None:
    images = read_voc(voc, tags="masks")
    assert tags_of(images) == {"1": ["cat"], "2": ["sheep"]}
    assert problem_texts(images, voc) == [
        "warning: masks: has no tags for 2 images (3.PNG, 4.jpg); add them if they are to be used."
    ]
    write_mask(voc, "SegmentationClass", "3", 21)
    required = read_voc(voc, tags="masks", split="train")
    assert problem_texts(required, voc) == [
        "error: SegmentationClass/3.png: has pixels of class 21, but the largest class id is 20; "
        "correct the mask or the class list."
    ]


def test_tags_from_a_table(voc: Path) -> None:
    (voc / "tags.csv").write_text("image,tags\n1,cat\n2.jpeg,sheep;hrose\n4,dog\n4,cat\nnowhere,cat\n")
    images = read_voc(voc, split="train")
    assert images.classes == VOC_CLASSES
    assert tags_of(images) == {"1": ["cat"]}
    assert problem_texts(images, voc) == [
        "error: tags.csv, line 3: the tag 'hrose' is not one of the classes; "
        "correct it or add it to the class list: did you mean 'horse'?",
        "error: ImageSets/Segmentation/train.txt, line 3: 3.PNG has no line in tags.csv; add it, or remove the image.",
    ]
    everything = read_voc(voc)
    assert (
        "error: tags.csv, line 5: lists '4' again, after line 4, with other tags; remove the wrong line."
        in problem_texts(everything, voc)
    )


def test_classes_of_a_table_and_of_a_class_list(voc: Path) -> None:
    table = voc / "own.csv"
    table.write_text("image,tags\n1,zebra\n2,gnu\n3,yak;zebra\n")
    images = read_voc(voc, split="train", tags=table)
    assert images.classes == ("gnu", "yak", "zebra")
    (voc / "classes.txt").write_text("zebra\nyak\ngnu\nant\n")
    assert read_voc(voc, split="train", tags=table).samples[0].tags == (3,)
    write_annotation(voc, "1", "zebra")
    write_annotation(voc, "2", "catfish")
    own = read_voc(voc, split="train", tags="xml")
    assert tags_of(own) == {"1": ["zebra"], "3": []}
    assert "error: Annotations/2.xml: the tag 'catfish' is not one of the classes" in problem_texts(own, voc)[0]


def test_voc_2007_lists_in_main(voc: Path) -> None:
    main = voc / "ImageSets" / "Main"
    main.mkdir()
    (main / "trainval.txt").write_text("1\n")
    (main / "cat_trainval.txt").write_text("1  1\n2 -1\n")
    assert tags_of(read_voc(voc, split="trainval")) == {"1": ["cat", "person"]}
    wrong = read_voc(voc, split="cat_trainval")
    assert len(wrong) == 0
    assert "is from a list for one class, like '1 1'; use a list that names only images" in problem_texts(wrong, voc)[0]
    with pytest.raises(DataError, match=r"no split list 'tran' under .*ImageSets: did you mean 'train'"):
        read_voc(voc, split="tran")


def test_file_names_with_spaces(voc: Path) -> None:
    Image.new("RGB", (3, 1)).save(voc / "JPEGImages" / "a cat.jpg")
    write_annotation(voc, "a cat", "cat")
    (voc / "own.txt").write_text("a cat\n")
    assert tags_of(read_voc(voc, split="own.txt")) == {"a cat": ["cat"]}


def test_problems_of_single_images(voc: Path) -> None:
    (voc / "Annotations" / "1.xml").write_text("<annotation><object>")
    write_annotation(voc, "3", "")
    (voc / "own.txt").write_text("1\n2\n2\n3\n4\nnowhere\n/JPEGImages/2.jpeg /nowhere.png\n")
    images = read_voc(voc, split="own.txt")
    assert tags_of(images) == {"2": ["sheep"]}
    messages = problem_texts(images, voc)
    assert messages[0] == "warning: own.txt, line 3: lists 2.jpeg again; remove the line."
    assert messages[1].startswith("error: own.txt, line 6: there is no image 'nowhere' in JPEGImages; correct")
    assert messages[2].startswith("warning: own.txt, line 7: lists 2.jpeg again")
    assert messages[3].startswith("error: Annotations/1.xml: is not valid XML (no element found")
    assert messages[4].startswith("error: Annotations/3.xml: the tag '' is not one of the classes")
    assert messages[5] == "error: own.txt, line 5: 4.jpg has no file in Annotations; add it, or remove the image."


def test_a_listed_mask_that_is_missing_is_a_warning(voc: Path) -> None:
    (voc / "own.txt").write_text("/JPEGImages/2.jpeg /nowhere.png\n")
    images = read_voc(voc, split="own.txt")
    assert tags_of(images) == {"2": ["sheep"]}
    assert problem_texts(images, voc) == [
        "warning: own.txt, line 1: names the mask nowhere.png, which does not exist; correct it."
    ]


def test_no_source_of_tags(voc: Path, tmp_path: Path) -> None:
    for folder in ("Annotations", "SegmentationClass", "SegmentationClassAug"):
        (voc / folder).rename(tmp_path / f"no {folder}")
    with pytest.raises(DataError, match=r"has no tags\.csv, no Annotations and no SegmentationClass"):
        read_voc(voc, split="train")
    with pytest.raises(DataError, match="JPEGImages does not exist"):
        read_voc(tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs of ../shared/data/voc are missing")
def test_photographs() -> None:
    train, val = (read_voc(SHARED, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (3131, 723)
    assert train.problems == val.problems == ()
    assert train.classes == VOC_CLASSES
    assert all(s.mask and s.saliency for s in (*train.samples, *val.samples))
    counts = {name: sum(k in (s.tags or ()) for s in train.samples) for k, name in enumerate(VOC_CLASSES, 1)}
    expected = {"dog": 1180, "cat": 1001, "person": 674, "horse": 444, "sheep": 300, "cow": 263}  # from its README
    assert {name: counts[name] for name in expected} == expected
    from_masks = read_voc(SHARED, split="val", tags="masks").samples
    assert sum(a.tags == b.tags for a, b in zip(from_masks, val.samples, strict=True)) == 722
