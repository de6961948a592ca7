"""Weak saliency maps by robust background detection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data import background_detection as module
from tagmask.data.background_detection import (
    _background_probability,
    _graph_edges,
    _optimize_saliency,
    compute_saliency,
    write_missing_saliency_maps,
)
from tagmask.data.images import read_image, read_mask_image
from tagmask.data.saliency import read_and_resize_saliency
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError, RunError
from tagmask.progress import Reporter

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc"
NO_PROGRESS = Reporter().progress


def draw_disc(x: float, y: float, size: tuple[int, int] = (120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of an orange disc with radius 30 around (x, y) on noisy grass, and the pixels of the disc."""
    rows, columns = np.indices(size)
    inside = np.hypot(columns - x, rows - y) < 30
    noise = np.random.default_rng(0).normal(0, 6, (*size, 3))
    image = np.where(inside[..., None], (230, 120, 30), (90, 140, 60)) + noise
    return image.clip(0, 255).astype(np.uint8), inside


def test_an_object_in_the_middle_is_salient() -> None:
    image, inside = draw_disc(90, 55)
    saliency = compute_saliency(image)
    assert saliency.dtype == np.float32
    assert (saliency.min(), saliency.max()) == (0, 1)
    salient = saliency >= 0.5
    assert (salient & inside).sum() / (salient | inside).sum() > 0.9


def test_an_object_at_the_border_is_less_salient() -> None:
    """Nine tenths of a second disc are outside the image."""
    image, cropped = draw_disc(-24, 60)
    other, whole = draw_disc(90, 55)
    image[whole] = other[whole][:, [2, 1, 0]]
    saliency = compute_saliency(image)
    assert saliency[cropped].mean() < 0.3
    assert saliency[whole].mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 60), (2, 2), (3, 300), (40, 48)])
