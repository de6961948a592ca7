import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.check import CheckReport, check, verify_images
from tagmask.data.misspelled_tags import misspelled_tags
from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages
from tagmask.data.voc_reader import read_voc
from tagmask.errors import DataError
from tagmask.progress import no_progress

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc"


def sample(root: Path, name: str, tags: tuple[int, ...] | None, width: int = 6, height: int = 4) -> Sample:
    path = root / f"{name}.png"
    noise = np.random.default_rng([ord(c) for c in name]).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return Sample(name, str(path), tags)


def mask(root: Path, name: str, labels: np.ndarray | list[list[int]]) -> PngMask:
    Image.fromarray(np.array(labels, np.uint8)).save(root / f"{name}-mask.png")
    return PngMask(root / f"{name}-mask.png")


def broken(root: Path, name: str, content: bytes = b"") -> Sample:
    (root / f"{name}.png").write_bytes(content)
    return Sample(name, str(root / f"{name}.png"), (1,))


def report_on(images: TaggedImages) -> CheckReport:
    return check(images, workers=2, progress=no_progress)


def verify(images: TaggedImages, skip_bad: bool = False) -> TaggedImages:
    return verify_images(images, skip_bad=skip_bad, workers=2, progress=no_progress)


def with_mask(s: Sample, labels: np.ndarray | list[list[int]]) -> Sample:
    return Sample(s.id, s.image, s.tags, mask(Path(s.image).parent, s.id, labels))


def test_sizes_are_filled_in_and_order_is_kept(tmp_path: Path) -> None:
    samples = tuple(sample(tmp_path, f"i{i}", (1,), 10 + i, 5) for i in range(20))
    images = verify(TaggedImages(("cat",), samples))
    assert [s.size for s in images.samples] == [(5, 10 + i) for i in range(20)]
    assert images.problems == ()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append(total)
        yield told.append

    verify_images(TaggedImages(("cat",), (sample(tmp_path, "a", ()),)), skip_bad=False, workers=1, progress=progress)
    assert told == [1, 1]


def test_bad_images_are_named(tmp_path: Path) -> None:
    good = sample(tmp_path, "good", (1,))
    images = TaggedImages(
        ("cat",),
        (good, broken(tmp_path, "empty"), broken(tmp_path, "text", b"no image"), Sample("gone", "gone.jpg", (1,))),
        (Problem("tags.csv, line 9", "is wrong", "mend it"), Problem("x", "is odd", "look", "warning")),
        "photos",
    )
    with pytest.raises(DataError) as raised:
        verify(images)
    assert str(raised.value) == (
        "4 of 5 images of photos are bad: tags.csv, line 9: is wrong; mend it. "
        f"{tmp_path}/empty.png: is empty (0 bytes); replace or remove it. "
        f"{tmp_path}/text.png: is not an image that can be read; replace or remove it. "
        "(and 1 more) Correct them, or leave them out with --skip-bad; `tagmask check` lists all."
    )
    kept = verify(images, skip_bad=True)
    assert [s.id for s in kept.samples] == ["good"]
    assert [p.severity for p in kept.problems] == ["error", "warning", "error", "error", "error"]
    report = report_on(images)
    assert (report.num_images, report.num_bad, report.ok) == (1, 4, False)


