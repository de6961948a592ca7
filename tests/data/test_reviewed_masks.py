"""Reviewed masks of images: from a folder, verified, and as labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.check import check_images
from tagmask.data.held_out import held_out_source
from tagmask.data.new_images import list_images
from tagmask.data.samples import PngMask, ReviewedMask, Sample, TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.verified_files import read_verified
from tagmask.data.verify import verify_images
from tagmask.errors import DataError
from tagmask.label_map import write_label_map
from tagmask.progress import Reporter
from tagmask.run_data import read_run_data

LABELS = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 4, 3), len(path.name), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two images, of which one has a reviewed mask in the same folder."""
    for name in ("cat/1.png", "dog/2.png"):
        write_image(tmp_path / name)
    write_label_map(tmp_path / "reviewed" / "cat" / "1.png", LABELS)
    return tmp_path


def verify(images: TaggedImages, remembered: Path | None = None) -> TaggedImages:
    return verify_images(images, skip_bad=False, workers=1, progress=Reporter().progress, remembered=remembered)


@pytest.mark.parametrize("format", ["folders", "table", "coco", "yolo", "images"])
def test_masks_are_attached_and_are_no_images(root: Path, format: str) -> None:
    (root / "tags.csv").write_text("image,tags\n1.png,cat\n2.png,dog\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    files = [{"id": i, "file_name": name, "height": 2, "width": 4} for i, name in enumerate(["cat/1.png", "dog/2.png"])]
    coco = {"images": files, "annotations": [], "categories": [{"id": 5, "name": "cat"}]}
    (root / "instances.json").write_text(json.dumps(coco))
    (root / "cat" / "1.txt").write_text("0 0.5 0.5 1 1\n")
    settings = {"coco": {"annotations": "instances.json"}, "yolo": {"class_list": "classes.txt"}}.get(format, {})
    source = DataSource.model_validate({"root": str(root), "format": format, "reviewed": "reviewed", **settings})
    images = source.read()
    assert [sample.id for sample in images.samples] == ["cat/1", "dog/2"]
    masks = [sample.reviewed_mask for sample in images.samples]
    assert masks == [PngMask(root / "reviewed" / "cat" / "1.png"), None]
    assert not [problem for problem in images.problems if "reviewed" in problem.where]
    assert all(sample.mask is None or format == "coco" for sample in images.samples)


def test_selected_classes_change_the_ids(root: Path) -> None:
    source = DataSource(root=str(root), reviewed="reviewed", classes=("dog",))
    [sample, _] = source.read().samples
    assert sample.reviewed_mask is not None
    np.testing.assert_array_equal(sample.reviewed_mask.read(), [[0, 0, 1, 255], [1, 1, 0, 0]])
    corrected = replace(sample, tags=(1,), uncorrected_tags=())
    [swapped] = TaggedImages(("dog",), (corrected,)).with_classes(["new", "dog"]).samples
    assert (swapped.tags, swapped.data_tags) == ((2,), ())


def test_names_that_fit_no_image_give_a_warning(root: Path) -> None:
    (root / "reviewed" / "cat" / "1.png").rename(root / "reviewed" / "cat" / "other.png")
    images = DataSource(root=str(root), reviewed="reviewed").read()
    assert "has no PNG that belongs to any of the images" in images.problems[-1].message
    with pytest.raises(DataError, match="the folder missing does not exist"):
        DataSource(root=str(root), reviewed="missing").read()


def test_held_out_images_have_no_reviewed_masks(root: Path) -> None:
    training = DataSource(root=str(root), reviewed="reviewed")
    images, held_out = read_run_data(training, training, skip_bad=False, workers=1, reporter=Reporter())
    assert held_out is not None
    assert [sample.reviewed is not None for sample in (*images.samples, *held_out.samples)] == [True, *[False] * 3]
    source = held_out_source(training, str(root / "cat"))
    assert source is not None
    assert source.reviewed is None


def test_a_flat_folder_without_tags(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write_label_map(tmp_path / "reviewed" / "1.png", LABELS)
    assert [sample.id for sample in list_images(DataSource(root=str(tmp_path), reviewed="reviewed")).samples] == ["1"]


def test_paths_become_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert DataSource(root=".", reviewed="reviewed").with_absolute_paths().reviewed == str(root / "reviewed")


def test_verification_fills_in_a_digest_that_changes_with_the_mask(root: Path, tmp_path: Path) -> None:
    source, cache = DataSource(root=str(root), reviewed="reviewed"), tmp_path / "verified.json"

    def digests() -> list[str | None]:
        return [s.reviewed.digest if s.reviewed else None for s in verify(source.read(), cache).samples]

    first = digests()
    assert first[0]
    assert first[1] is None
    assert digests() == first  # remembered
    assert sorted(map(len, read_verified(cache).values())) == [4, 5]
    write_label_map(root / "reviewed" / "cat" / "1.png", LABELS[::-1])
    assert digests()[0] not in (None, first[0])
    write_label_map(root / "reviewed" / "cat" / "1.png", LABELS)
    assert digests() == first


def test_the_labels_of_an_image(tmp_path: Path) -> None:
    write_label_map(tmp_path / "1.png", LABELS)
    sample = Sample("1", "1.png", (1,), size=(2, 4))
    assert sample.read_reviewed_labels((2, 4)) is None
    rejected = replace(sample, reviewed=ReviewedMask(None))
    assert rejected.reviewed_mask is None
    labels = rejected.read_reviewed_labels((1, 2))
    assert labels is not None
    np.testing.assert_array_equal(labels, [[255, 255]])
    reviewed = replace(sample, reviewed=ReviewedMask(PngMask(tmp_path / "1.png")))
    np.testing.assert_array_equal(reviewed.read_reviewed_labels((2, 4)), LABELS)  # type: ignore[arg-type]
    assert TaggedImages((), (reviewed,)).without_reviewed_masks().samples == (sample,)
    images = TaggedImages((), (sample,))
    assert images.without_reviewed_masks() is images


def test_check_counts_them_and_compares_them_with_the_tags(root: Path) -> None:
    images = DataSource(root=str(root), reviewed="reviewed").read()
    report = check_images(images, workers=1, progress=Reporter().progress)
    assert report.num_reviewed == 1
    assert report.num_masks == 0
    assert report.pixels_without_tags.examples == (("cat/1", "dog"),)
    assert report.ok
