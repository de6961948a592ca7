"""The report of `tagmask check`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.check import CheckReport, check_images
from tagmask.data.misspelled_tags import find_misspelled_tags
from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages
from tagmask.data.verify import verify_images
from tagmask.data.voc_reader import read_voc
from tagmask.progress import Reporter

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc"


def make_sample(root: Path, name: str, tags: tuple[int, ...] | None, width: int = 6, height: int = 4) -> Sample:
    path = root / f"{name}.png"
    noise = np.random.default_rng([ord(c) for c in name]).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return Sample(name, str(path), tags)


def with_mask(sample: Sample, labels: np.ndarray | list[list[int]]) -> Sample:
    path = Path(sample.image).with_name(f"{sample.id}-mask.png")
    Image.fromarray(np.array(labels, np.uint8)).save(path)
    return replace(sample, mask=PngMask(path))


def check(images: TaggedImages) -> CheckReport:
    return check_images(images, workers=2, progress=Reporter().progress)


def test_bad_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    images = TaggedImages(
        ("cat",),
        (make_sample(tmp_path, "good", (1,)), Sample("empty", str(tmp_path / "empty.png"), (1,))),
        (Problem("tags.csv, line 9", "is wrong", "correct it"), Problem("x", "is unusual", "check it", "warning")),
    )
    report = check(images)
    assert (report.num_images, report.num_bad, report.ok) == (1, 2, False)


def test_one_class_and_one_image(tmp_path: Path) -> None:
    report = check(TaggedImages(("<script>",), (make_sample(tmp_path, "a", (1,), 1, 1),)))
    assert report.ok
    assert report.problems == ()
    assert report.tag_warnings[0].startswith("(nearly) every image shows <script> (1 of 1 image)")
    assert "fewer than 10 images of <script> (1)" in report.tag_warnings[1]


def test_a_tag_that_may_be_several_tags(tmp_path: Path) -> None:
    report = check(TaggedImages(("cat, dog", "cat"), (make_sample(tmp_path, "a", (1, 2), 1, 1),)))
    assert "the tag 'cat, dog' may be several tags in one; separate tags by \";\"" in str(report.problems[0])
    assert "may be several" not in str(report.problems[1:])


def test_figures(tmp_path: Path) -> None:
    tags = [(1,), (1, 2), (1, 2), (), None]
    samples = tuple(make_sample(tmp_path, f"i{i}", t, 10 * (i + 1), i + 1) for i, t in enumerate(tags))
    report = check(TaggedImages(("cat", "dog", "yak"), samples, name="pets"))
    assert (report.num_images, report.num_bad, report.num_untagged, report.num_masks) == (5, 0, 2, 0)
    assert report.images_per_class == (3, 2, 0)
    assert report.tags_per_image == (1, 1, 2)
    assert report.mean_tags == 5 / 4
    assert report.co_occurrence == ((3, 2, 0), (2, 2, 0), (0, 0, 0))
    assert report.heights == (1, 3, 5)
    assert report.widths == (10, 30, 50)
    assert "there is no image of yak: add images of them, or remove the class." in report.tag_warnings
    content = json.loads(json.dumps(report.to_json()))
    assert content["ok"] is True
    assert content["co_occurrence"][0] == [3, 2, 0]
    assert content["tag_warnings"] == list(report.tag_warnings)


def test_the_largest_image_is_named(tmp_path: Path) -> None:
    samples = (make_sample(tmp_path, "a", (1,), 30, 20), make_sample(tmp_path, "b", (1,), 2000, 1000))
    report = check(TaggedImages(("cat",), samples))
    assert report.largest == ("b", 2.0)
    assert report.num_large == 1
    assert check(TaggedImages(("cat",), ())).largest is None


def test_images_without_any_tag_are_not_ready_to_run(tmp_path: Path) -> None:
    for classes, tags in ((("cat",), ()), ((), ()), (("cat",), None)):
        report = check(TaggedImages(classes, (make_sample(tmp_path, "a", tags),), name="pets"))
        assert not report.ok
        assert [str(p) for p in report.problems] == ["pets: no image has a tag; add the tags of the images."]


def test_an_empty_set_can_be_checked() -> None:
    report = check(TaggedImages((), ()))
    assert not report.ok
    assert report.heights is None
    assert report.mean_tags == 0
    json.dumps(report.to_json())


def test_masks_that_disagree_with_tags(tmp_path: Path) -> None:
    background = np.zeros((4, 6))
    both = np.array([[1, 1, 1, 2, 2, 255]] * 4)
    samples = (
        with_mask(make_sample(tmp_path, "a", (1, 2)), both),
        with_mask(make_sample(tmp_path, "b", (1,)), both),
        with_mask(make_sample(tmp_path, "c", (1, 2)), background),
        with_mask(make_sample(tmp_path, "d", None), both),
        make_sample(tmp_path, "e", (1,)),
    )
    report = check(TaggedImages(("cat", "dog"), samples))
    assert report.ok
    assert report.num_masks == 4
    assert report.tags_without_pixels.examples == (("c", "cat"), ("c", "dog"))
    assert report.pixels_without_tags.examples == (("b", "dog"),)
    text = " ".join(str(p) for p in report.problems)
    assert "the masks have no pixels for 2 tags (c, cat; c, dog); correct the tags or the masks." in text
    assert "the masks show 1 class without a tag (b, dog)" in text


def test_duplicates(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, name, (1,)) for name in ("a", "b", "c")]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    report = check(TaggedImages(("cat",), tuple(samples)))
    assert report.duplicates.examples == (("a", "b"),)
    assert report.ok
    assert "there are copies of 1 image (a, b)" in " ".join(map(str, report.problems))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"horse": 200, "hrose": 1}, [("hrose", "horse")]),
        ({"horse": 200, "hrose": 0}, []),
        ({"horse": 3, "hrose": 1}, [("hrose", "horse")]),  # few images, but the misspelling occurs once
        ({"horse": 4, "hrose": 2}, []),
        ({"horse": 20, "house": 15}, []),  # both are common
        ({"cat": 100, "Cat": 90}, [("Cat", "cat")]),
        ({"cat": 3, "cats": 5}, [("cat", "cats")]),
        (
            {"traffic light": 9, "traffic_light": 2, "Traffic-Lights": 1},
            [("traffic_light", "traffic light"), ("Traffic-Lights", "traffic light")],
        ),
        ({"cat": 1000, "cow": 1, "bat": 1}, []),  # too short to tell
        ({"motorbike": 50, "motorbkie": 5, "motor": 5}, [("motorbkie", "motorbike")]),
        ({}, []),
    ],
)
def test_misspelled_tags(counts: dict[str, int], expected: list[tuple[str, str]]) -> None:
    assert [(tag.name, tag.suggestion) for tag in find_misspelled_tags(counts)] == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs of ../shared/data/voc are missing")
def test_photographs() -> None:
    images = read_voc(SHARED, split="val")
    verified = verify_images(images, skip_bad=False, workers=2, progress=Reporter().progress)
    assert all(s.size and max(s.size) <= 320 for s in verified.samples)
    report = check(images)
    assert report.ok
    assert report.num_masks == report.num_saliency == 723
    assert report.tags_without_pixels.count == 0
    assert report.pixels_without_tags.examples == (("2008_005245", "person"),)
    assert report.misspelled_tags == ()
