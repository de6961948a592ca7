"""Saliency maps: read at any size, and made without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data import saliency as module
from tagmask.data.images import read_image, read_mask_image
from tagmask.data.saliency import _background, _edges, _optimised, background_saliency, read_saliency, write_saliency
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError, RunError
from tagmask.progress import no_progress

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc"


@pytest.mark.parametrize("size", [(15, 20), (30, 40), (60, 80), (31, 41), (1, 1)])
def test_maps_of_any_size_are_read_at_the_image_s(tmp_path: Path, size: tuple[int, int]) -> None:
    """As Pillow resizes bilinearly."""
    grey = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = read_saliency(tmp_path / "a.png", (30, 40))
    assert found.dtype == np.float32
    expected = Image.fromarray(grey.astype(np.float32)).resize((40, 30), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found, np.asarray(expected) / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "fits"), [((50, 100), True), ((50, 102), True), ((50, 105), False), ((100, 50), False)]
)
def test_maps_must_have_the_image_s_shape(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    Image.new("L", size[::-1]).save(tmp_path / "a.png")
    if fits:
        assert not read_saliency(tmp_path / "a.png", (200, 400)).any()
    else:
        sentence = rf"a\.png has {size[1]}×{size[0]} pixels, its image 400×200; give it the same shape\.$"
        with pytest.raises(DataError, match=sentence):
            read_saliency(tmp_path / "a.png", (200, 400))


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for name in ("a.png", "b.png"):
        with pytest.raises(DataError, match=rf"{name} (is empty|does not exist)"):
            read_saliency(tmp_path / name, (8, 8))


# Robust background detection


def disc(x: float, y: float, size: tuple[int, int] = (120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of an orange disc of 30 pixels around (x, y) on noisy grass, and the disc [H, W]."""
    rows, columns = np.indices(size)
    inside = np.hypot(columns - x, rows - y) < 30
    noise = np.random.default_rng(0).normal(0, 6, (*size, 3))
    picture = np.where(inside[..., None], (230, 120, 30), (90, 140, 60)) + noise
    return picture.clip(0, 255).astype(np.uint8), inside


def test_what_stands_out_in_the_middle_is_salient() -> None:
    picture, inside = disc(90, 55)
    found = background_saliency(picture)
    assert found.dtype == np.float32
    assert (found.min(), found.max()) == (0, 1)
    salient = found >= 0.5
    assert (salient & inside).sum() / (salient | inside).sum() > 0.9


def test_what_the_border_cuts_off_is_less_so() -> None:
    """The same disc, nine tenths of it outside: next to a whole one it is background."""
    picture, cut = disc(-24, 60)
    other, whole = disc(90, 55)
    picture[whole] = other[whole][:, [2, 1, 0]]
    found = background_saliency(picture)
    assert found[cut].mean() < 0.3
    assert found[whole].mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 60), (2, 2), (3, 300), (40, 48)])
