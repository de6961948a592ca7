"""Pseudo-masks from response maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._threshold import THRESHOLD_FILE, Threshold, read_threshold, threshold_of_run
from tagmask.methods.crf import Crf
from tagmask.refine.dense_crf import dense_crf, unary_from_labels
from tagmask.refine.image_threshold import choose_threshold
from tagmask.refine.settings import CrfSettings
from tests.methods.contract import MakeContext, MethodContract


class TestCrf(MethodContract):
    method = Crf
    settings = {"threshold": 0.3}  # noqa: RUF012
    trains = False


class TestThreshold(MethodContract):
    method = Crf
    settings = {"crf": None}  # noqa: RUF012
    trains = False


def maps_of(size: tuple[int, int], *values: float, classes: tuple[int, ...] | None = None) -> ResponseMaps:
    grid = grid_size(size)
    maps = np.stack([np.full(grid, value, np.float32) for value in values]) if values else np.zeros((0, *grid))
    return ResponseMaps(np.array(classes or range(1, 1 + len(values)), int), maps, size)


def test_without_the_crf_it_is_the_threshold(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    context = make_context(maps=earlier["maps"])
    Crf(threshold=0.4, crf=None).run(context)
    for sample in context.images.samples:
        maps = ResponseMaps.load(earlier["maps"] / "maps" / f"{sample.id}.safetensors")
        np.testing.assert_array_equal(read_label_map(context.folder.mask_path(sample.id)), maps.label_map(0.4))


def test_the_crf_sees_the_classes_that_are_tagged() -> None:
    """Class ids 3 and 9 are labels 1 and 2 to the CRF, and come back as 3 and 9."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    maps = ResponseMaps(np.array([3, 9]), rng.random((2, 6, 8)).astype(np.float32), (24, 32))
    seed = maps.label_map(0.5)
    relabelled = np.select([seed == 3, seed == 9], [1, 2]).astype(np.uint8)
    expected = dense_crf(image, unary_from_labels(relabelled, 3, 0.6), steps=4).argmax(0)
    found = Crf(gt_prob=0.6, crf=CrfSettings(steps=4)).mask(image, maps, 0.5)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.array([0, 3, 9])[expected])


