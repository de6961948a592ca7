"""Verification of a data set, and the file that remembers it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.two_processes import run_in_two

from tagmask.compute import Compute
from tagmask.data import verify as module
from tagmask.data.coco_reader import read_coco
from tagmask.data.images import decode_image
from tagmask.data.saliency import saliency_fingerprint
from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages
from tagmask.data.verify import ground_truth_fingerprint, verify_images
from tagmask.errors import DataError
from tagmask.progress import Reporter

NO_PROGRESS = Reporter().progress


def make_sample(root: Path, name: str, tags: tuple[int, ...] | None, width: int = 6, height: int = 4) -> Sample:
    path = root / f"{name}.png"
    noise = np.random.default_rng([ord(c) for c in name]).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return Sample(name, str(path), tags)


def with_mask(sample: Sample, labels: np.ndarray | list[list[int]]) -> Sample:
    path = Path(sample.image).with_name(f"{sample.id}-mask.png")
    Image.fromarray(np.array(labels, np.uint8)).save(path)
    return replace(sample, mask=PngMask(path))


def with_saliency(sample: Sample, value: int = 7, size: tuple[int, int] = (6, 4)) -> Sample:
    path = Path(sample.image).with_name(f"{sample.id}-saliency.png")
    Image.new("L", size, value).save(path)
    return replace(sample, saliency=path)


def make_bad_sample(root: Path, name: str, content: bytes = b"") -> Sample:
    (root / f"{name}.png").write_bytes(content)
    return Sample(name, str(root / f"{name}.png"), (1,))


def verify(images: TaggedImages, *, skip_bad: bool = False, remembered: Path | None = None) -> TaggedImages:
    return verify_images(images, skip_bad=skip_bad, workers=2, progress=NO_PROGRESS, remembered=remembered)


# What is checked


def test_sizes_are_filled_in_and_the_order_is_kept(tmp_path: Path) -> None:
    samples = tuple(make_sample(tmp_path, f"i{i}", (1,), 10 + i, 5) for i in range(20))
    images = verify(TaggedImages(("cat",), samples))
    assert [s.size for s in images.samples] == [(5, 10 + i) for i in range(20)]
    assert images.problems == ()


def test_each_image_is_read_once_and_one_worker_needs_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tuple(with_mask(make_sample(tmp_path, name, (1,)), np.ones((4, 6))) for name in ("a", "b", "c"))
    images = TaggedImages(("cat",), samples)
    expected, reads = verify(images), []

    def read(path: str) -> bytes:
        reads.append((Path(path).name, threading.current_thread()))
        return Path(path).read_bytes()

    monkeypatch.setattr(module, "read_bytes", read)
    monkeypatch.setattr("tagmask.data.images.read_bytes", read)
    assert verify_images(images, skip_bad=False, workers=1, progress=NO_PROGRESS) == expected
    names = ["a.png", "a-mask.png", "b.png", "b-mask.png", "c.png", "c-mask.png"]
    assert reads == [(name, threading.current_thread()) for name in names]


def test_progress_is_reported(tmp_path: Path) -> None:
    calls: list[int] = []

    @contextmanager
    def progress(description: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        calls.append(total)
        yield calls.append

    images = TaggedImages(("cat",), (make_sample(tmp_path, "a", ()),))
    verify_images(images, skip_bad=False, workers=1, progress=progress)
    assert calls == [1, 1]


def test_bad_images_are_named(tmp_path: Path) -> None:
    images = TaggedImages(
        ("cat",),
        (
            make_sample(tmp_path, "good", (1,)),
            make_bad_sample(tmp_path, "empty"),
            make_bad_sample(tmp_path, "text", b"no image"),
            Sample("missing", "missing.jpg", (1,)),
        ),
        (Problem("tags.csv, line 9", "is wrong", "correct it"), Problem("x", "is unusual", "check it", "warning")),
        "photos",
    )
    with pytest.raises(DataError) as raised:
        verify(images)
    assert str(raised.value) == (
        "4 of 5 images of photos are bad: tags.csv, line 9: is wrong; correct it. "
        f"{tmp_path}/empty.png: is empty (0 bytes); replace or remove it. "
        f"{tmp_path}/text.png: is not an image that can be read; replace or remove it. "
        "(and 1 more) Correct them, or leave them out with --skip-bad; `tagmask check` lists all."
    )
    usable = verify(images, skip_bad=True)
    assert [s.id for s in usable.samples] == ["good"]
    assert [p.severity for p in usable.problems] == ["error", "warning", "error", "error", "error"]


def test_no_image_can_be_used(tmp_path: Path) -> None:
    images = TaggedImages(("cat",), (make_bad_sample(tmp_path, "empty"),), name="photos")
    with pytest.raises(DataError, match=r"photos has no image that can be used \(.*empty\.png: is empty"):
        verify(images, skip_bad=True)
    with pytest.raises(DataError, match="has no image"):
        verify(TaggedImages(("cat",), ()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 5)), r"a-mask\.png: has 5×4 pixels and its image 6×4; give both the same size\."),
        (np.zeros((6, 4)), r"has 4×6 pixels and its image 6×4; give both the same size \(the EXIF data may rotate"),
        (np.full((4, 6), 3), "has pixels of class 3, but the largest class id is 2; correct it"),
        (np.zeros((4, 6, 3)), "has the color mode RGB, so it is not a mask; save it as an indexed or 8-bit grey PNG"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    bad = with_mask(make_sample(tmp_path, "a", (1,)), labels)
    with pytest.raises(DataError, match=message):
        verify(TaggedImages(("cat", "dog"), (bad, make_sample(tmp_path, "b", ()))))


def test_a_rotated_image_fits_its_upright_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    rotated = with_mask(Sample("a", str(tmp_path / "a.jpg"), ()), np.zeros((6, 4)))
    assert verify(TaggedImages(("cat",), (rotated,))).samples[0].size == (6, 4)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((300, 200), True), ((150, 100), True), ((600, 400), True), ((31, 20), True), ((200, 300), False)],
)
def test_saliency_may_have_another_size_but_not_another_aspect_ratio(
    tmp_path: Path, size: tuple[int, int], fits: bool
) -> None:
    images = TaggedImages(("cat",), (with_saliency(make_sample(tmp_path, "a", (1,), 300, 200), size=size),))
    if fits:
        assert len(verify(images)) == 1
    else:
        message = r"saliency\.png: has 200×300 pixels and its image 300×200; give both the same aspect ratio"
        with pytest.raises(DataError, match=message):
            verify(images)


def test_one_pixel(tmp_path: Path) -> None:
    images = TaggedImages(("<script>",), (make_sample(tmp_path, "a", (1,), 1, 1),))
    assert verify(images).samples[0].size == (1, 1)


# What is remembered


@pytest.fixture
def images(tmp_path: Path) -> TaggedImages:
    """Three images, with masks and saliency maps."""
    folder = tmp_path / "images"
    folder.mkdir()
    samples = [make_sample(folder, name, (1,)) for name in ("a", "b", "c")]
    samples = [with_saliency(with_mask(sample, np.ones((4, 6)))) for sample in samples]
    return TaggedImages(("cat", "dog"), tuple(samples))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are decoded from now on."""
    paths: list[str] = []

    def record(content: bytes, path: str) -> np.ndarray:
        paths.append(Path(path).name)
        return decode_image(content, path)

    monkeypatch.setattr(module, "decode_image", record)
    return paths


