"""Images of more than a megapixel: tiles, reduced images, and the memory that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from tagmask.compute import Compute
from tagmask.data.images import read_image, read_image_window, read_reduced_image
from tagmask.data.loading import TrainingSet, load_image_batches
from tagmask.data.samples import PngMask, Sample, TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.label_map import read_label_map
from tagmask.large_images import HALO, MAX_PIXELS, is_large, random_window, reduced_size, resize_labels, tiles
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.cam import response_maps
from tagmask.methods.pseudo_masks import PseudoMasks, View
from tagmask.methods.segment import class_probabilities, segment_in_tiles
from tagmask.models.segmenter import InferenceConfig
from tagmask.pipeline import run_stages
from tagmask.predict import Predictor
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, find_method
from tagmask.run_folder import RunFolder
from tests.memory import peak_memory
from tests.methods.test_combinations import TOY

SIDES = st.integers(1, 9000)
FLOAT32 = Compute(precision="float32")
ONE_SCALE = InferenceConfig(scales=(1.0,), crf=None)


@given(height=SIDES, width=SIDES)
@settings(max_examples=200, deadline=None)
def test_tiles_cover_an_image_once_with_context_and_are_never_large(height: int, width: int) -> None:
    covered = 0
    for tile in tiles((height, width)):
        window_size = [window.stop - window.start for window in tile.window]
        assert not is_large((window_size[0], window_size[1]))
        covered += int(np.prod([core.stop - core.start for core in tile.core]))
        for window, core, side in zip(tile.window, tile.core, (height, width), strict=True):
            assert window.start == max(0, core.start - HALO)
            assert window.stop == min(side, core.stop + HALO)
            assert core.start % 32 == 0
    assert covered == height * width
    starts = [tile.core[0].start * width + tile.core[1].start for tile in tiles((height, width))]
    assert starts == sorted(set(starts))


@given(height=SIDES, width=SIDES)
@settings(max_examples=200, deadline=None)
def test_the_reduced_size_keeps_the_aspect_ratio(height: int, width: int) -> None:
    size = reduced_size((height, width))
    assert size[0] * size[1] <= MAX_PIXELS
    assert reduced_size((width, height)) == size[::-1]
    if not is_large((height, width)):
        assert size == (height, width)
    elif min(size) > 10:
        assert abs(size[0] * width - size[1] * height) <= 1.1 * max(height, width)
        assert size[0] * size[1] > 0.8 * MAX_PIXELS


class ToySegmenter(nn.Module):
    """Two 3 × 3 convolutions, which see 2 pixels around each pixel, and a stride that tiles must respect."""

    classes = ("a", "b")
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, stride: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, stride, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


@pytest.mark.parametrize(("size", "stride"), [((1217, 1003), 1), ((1216, 1504), 4)])
@torch.inference_mode()
def test_tiles_give_the_labels_of_the_whole_image(size: tuple[int, int], stride: int) -> None:
    network = ToySegmenter(stride).eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    images = normalize_images(torch.from_numpy(image).permute(2, 0, 1)[None], network.mean, network.std)
    [(ids, whole)] = class_probabilities(network, images, [None])  # type: ignore[arg-type]
    num_tiles: list[int] = []
    labels = segment_in_tiles(network, image, None, ONE_SCALE, FLOAT32, lambda: num_tiles.append(1))  # type: ignore[arg-type]
    assert len(num_tiles) == len(tiles(size)) > 2
    np.testing.assert_array_equal(labels, ids[whole.argmax(0)])
    assert len(np.unique(labels)) == 3
    for tile in tiles(size):  # the probabilities, too, also at the seams
        part = images[:, :, *tile.window]
        [(_, probabilities)] = class_probabilities(network, part, [None])  # type: ignore[arg-type]
        np.testing.assert_allclose(probabilities[:, *tile.core_in_window], whole[:, *tile.core], atol=1e-5)


@torch.inference_mode()
def test_tags_restrict_the_labels_of_every_tile() -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), np.uint8)
    labels = segment_in_tiles(ToySegmenter(1), image, [2], ONE_SCALE, FLOAT32)  # type: ignore[arg-type]
    assert set(np.unique(labels)) == {0, 2}


def smooth_image(size: tuple[int, int]) -> Image.Image:
    """Return a picture without detail, which survives a reduction, and without any symmetry."""
    small = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_a_reduced_image_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth_image((300, 500)).save(tmp_path / name, exif=exif, quality=98)  # of a JPEG
    full = read_image(tmp_path / name)
    np.testing.assert_array_equal(read_reduced_image(tmp_path / name), full)
    monkeypatch.setattr("tagmask.large_images.MAX_PIXELS", 10_000)
    size = reduced_size((full.shape[0], full.shape[1]))
    reduced = read_reduced_image(tmp_path / name)
    assert reduced.shape[:2] == size
    expected = Image.fromarray(full).resize(size[::-1], Image.Resampling.BOX)
    assert np.abs(reduced.astype(int) - np.asarray(expected)).mean() < 2


def test_a_window_is_a_part_of_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth_image((30, 50)).save(tmp_path / "a.png", exif=exif)
    full = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image_window(tmp_path / "a.png", (slice(4, 20), slice(3, 30))), full[4:20, 3:30])


def test_large_images_are_read_in_strips_without_loss(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 2000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), pixels)


def test_maps_in_strips_are_cut_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    size = (173, 90)
    maps = ResponseMaps(np.array([2, 5]), rng.random((2, *grid_size(size))), size, rng.random(grid_size(size)))
    whole = [maps.label_map(0.4), maps.label_map(alpha=2), maps.label_map()]
    monkeypatch.setattr("tagmask.large_images.MAX_PIXELS", 1000)
    strips = [maps.label_map(0.4), maps.label_map(alpha=2), maps.label_map()]
    np.testing.assert_array_equal(strips, whole)


def test_resized_maps_keep_their_places() -> None:
    """A plane stays the same plane, in pixels, where it is not beyond the centers of the outer cells."""
    size, new_size = (83, 121), (1000, 1458)
    y, x = ((np.arange(cells) + 0.5) * 4 / side for cells, side in zip(grid_size(size), size, strict=True))
    maps = ResponseMaps(np.array([1]), (0.5 * y[:, None] + 0.4 * x)[None], size)
    resized = maps.resized(new_size)
    new_y, new_x = (
        (np.arange(cells) + 0.5) * 4 / side for cells, side in zip(grid_size(new_size), new_size, strict=True)
    )
    expected = 0.5 * new_y.clip(y[0], y[-1])[:, None] + 0.4 * new_x.clip(x[0], x[-1])
    np.testing.assert_allclose(resized.maps[0], expected, atol=1e-4)
    assert maps.resized(size) is maps


def test_enlarged_labels_have_smooth_outlines_and_the_same_labels() -> None:
    y, x = np.mgrid[:60, :80] + 0.5
    labels = np.where(np.hypot(y - 30, x - 40) < 20, 7, 0).astype(np.uint8)
    labels[:, :10] = 255
    large = resize_labels(labels, (600, 800))
    assert set(np.unique(large)) == {0, 7, 255}
    large_y, large_x = (np.mgrid[:600, :800] + 0.5) / 10
    disc = np.hypot(large_y - 30, large_x - 40) < 20
    wrong = {
        "smooth": ((large == 7) != disc).mean(),
        "in blocks": ((labels.repeat(10, 0).repeat(10, 1) == 7) != disc).mean(),
    }
    assert wrong["smooth"] < 0.8 * wrong["in blocks"]
    np.testing.assert_array_equal(resize_labels(large, (60, 80)), labels)


def test_training_at_full_resolution_takes_windows_of_large_images_and_of_their_labels(tmp_path: Path) -> None:
    size = (2300, 2500)
    row, column = np.indices(size)
    Image.fromarray(np.stack([row // 16, column // 16, column * 0], -1).astype(np.uint8)).save(tmp_path / "a.bmp")
    labels = (row // 16).astype(np.uint8)
    images = TaggedImages(("a",), (Sample("a", str(tmp_path / "a.bmp"), (1,), size=size),))
    data = TrainingSet(images, v2.Identity(), 0, lambda sample: {"labels": labels}, windows=True)
    items = [data[epoch, 0] for epoch in (0, 1, 0)]
    assert items[0]["image"].shape == (3, 2048, 2048)
    for item in items:
        assert torch.equal(item["image"][0], item["labels"])
    assert torch.equal(items[0]["image"], items[2]["image"])
    assert not torch.equal(items[0]["image"], items[1]["image"])  # another window in each epoch
    assert TrainingSet(images, v2.Identity(), 0)[0, 0]["image"].shape[1:] == reduced_size(size)


def test_windows_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    windows = [random_window((2049, 100), rng) for _ in range(30)]
    assert {window[0].start for window in windows} == {0, 1}
    assert {(window[1].start, window[1].stop) for window in windows} == {(0, 100)}


def test_maps_of_a_large_image_are_those_of_the_reduced_one(tmp_path: Path) -> None:
    """One maximum over the whole image, not one per tile."""
    size = (1300, 1100)
    smooth_image(size).save(tmp_path / "a.png")
    sample = Sample("a", str(tmp_path / "a.png"), (1, 2), size=size)
    [(_, pixels)] = load_image_batches([[sample]], Compute())
    assert tuple(pixels.shape[2:]) == reduced_size(size)
    [maps] = response_maps(lambda images: F.avg_pool2d(images[:, :2].abs(), 16), pixels / 255, [(1, 2)], (1.0,))
    enlarged = maps.resized(size)
    assert enlarged.maps.shape[1:] == grid_size(size)
    np.testing.assert_allclose(enlarged.maps.max((1, 2)), 1, atol=0.02)


def test_every_method_runs_on_a_large_image_beside_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_PIXELS": 5000, "CORE_SIDE": 64, "HALO": 32, "WINDOW_SIDE": 70}.items():
        monkeypatch.setattr(f"tagmask.large_images.{name}", value)
    sizes = {"large": (90, 120), "small": (40, 48)}
    samples = []
    for name, size in sizes.items():
        smooth_image(size).save(tmp_path / f"{name}.jpg")
        labels = resize_labels(np.array([[1, 2], [0, 0]], np.uint8), size)
        Image.fromarray(labels).save(tmp_path / f"{name}_mask.png")
        Image.fromarray(np.where(labels, 255, 0).astype(np.uint8)).save(tmp_path / f"{name}_saliency.png")
        samples.append(
            Sample(
                name, str(tmp_path / f"{name}.jpg"), (1, 2), PngMask(tmp_path / f"{name}_mask.png"),
                saliency=tmp_path / f"{name}_saliency.png", size=size,
            )
        )  # fmt: skip
    images = TaggedImages(("red", "green"), tuple(samples), name="train")
    changes: dict[str, dict[str, Any]] = {
        "irn": {"instances": True}, "activation_aware": {"batch_size": 2},
        "pseudo_masks": {"refine": "none"},
    }  # fmt: skip
    names = ("cam", "amn", "irn", "pseudo_masks", "activation_aware")
    stages = {name: find_method(name)(**{**TOY[name], **changes.get(name, {})}) for name in names}
    folder = RunFolder(tmp_path / "run")
    run_stages(Recipe(stages=stages), images, folder, compute=Compute(), reporter=Reporter())
    for name, method in stages.items():
        for image_id, size in sizes.items():
            if "maps" in method.makes:
                assert ResponseMaps.load(folder.stage(name).maps_path(image_id)).size == size
            if "masks" in method.makes:
                assert read_label_map(folder.stage(name).mask_path(image_id)).shape == size
    assert read_label_map(folder.stage("amn").path / "seeds" / "large.png").shape == reduced_size((90, 120))


def test_the_memory_for_25_megapixels_is_bounded(tmp_path: Path) -> None:
    """The image takes 0.2 GB while it is decoded. All logits with their flips at once would take 1 GB."""
    size = (5000, 5000)
    smooth_image(size).save(tmp_path / "a.jpg")
    network = ToySegmenter(1).eval()
    network.net = nn.Conv2d(3, 4, 3, padding=1)  # type: ignore[assignment]
    network.classes = ("a", "b", "c")  # type: ignore[assignment]
    predictor = Predictor(network, InferenceConfig(scales=(1.0,), crf=None), FLOAT32)  # type: ignore[arg-type]
    random = np.random.default_rng(0).random((2, *grid_size(size)))
    sample = Sample("a", str(tmp_path / "a.jpg"), (1, 2))

    def predict_and_cut() -> None:
        assert predictor.predict(read_image(tmp_path / "a.jpg")).shape == size
        ResponseMaps(np.array([1, 2]), random, size).save(tmp_path / "a.safetensors")
        method = PseudoMasks(refine="none", threshold=0.5)
        method._write_mask(tmp_path / "m.png", tmp_path / "a.safetensors", sample, 0.5, View())

    assert peak_memory(predict_and_cut) < 0.7 * 2**30