def test_images_of_one_color_and_small_images(size: tuple[int, int]) -> None:
    assert not compute_saliency(np.full((*size, 3), 90, np.uint8)).any()
    saliency = compute_saliency(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    assert saliency.shape == size
    assert np.isfinite(saliency).all()


def test_the_graph_connects_neighbors_and_the_border() -> None:
    """There are nine superpixels. Only number 4, in the middle, is not at the border. Each edge occurs once."""
    labels = np.arange(9).reshape(3, 3).repeat(2, 0).repeat(2, 1)
    border = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    low, high = _graph_edges(labels, border)
    expected = {(i, j) for i in border for j in border if i < j} | {(1, 4), (3, 4), (4, 5), (4, 7)}
    assert set(zip(low.tolist(), high.tolist(), strict=True)) == expected
    assert len(low) == len(expected)


def test_background_probability_computed_by_hand() -> None:
    """Eight of nine equal superpixels are at the border: the boundary connectivity is 8 / √9.

    If number 4 differs from all others, its connectivity is 0, and that of the others is 8 / √8.
    """
    labels = np.arange(9).reshape(3, 3)
    border = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    color_distances = np.zeros((9, 9))
    probability = _background_probability(_graph_edges(labels, border), color_distances, border)
    np.testing.assert_allclose(probability, 1 - np.exp(-((8 / 3) ** 2) / 2))
    color_distances[4, :] = color_distances[:, 4] = 1000
    color_distances[4, 4] = 0
    probability = _background_probability(_graph_edges(labels, border), color_distances, border)
    expected = np.where(np.arange(9) == 4, 0, 1 - np.exp(-(8**2 / 8) / 2))
    np.testing.assert_allclose(probability, expected, atol=1e-9)


def test_the_optimum_equals_that_of_least_squares() -> None:
    """The three sums are written as rows of a dense system, which LAPACK solves."""
    rng = np.random.default_rng(0)
    edges = (np.array([0, 0, 1, 2, 3]), np.array([1, 4, 2, 3, 4]))
    color_distances = rng.uniform(0, 30, (5, 5))
    background, foreground = rng.uniform(0.1, 1, (2, 5))
    weights = np.exp(-(color_distances[edges] ** 2) / 200) + 0.1
    differences = np.zeros((5, 5))
    differences[range(5), edges[0]], differences[range(5), edges[1]] = 1, -1
    rows = np.concatenate([np.diag(background**0.5), np.diag(foreground**0.5), weights[:, None] ** 0.5 * differences])
    values = np.concatenate([np.zeros(5), foreground**0.5, np.zeros(5)])
    expected = np.linalg.lstsq(rows, values, rcond=None)[0]
    np.testing.assert_allclose(_optimize_saliency(edges, color_distances, background, foreground), expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs of ../shared/data/voc are missing")
def test_photographs_score_better_than_if_every_pixel_were_salient() -> None:
    intersection = union = num_foreground = num_known = 0
    for mask in sorted((SHARED / "SegmentationClass").iterdir())[::200]:
        ground_truth = read_mask_image(mask)
        salient = compute_saliency(read_image(SHARED / "JPEGImages" / f"{mask.stem}.jpg")) >= 0.5
        known, foreground = ground_truth < 255, ground_truth > 0
        intersection += (salient & foreground)[known].sum()
        union += (salient | foreground)[known].sum()
        num_foreground, num_known = num_foreground + foreground[known].sum(), num_known + known.sum()
    assert intersection / union > num_foreground / num_known + 0.05


# Files


@pytest.fixture
def images(tmp_path: Path) -> TaggedImages:
    """Two images, one of them large and in a subfolder, and a file that is not an image."""
    (tmp_path / "in/deep").mkdir(parents=True)
    image = Image.fromarray(draw_disc(90, 55)[0])
    image.save(tmp_path / "in/a.png")
    image.resize((800, 600)).save(tmp_path / "in/deep/b.jpg")
    (tmp_path / "in/c.png").write_bytes(b"nothing")
    names = {"a": "a.png", "deep/b": "deep/b.jpg", "c": "c.png"}
    samples = tuple(Sample(image_id, str(tmp_path / "in" / name), (1,)) for image_id, name in names.items())
    return TaggedImages(("disc",), samples, name="discs")


def test_files_are_written_once(images: TaggedImages, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for workers in (0, 1):  # the second call has nothing to do
        result = write_missing_saliency_maps(images, folder, skip_bad=True, workers=workers, progress=NO_PROGRESS)
        assert [(s.id, s.saliency) for s in result.samples] == [
            ("a", folder / "a.png"),
            ("deep/b", folder / "deep/b.png"),
        ]
        assert [problem.where for problem in result.problems] == [images.samples[2].image]
        if not workers:
            mtimes = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
            (folder / "a.png").unlink()
            Image.new("L", (160, 120), 7).save(folder / "a.png")  # a file that the user made is kept
            (folder / ".left-over.tmp").touch()
    assert sorted(mtimes) == sorted(f for f in folder.rglob("*") if f.is_file())
    assert (folder / "deep/b.png").stat().st_mtime_ns == mtimes[folder / "deep/b.png"]
    assert read_mask_image(folder / "a.png").max() == 7
    with Image.open(folder / "deep/b.png") as large:
        assert (large.mode, large.size) == ("L", (400, 300))
    inside = np.asarray(Image.fromarray(draw_disc(90, 55)[1]).resize((400, 300)))
    salient = read_and_resize_saliency(folder / "deep/b.png", (300, 400)) >= 0.5
    assert (salient & inside).sum() / (salient | inside).sum() > 0.9


def test_bad_images_are_an_error(images: TaggedImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 3 images of discs is bad: .*c\.png: is not an image that can be read"):
        write_missing_saliency_maps(images, tmp_path / "out", skip_bad=False, workers=0, progress=NO_PROGRESS)
    assert not (tmp_path / "out").exists()


def test_existing_masks_and_saliency_maps_are_ignored(images: TaggedImages, tmp_path: Path) -> None:
    sample = replace(images.samples[0], saliency=tmp_path / "no such file.png")
    one = replace(images, samples=(sample,))
    result = write_missing_saliency_maps(one, tmp_path / "out", skip_bad=False, workers=0, progress=NO_PROGRESS)
    assert result.samples[0].saliency == tmp_path / "out/a.png"


def test_the_error_without_scikit_image(images: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RunError) as error:
        write_missing_saliency_maps(images, tmp_path / "out", skip_bad=False, workers=0, progress=NO_PROGRESS)
    assert str(error.value) == (
        'computing saliency maps needs scikit-image; install it with pip install "tagmask[saliency]".'
    )