def edit(path: str | Path, content: bytes | None = None) -> None:
    """Change the time of a file, and optionally its content."""
    if content is not None:
        Path(path).write_bytes(content)
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_nothing_is_opened_the_second_time(
    images: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = tmp_path / "run" / "verified.json"
    first = verify(images, remembered=remembered)
    written = remembered.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a file is opened, or progress is shown")

    for name in ("decode_image", "read_grey", "read_bytes"):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(PngMask, "read", fail)
    again = verify_images(images, skip_bad=False, workers=2, progress=fail, remembered=remembered)  # type: ignore[arg-type]
    assert again == first
    assert [s.size for s in again.samples] == [(4, 6)] * 3
    assert remembered.read_bytes() == written


def test_changed_files_are_decoded_again(images: TaggedImages, tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "verified.json"
    verify(images, remembered=remembered)
    a, b, c = images.samples
    assert isinstance(b.mask, PngMask)
    assert c.saliency is not None
    for path, name in ((a.image, "a.png"), (b.mask.path, "b.png"), (c.saliency, "c.png")):
        decoded.clear()
        edit(path)
        verify(images, remembered=remembered)
        assert decoded == [name]
    with_comment = Path(a.image).read_bytes() + b"\0"  # Pillow ignores bytes after the end of a PNG
    status = os.stat(a.image)
    Path(a.image).write_bytes(with_comment)
    os.utime(a.image, ns=(status.st_atime_ns, status.st_mtime_ns))  # only the size differs
    decoded.clear()
    verify(images, remembered=remembered)
    assert decoded == ["a.png"]
    verify(images, remembered=remembered)
    assert decoded == ["a.png"]


def test_other_classes_are_verified_again(images: TaggedImages, tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "verified.json"
    first, *others = images.samples
    images = replace(images, samples=(with_mask(first, np.full((4, 6), 2)), *others))
    verify(images, remembered=remembered)
    with pytest.raises(DataError, match="has pixels of class 2, but the largest class id is 1"):
        verify(replace(images, classes=("cat",)), remembered=remembered)
    decoded.clear()
    verify(images.restrict(["dog", "cat"]), remembered=remembered)  # as many classes, but other ids in the masks
    assert len(decoded) == 3


def test_results_do_not_depend_on_the_working_directory(
    images: TaggedImages, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = tmp_path / "verified.json"
    verify(images, remembered=remembered)
    monkeypatch.chdir(tmp_path / "images")
    decoded.clear()
    relative = [
        replace(s, image=f"{s.id}.png", mask=PngMask(Path(f"{s.id}-mask.png")), saliency=Path(f"{s.id}-saliency.png"))
        for s in images.samples
    ]
    verify(replace(images, samples=tuple(relative)), remembered=remembered)
    assert decoded == []


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "list", "edited", "folder"])
def test_a_damaged_file_has_no_effect(images: TaggedImages, tmp_path: Path, decoded: list[str], damage: str) -> None:
    remembered = tmp_path / "verified.json"
    first = verify(images, remembered=remembered)
    content = json.loads(remembered.read_bytes())
    if damage == "edited":
        content["samples"] = {key: [999, *rest] for key, (_, *rest) in content["samples"].items()}
        remembered.write_text(json.dumps(content))
    elif damage == "folder":
        remembered.unlink()
        remembered.mkdir()
    else:
        texts = {"empty": b"", "cut": remembered.read_bytes()[:50], "text": b"\xff", "list": b"[1]"}
        remembered.write_bytes(texts[damage])
    decoded.clear()
    assert verify(images, remembered=remembered) == first
    assert sorted(decoded) == ["a.png", "b.png", "c.png"]


def test_only_the_current_images_are_remembered(images: TaggedImages, tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "verified.json"
    verify(images, remembered=remembered)
    one = replace(images, samples=images.samples[:1])
    decoded.clear()
    verify(one, remembered=remembered)
    assert decoded == []
    assert len(json.loads(remembered.read_bytes())["samples"]) == 1


def test_bad_images_are_not_remembered(images: TaggedImages, tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "run" / "verified.json"
    bad = make_bad_sample(tmp_path, "bad", b"no image")
    mixed = replace(images, samples=(*images.samples, bad))
    with pytest.raises(DataError, match=r"1 of 4 images .* is bad"):
        verify(mixed, remembered=remembered)
    assert not remembered.parent.exists()  # a run that does not begin leaves no folder
    remembered.parent.mkdir()
    with pytest.raises(DataError, match=r"1 of 4 images .* is bad"):
        verify(mixed, remembered=remembered)
    for _ in range(2):
        decoded.clear()
        usable = verify(mixed, skip_bad=True, remembered=remembered)
        assert [s.id for s in usable.samples] == ["a", "b", "c"]
        assert len(usable.problems) == 1
        assert decoded == ["bad.png"]
    Image.new("RGB", (6, 4)).save(bad.image)
    assert len(verify(mixed, remembered=remembered)) == 4


def test_images_at_urls_are_not_remembered(images: TaggedImages, tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "verified.json"
    url = replace(images.samples[0], image=f"file://{images.samples[0].image}")
    images = replace(images, samples=(url, *images.samples[1:]))
    verify(images, remembered=remembered)
    decoded.clear()
    verify(images, remembered=remembered)
    assert decoded == ["a.png"]


def test_a_file_that_cannot_be_written_has_no_effect(images: TaggedImages, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    assert len(verify(images, remembered=tmp_path / "run" / "verified.json")) == 3


def write_coco(root: Path, x: int = 1) -> Path:
    for name in ("a", "b"):
        if not (root / f"{name}.jpg").exists():
            Image.new("RGB", (40, 30)).save(root / f"{name}.jpg")
    sizes = {"height": 30, "width": 40}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"} | sizes, {"id": 2, "file_name": "b.jpg"} | sizes],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[x, 1, x + 9, 1, x + 9, 9, x, 9]]},
            {"id": 2, "image_id": 2, "category_id": 5, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]},
        ],
        "categories": [{"id": 5, "name": "cat"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


def test_coco_masks_are_remembered_by_their_annotations(tmp_path: Path, decoded: list[str]) -> None:
    remembered = tmp_path / "verified.json"
    images = read_coco(tmp_path, write_coco(tmp_path))
    verify(images, remembered=remembered)
    assert sorted(decoded) == ["a.jpg", "b.jpg"]
    decoded.clear()
    assert [s.size for s in verify(read_coco(tmp_path, write_coco(tmp_path)), remembered=remembered).samples] == [
        (30, 40),
        (30, 40),
    ]
    assert decoded == []
    changed = read_coco(tmp_path, write_coco(tmp_path, x=3))
    verify(changed, remembered=remembered)
    assert decoded == ["a.jpg"]  # only its annotation changed
    assert ground_truth_fingerprint(changed) != ground_truth_fingerprint(images)


# Fingerprints


def test_the_saliency_fingerprint_of_verified_images_needs_no_file(
    images: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = tmp_path / "verified.json"
    first = verify(images, remembered=remembered)
    saliency = images.samples[0].saliency
    assert saliency is not None
    assert first.samples[0].saliency_crc == zlib.crc32(saliency.read_bytes())
    expected = saliency_fingerprint(images)  # the images are not verified, so the files are read
    monkeypatch.setattr("tagmask.data.saliency.read_bytes", None)
    assert saliency_fingerprint(first) == expected
    assert saliency_fingerprint(verify(images, remembered=remembered)) == expected
    Image.new("L", (6, 4), 8).save(saliency)
    edit(saliency)
    assert saliency_fingerprint(verify(images, remembered=remembered)) != expected
    bare = replace(images, samples=tuple(replace(s, saliency=None) for s in images.samples))
    assert saliency_fingerprint(verify(bare)) != expected


def test_the_ground_truth_fingerprint_depends_on_masks_and_classes(images: TaggedImages) -> None:
    before = ground_truth_fingerprint(images)
    assert ground_truth_fingerprint(verify(images)) == before
    assert ground_truth_fingerprint(replace(images, classes=("cat", "cow"))) != before
    assert ground_truth_fingerprint(images.restrict(["dog", "cat"])) != before
    assert ground_truth_fingerprint(replace(images, samples=images.samples[1:])) != before
    edit(images.samples[0].image)
    assert ground_truth_fingerprint(images) == before
    mask = images.samples[0].mask
    assert isinstance(mask, PngMask)
    edit(mask.path)
    assert ground_truth_fingerprint(images) != before


# Imports


@pytest.mark.parametrize("name", ["source", "check", "verify", "new_images", "saliency"])
def test_readers_do_not_import_heavy_libraries(name: str) -> None:
    code = (
        f"import sys, tagmask.data.{name}; "
        "print(*[m for m in ('torch', 'torchvision', 'scipy', 'numba', 'skimage', 'fsspec') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def verify_and_write(compute: Compute, images: TaggedImages, remembered: Path, out: Path) -> None:
    decoded: list[str] = []

    def record(sample: Sample, num_classes: int) -> module.Inspection:
        decoded.append(sample.id)
        return inspect(sample, num_classes)

    inspect, module._inspect = module._inspect, record
    try:
        verified = verify_images(
            images, skip_bad=False, workers=1, progress=NO_PROGRESS, remembered=remembered, processes=compute
        )
        result = [[sample.id, sample.size, sample.digest] for sample in verified.samples]
    except DataError as error:
        result = [[str(error)]]
    (out / f"{compute.rank}.json").write_text(json.dumps([sorted(decoded), result]))


@pytest.mark.slow
def test_processes_share_the_work(tmp_path: Path) -> None:
    samples = tuple(make_sample(tmp_path, name, (1,), width) for width, name in enumerate("abcde", 5))
    images = TaggedImages(("cat",), samples)
    remembered = tmp_path / "remembered.json"
    verify(replace(images, samples=samples[:2]), remembered=remembered)
    alone = [[sample.id, list(sample.size or ()), sample.digest] for sample in verify(images).samples]

    def in_two(images: TaggedImages) -> list[Any]:
        assert run_in_two(verify_and_write, images, remembered, tmp_path) == [0, 0]
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    assert in_two(images) == [[["c", "e"], alone], [["d"], alone]]
    assert in_two(images) == [[[], alone], [[], alone]]
    bad = replace(images, samples=(*samples, make_bad_sample(tmp_path, "f")))
    found = in_two(bad)
    assert [decoded for decoded, _ in found] == [["f"], []]
    assert found[0][1] == found[1][1]
    assert "1 of 6 images" in found[0][1][0][0]