def test_pictures_of_one_colour_have_no_saliency_and_small_ones_some_number(size: tuple[int, int]) -> None:
    assert not background_saliency(np.full((*size, 3), 90, np.uint8)).any()
    found = background_saliency(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    assert found.shape == size
    assert np.isfinite(found).all()


def test_the_graph_joins_neighbours_and_the_border() -> None:
    """Nine fields; only the middle one, 4, is not at the border. Every pair but those with 4 is there, once."""
    labels = np.arange(9).reshape(3, 3).repeat(2, 0).repeat(2, 1)
    border = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    low, high = _edges(labels, border)
    expected = {(i, j) for i in border for j in border if i < j} | {(1, 4), (3, 4), (4, 5), (4, 7)}
    assert set(zip(low.tolist(), high.tolist(), strict=True)) == expected
    assert len(low) == len(expected)


def test_background_by_hand() -> None:
    """Nine equal fields, eight at the border: connectivity 8/√9. A field unlike all of them: 0, and theirs 8/√8."""
    labels = np.arange(9).reshape(3, 3)
    border = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    differences = np.zeros((9, 9))
    found = _background(_edges(labels, border), differences, border)
    np.testing.assert_allclose(found, 1 - np.exp(-((8 / 3) ** 2) / 2))
    differences[4, :] = differences[:, 4] = 1000
    differences[4, 4] = 0
    found = _background(_edges(labels, border), differences, border)
    np.testing.assert_allclose(found, np.where(np.arange(9) == 4, 0, 1 - np.exp(-(8**2 / 8) / 2)), atol=1e-9)


def test_the_optimum_is_that_of_least_squares() -> None:
    """The three sums written out as rows of a dense system, solved by LAPACK."""
    rng = np.random.default_rng(0)
    edges = (np.array([0, 0, 1, 2, 3]), np.array([1, 4, 2, 3, 4]))
    differences = rng.uniform(0, 30, (5, 5))
    background, foreground = rng.uniform(0.1, 1, (2, 5))
    weights = np.exp(-(differences[edges] ** 2) / 200) + 0.1
    apart = np.zeros((5, 5))
    apart[range(5), edges[0]], apart[range(5), edges[1]] = 1, -1
    rows = np.concatenate([np.diag(background**0.5), np.diag(foreground**0.5), weights[:, None] ** 0.5 * apart])
    values = np.concatenate([np.zeros(5), foreground**0.5, np.zeros(5)])
    expected = np.linalg.lstsq(rows, values, rcond=None)[0]
    np.testing.assert_allclose(_optimised(edges, differences, background, foreground), expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs of ../shared/data/voc are not here")
def test_on_photographs_it_is_better_than_calling_all_salient() -> None:
    both, either, true, known = 0, 0, 0, 0
    for mask in sorted((SHARED / "SegmentationClass").iterdir())[::200]:
        ground_truth = read_mask_image(mask)
        salient = background_saliency(read_image(SHARED / "JPEGImages" / f"{mask.stem}.jpg")) >= 0.5
        both += (salient & (ground_truth > 0))[ground_truth < 255].sum()
        either += (salient | (ground_truth > 0))[ground_truth < 255].sum()
        true, known = true + (ground_truth[ground_truth < 255] > 0).sum(), known + (ground_truth < 255).sum()
    assert both / either > true / known + 0.05


# Files


@pytest.fixture
def images(tmp_path: Path) -> TaggedImages:
    """Two pictures, one of them large and in a subfolder, and a third that is none."""
    (tmp_path / "in/deep").mkdir(parents=True)
    picture = Image.fromarray(disc(90, 55)[0])
    picture.save(tmp_path / "in/a.png")
    picture.resize((800, 600)).save(tmp_path / "in/deep/b.jpg")
    (tmp_path / "in/c.png").write_bytes(b"nothing")
    names = {"a": "a.png", "deep/b": "deep/b.jpg", "c": "c.png"}
    samples = tuple(Sample(id_, str(tmp_path / "in" / name), (1,)) for id_, name in names.items())
    return TaggedImages(("disc",), samples, name="discs")


def test_files_are_written_once(images: TaggedImages, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for workers in (0, 1):  # the second time nothing is left to do
        made = write_saliency(images, folder, skip_bad=True, workers=workers, progress=no_progress)
        assert [(s.id, s.saliency) for s in made.samples] == [
            ("a", folder / "a.png"),
            ("deep/b", folder / "deep/b.png"),
        ]
        assert [problem.where for problem in made.problems] == [images.samples[2].image]
        if not workers:
            stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
            (folder / "a.png").unlink()
            Image.new("L", (160, 120), 7).save(folder / "a.png")  # one's own stays
            (folder / ".left-over.tmp").touch()
    assert sorted(stamps) == sorted(f for f in folder.rglob("*") if f.is_file())
    assert (folder / "deep/b.png").stat().st_mtime_ns == stamps[folder / "deep/b.png"]
    assert read_mask_image(folder / "a.png").max() == 7
    with Image.open(folder / "deep/b.png") as large:
        assert (large.mode, large.size) == ("L", (400, 300))
    inside = np.asarray(Image.fromarray(disc(90, 55)[1]).resize((400, 300)))
    salient = read_saliency(folder / "deep/b.png", (300, 400)) >= 0.5
    assert (salient & inside).sum() / (salient | inside).sum() > 0.9


def test_bad_images_stop_it(images: TaggedImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 3 images of discs is bad: .*c\.png: is not an image that can be read"):
        write_saliency(images, tmp_path / "out", skip_bad=False, workers=0, progress=no_progress)
    assert not (tmp_path / "out").exists()


def test_masks_and_saliency_that_are_there_do_not_matter(images: TaggedImages, tmp_path: Path) -> None:
    odd = replace(images.samples[0], saliency=tmp_path / "no such file.png")
    found = write_saliency(
        replace(images, samples=(odd,)), tmp_path / "out", skip_bad=False, workers=0, progress=no_progress
    )
    assert found.samples[0].saliency == tmp_path / "out/a.png"


def test_without_the_library_it_is_one_sentence(
    images: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RunError) as error:
        write_saliency(images, tmp_path / "out", skip_bad=False, workers=0, progress=no_progress)
    assert str(error.value) == 'making saliency needs scikit-image: install it with pip install "tagmask[saliency]".'