def test_the_crf_moves_a_mask_to_the_edge() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, 24:] = (250, 200, 20)
    maps = ResponseMaps(np.array([2]), np.zeros((1, 8, 12), np.float32), (32, 48))
    maps.maps[:, :, 7:] = 1  # four pixels short of the edge
    before, after = maps.label_map(0.5), Crf().mask(image, maps, 0.5)
    ground_truth = np.where(np.arange(48) >= 24, 2, 0)[None].repeat(32, 0)
    assert (before != ground_truth).mean() > 0.05
    np.testing.assert_array_equal(after, ground_truth)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_images(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert Crf().mask(image, maps_of(size, 0.9, 0.1, classes=(4, 7)), 0.3).tolist() == np.full(size, 4).tolist()
    assert not Crf().mask(image, maps_of(size), 0.3).any()


def test_the_automatic_threshold_lies_between_object_and_background(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(maps=tmp_path / "maps-stage")
    for sample in context.images.samples:
        maps = maps_of(sample.size, *[0.1] * len(sample.tags), classes=sample.tags)
        if sample.tags:
            maps.maps[0, :3, :3] = 0.8
        maps.save(tmp_path / "maps-stage" / "maps" / f"{sample.id}.safetensors")
    assert 0.1 <= threshold_of_run(context, "auto") < 0.8
    Crf(crf=None).run(context)
    labels = read_label_map(context.mask_path(context.images.samples[0]))
    assert labels[:8, :8].all()
    assert not labels[16:, 16:].any()


def test_the_threshold_is_kept(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    context = make_context(maps=earlier["maps"])
    chosen = threshold_of_run(context, "auto")
    assert json.loads((context.folder.path / THRESHOLD_FILE).read_text()) == {"threshold": chosen}
    elsewhere = replace(context, inputs={"maps": Path("nowhere")})
    assert threshold_of_run(elsewhere, "auto") == chosen


@pytest.mark.parametrize("setting", [0.3, "auto", "per-image"])
def test_only_a_threshold_for_all_images_is_said_to_be_used(
    make_context: MakeContext, earlier: dict[str, Path], setting: Threshold
) -> None:
    context = make_context(maps=earlier["maps"])
    assert read_threshold(context.folder) is None
    Crf(threshold=setting, crf=None).run(context)
    kept = threshold_of_run(replace(context, inputs={}), setting)
    assert 0 < kept < 1
    if setting == "per-image":
        assert json.loads((context.folder.path / THRESHOLD_FILE).read_text()) == {"threshold": kept, "per_image": True}
        assert read_threshold(context.folder) is None
    else:
        assert read_threshold(context.folder) == kept == (kept if setting == "auto" else setting)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_maps_that_are_the_same_everywhere_are_background(
    make_context: MakeContext, tmp_path: Path, value: float
) -> None:
    context = make_context(maps=tmp_path / "maps-stage")
    for sample in context.images.samples:
        maps = maps_of(sample.size, *[value] * len(sample.tags), classes=sample.tags)
        maps.save(tmp_path / "maps-stage" / "maps" / f"{sample.id}.safetensors")
    Crf(crf=None).run(context)
    assert not any(read_label_map(context.folder.mask_path(sample.id)).any() for sample in context.images.samples)


def test_many_workers_make_the_same_masks(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    alone, many = make_context("alone", maps=earlier["maps"]), make_context("many", maps=earlier["maps"])
    Crf(threshold=0.3).run(alone)
    Crf(threshold=0.3).run(replace(many, compute=Compute(workers=2)))
    assert MethodContract.same(alone.folder, many.folder)


def test_the_mask_has_the_image_s_own_size(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    context = make_context(maps=earlier["maps"])
    Crf(threshold=0.3).run(context)
    for sample in context.images.samples:
        assert read_label_map(context.folder.mask_path(sample.id)).shape == read_image(sample.image).shape[:2]


class TestPerImage(MethodContract):
    method = Crf
    settings = {"threshold": "per-image", "crf": {"steps": 2}}  # noqa: RUF012
    trains = False


def test_saliency_chooses_where_the_threshold_is_per_image(
    make_context: MakeContext, tmp_path: Path, toy_images: TaggedImages
) -> None:
    """On an even image, with a map that falls from left to right, the mask ends nearest to where the saliency ends."""
    size, reporter = (32, 64), {}
    image = tmp_path / "even.png"
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(image)
    fall = np.linspace(1, 0, 16, dtype=np.float32)[None, None].repeat(8, 1)
    ResponseMaps(np.array([1]), fall, size).save(tmp_path / "maps.safetensors")
    for end in (24, 40):
        grey = np.where(np.arange(64) < end, 255, 0)[None].repeat(32, 0).astype(np.uint8)
        saliency = tmp_path / f"{end}.png"
        Image.fromarray(grey).save(saliency)
        sample = replace(toy_images.samples[0], id="even", image=str(image), tags=(1,), size=size, saliency=saliency)
        mask = tmp_path / f"mask-{end}.png"
        Crf(threshold="per-image", crf=None).write_mask(sample, tmp_path / "maps.safetensors", mask, 0.5, 1.0)
        reporter[end] = (read_label_map(mask) > 0).sum(1).mean()
    assert reporter == pytest.approx({24: 24, 40: 40}, abs=2)


def test_pixels_within_the_margin_are_unsure() -> None:
    maps = ResponseMaps(np.array([5]), np.linspace(0, 1, 11, dtype=np.float32)[None, None].repeat(2, 1), (8, 44))
    image = np.zeros((8, 44, 3), np.uint8)
    levels = maps.full_size()[0]
    found = Crf(crf=None, margin=0.2).mask(image, maps, 0.5)
    np.testing.assert_array_equal(found, np.select([levels > 0.7, levels > 0.3], [5, 255], 0))
    np.testing.assert_array_equal(Crf(crf=None, margin=0.4).mask(image, maps, 0.9) == 5, np.zeros((8, 44), bool))


def test_each_image_has_its_margin_around_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    maps = ResponseMaps(np.array([1]), rng.random((1, 6, 8)).astype(np.float32), (24, 32))
    own = choose_threshold(image, maps, 0.4, None).threshold
    found = Crf(crf=None, threshold="per-image", margin=0.1).mask(image, maps, 0.4)
    np.testing.assert_array_equal(found, Crf(crf=None, margin=0.1).mask(image, maps, own))
    assert own != 0.4