def test_nothing_left(tmp_path: Path) -> None:
    images = TaggedImages(("cat",), (broken(tmp_path, "empty"),), name="photos")
    with pytest.raises(DataError, match=r"photos holds no image that can be used \(.*empty\.png: is empty"):
        verify(images, skip_bad=True)
    with pytest.raises(DataError, match="holds no image"):
        verify(TaggedImages(("cat",), ()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 5)), r"a-mask\.png: has 5×4 pixels, its image 6×4; make them the same\."),
        (np.zeros((6, 4)), r"has 4×6 pixels, its image 6×4; make them the same \(the image may be turned"),
        (np.full((4, 6), 3), "has pixels of class 3, and there are 2 classes; correct it"),
        (np.zeros((4, 6, 3)), "is a RGB picture, not a mask; save it as indexed or 8-bit grey PNG"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    bad = with_mask(sample(tmp_path, "a", (1,)), labels)
    with pytest.raises(DataError, match=message):
        verify(TaggedImages(("cat", "dog"), (bad, sample(tmp_path, "b", ()))))


def test_turned_image_fits_its_upright_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    turned = with_mask(Sample("a", str(tmp_path / "a.jpg"), ()), np.zeros((6, 4)))
    assert verify(TaggedImages(("cat",), (turned,))).samples[0].size == (6, 4)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((300, 200), True), ((150, 100), True), ((600, 400), True), ((31, 20), True), ((200, 300), False)],
)
def test_saliency_may_have_another_size_but_not_shape(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    image = sample(tmp_path, "a", (1,), 300, 200)
    Image.new("L", size).save(tmp_path / "saliency.png")
    images = TaggedImages(("cat",), (Sample("a", image.image, (1,), saliency=tmp_path / "saliency.png"),))
    if fits:
        assert len(verify(images)) == 1
    else:
        with pytest.raises(
            DataError, match=r"saliency\.png: has 200×300 pixels, its image 300×200; give it the same shape"
        ):
            verify(images)


def test_one_class_and_one_image_work(tmp_path: Path) -> None:
    images = TaggedImages(("<script>",), (sample(tmp_path, "a", (1,), 1, 1),))
    assert verify(images).samples[0].size == (1, 1)
    report = report_on(images)
    assert report.ok
    assert [p.severity for p in report.problems] == ["warning", "warning"]
    assert "there is one image only of <script>" in str(report.problems[0])
    assert "there is one class only" in str(report.problems[1])


def test_a_tag_that_may_be_several(tmp_path: Path) -> None:
    report = report_on(TaggedImages(("cat, dog", "cat"), (sample(tmp_path, "a", (1, 2), 1, 1),)))
    assert "the tag 'cat, dog' may be several in one; separate tags by \";\"" in str(report.problems[0])
    assert "may be several" not in str(report.problems[1:])


def test_figures(tmp_path: Path) -> None:
    tags = [(1,), (1, 2), (1, 2), (), None]
    samples = tuple(sample(tmp_path, f"i{i}", t, 10 * (i + 1), i + 1) for i, t in enumerate(tags))
    report = report_on(TaggedImages(("cat", "dog", "yak"), samples, name="pets"))
    assert (report.num_images, report.num_bad, report.num_untagged, report.num_masks) == (5, 0, 1, 0)
    assert report.images_per_class == (3, 2, 0)
    assert report.tags_per_image == (1, 1, 2)
    assert report.mean_tags == 5 / 4
    assert report.co_occurrence == ((3, 2, 0), (2, 2, 0), (0, 0, 0))
    assert report.heights == (1, 3, 5)
    assert report.widths == (10, 30, 50)
    assert [str(p) for p in report.problems] == ["pets: there is no image of yak; add images of them."]
    content = json.loads(json.dumps(report.to_json()))
    assert content["ok"] is True
    assert content["co_occurrence"][0] == [3, 2, 0]
    assert content["problems"][0]["severity"] == "warning"


def test_an_empty_set_can_be_checked() -> None:
    report = report_on(TaggedImages((), ()))
    assert not report.ok
    assert report.heights is None
    assert report.mean_tags == 0
    json.dumps(report.to_json())


def test_masks_that_disagree_with_tags(tmp_path: Path) -> None:
    blank = np.zeros((4, 6))
    both = np.array([[1, 1, 1, 2, 2, 255]] * 4)
    samples = (
        with_mask(sample(tmp_path, "a", (1, 2)), both),
        with_mask(sample(tmp_path, "b", (1,)), both),
        with_mask(sample(tmp_path, "c", (1, 2)), blank),
        with_mask(sample(tmp_path, "d", None), both),
        sample(tmp_path, "e", (1,)),
    )
    report = report_on(TaggedImages(("cat", "dog"), samples))
    assert report.ok
    assert report.num_masks == 4
    assert report.tags_without_pixels.first == (("c", "cat"), ("c", "dog"))
    assert report.pixels_without_tags.first == (("b", "dog"),)
    said = " ".join(str(p) for p in report.problems)
    assert "2 tags have no pixels in the mask (c, cat; c, dog); correct the tags or the masks." in said
    assert "1 classes in masks have no tag (b, dog)" in said


def test_duplicates(tmp_path: Path) -> None:
    samples = [sample(tmp_path, name, (1,)) for name in ("a", "b", "c")]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    report = report_on(TaggedImages(("cat",), tuple(samples)))
    assert report.duplicates.first == (("a", "b"),)
    assert report.ok
    assert "1 images are there more than once (a, b)" in " ".join(map(str, report.problems))


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"horse": 200, "hrose": 1}, [("hrose", "horse")]),
        ({"horse": 200, "hrose": 0}, []),
        ({"horse": 3, "hrose": 1}, [("hrose", "horse")]),  # few images, but made once
        ({"horse": 4, "hrose": 2}, []),
        ({"horse": 20, "house": 15}, []),  # both are used
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
def test_lookalikes(counts: dict[str, int], found: list[tuple[str, str]]) -> None:
    assert [(slip.name, slip.meant) for slip in misspelled_tags(counts)] == found


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs of ../shared/data/voc are not here")
def test_photographs() -> None:
    images = read_voc(SHARED, split="val")
    sizes = [s.size for s in verify(images).samples]
    assert all(size and max(size) <= 320 for size in sizes)
    report = report_on(images)
    assert report.ok
    assert report.num_masks == report.num_saliency == 723
    assert report.tags_without_pixels.count == 0
    assert report.pixels_without_tags.first == (("2008_005245", "person"),)
    assert report.misspelled_tags == ()
