"""Writing saliency maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.saliency import read_and_resize_saliency, write_missing_saliency_maps
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.progress import Reporter

NO_PROGRESS = Reporter().progress


def red(image: np.ndarray) -> np.ndarray:
    """In place of a model: the red channel."""
    return image[..., 0].astype(np.float32) / 255


def fail() -> None:
    raise AssertionError("a model is loaded although there is nothing to do")


@pytest.fixture
def images(tmp_path: Path) -> TaggedImages:
    """Two images, one of them large and in a subfolder, and a file that is not an image."""
    (tmp_path / "in/deep").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8))
    image.save(tmp_path / "in/a.png")
    image.resize((800, 600)).save(tmp_path / "in/deep/b.png")
    (tmp_path / "in/c.png").write_bytes(b"nothing")
    names = {"a": "a.png", "deep/b": "deep/b.png", "c": "c.png"}
    samples = tuple(Sample(image_id, str(tmp_path / "in" / name), (1,)) for image_id, name in names.items())
    return TaggedImages(("disc",), samples, name="discs")


def test_files_are_written_once(images: TaggedImages, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = write_missing_saliency_maps(
        images, folder, lambda: red, skip_bad=True, compute=Compute(), progress=NO_PROGRESS
    )
    assert [(s.id, s.saliency) for s in result.samples] == [("a", folder / "a.png"), ("deep/b", folder / "deep/b.png")]
    assert [problem.where for problem in result.problems] == [images.samples[2].image]
    expected = images.samples[0].read_image()[..., 0]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "a.png")), expected)
    with Image.open(folder / "deep/b.png") as large:
        assert (large.mode, large.size) == ("L", (400, 300))
    resized = read_and_resize_saliency(folder / "deep/b.png", (600, 800))
    assert np.abs(resized - red(images.samples[1].read_image())).mean() < 0.01
    (folder / "a.png").write_bytes(b"made by the user")
    (folder / ".left-over.tmp").touch()
    again = write_missing_saliency_maps(
        images, folder, fail, skip_bad=True, compute=Compute(), progress=NO_PROGRESS  # type: ignore[arg-type]
    )  # fmt: skip
    assert again.samples == result.samples
    assert sorted(f.name for f in folder.rglob("*") if f.is_file()) == ["a.png", "b.png"]
    assert (folder / "a.png").read_bytes() == b"made by the user"


def test_bad_images_are_an_error(images: TaggedImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 3 images of discs is bad: .*c\.png: is not an image that can be read"):
        write_missing_saliency_maps(
            images, tmp_path / "out", lambda: red, skip_bad=False, compute=Compute(), progress=NO_PROGRESS
        )
    assert not (tmp_path / "out").exists()


def test_existing_masks_and_saliency_maps_are_ignored(images: TaggedImages, tmp_path: Path) -> None:
    one = replace(images, samples=(replace(images.samples[0], saliency=tmp_path / "no such file.png"),))
    result = write_missing_saliency_maps(
        one, tmp_path / "out", lambda: red, skip_bad=False, compute=Compute(), progress=NO_PROGRESS
    )
    assert result.samples[0].saliency == tmp_path / "out/a.png"
