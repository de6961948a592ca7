"""Tests of confident seeds: two thresholds with ignored pixels between them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

import tagmask
from tagmask.maps import ResponseMaps
from tagmask.refine.dense_crf import apply_crf, unary_from_labels, unary_from_probabilities
from tagmask.refine.map_cutting import confident_seeds, cut_maps, cut_maps_by_power, threshold_of_power
from tagmask.refine.settings import CrfSettings, SeedSettings

IMAGE = np.zeros((4, 16, 3), np.uint8)


def maps_of(*rows: list[float]) -> ResponseMaps:
    """Maps of classes 2, 3, ... on an image of 4×16 pixels, each a row of four cells."""
    return ResponseMaps(np.arange(2, 2 + len(rows)), np.array(rows, np.float32).reshape(len(rows), 1, 4), (4, 16))


def test_foreground_background_and_ignored_pixels() -> None:
    maps = maps_of([0.9, 0.0, 0.2, 0.4], [0, 0, 0, 0.6])
    seeds = confident_seeds(IMAGE, maps, SeedSettings(fg=0.30, bg=0.05, crf=None))
    assert seeds[:, [0, 6, 9, 10, 15]].tolist() == [[2, 0, 255, 255, 3]] * 4
    assert seeds.dtype == np.uint8


@pytest.mark.parametrize("crf", [None, CrfSettings()])
def test_maps_of_zeros_and_images_without_tags_are_background(crf: CrfSettings | None) -> None:
    settings = SeedSettings(fg=0.30, bg=0.05, crf=crf)
    assert not confident_seeds(IMAGE, maps_of([0, 0, 0, 0]), settings).any()
    assert not confident_seeds(IMAGE, maps_of(), settings).any()


def test_the_crf_refines_the_label_maps_of_both_thresholds() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.array([20, 230], np.uint8), 8)[None, :, None].repeat(4, 0).repeat(3, 2)
    maps = maps_of(rng.uniform(0.1, 0.9, 4).tolist())
    high, low = (cut_maps(image, maps, t, CrfSettings()) for t in (0.6, 0.2))
    seeds = confident_seeds(image, maps, SeedSettings(fg=0.6, bg=0.2))
    assert np.array_equal(seeds == 2, high == 2)
    assert np.array_equal(seeds == 0, (high == 0) & (low == 0))
    assert np.array_equal(seeds == 255, (high == 0) & (low != 0))


def test_one_threshold_per_class() -> None:
    """By hand: the class whose activation exceeds its own threshold the most; at equal margins the lower id."""
    maps = maps_of([0.9, 0.5, 0.5, 0.5], [0.6, 0.4, 0.25, 0.1])
    assert cut_maps(IMAGE, maps, [0.6, 0.2], None)[0, [0, 15]].tolist() == [3, 0]  # 0.3 < 0.4; -0.1 and -0.1
    assert cut_maps(IMAGE, maps, [0.25, 0.5], None)[0, [0, 15]].tolist() == [2, 2]
    assert cut_maps(IMAGE, maps_of([0.75] * 4, [0.5] * 4), [0.5, 0.25], None)[0, 0] == 2  # 0.25 = 0.25
    assert not cut_maps(IMAGE, maps, [1, 1], None).any()


@pytest.mark.parametrize("threshold", [0, 0.05, 0.3, 0.4999, 0.5, 1 / 3, 0.9, 1])
def test_equal_thresholds_are_one_threshold(threshold: float) -> None:
    rng = np.random.default_rng(0)
    grids = rng.choice(rng.random(12).astype(np.float16), (3, 24, 30))  # with many ties
    grids[0, :3] = 0.5
    maps = ResponseMaps(np.array([1, 4, 9]), grids, (95, 118))
    np.testing.assert_array_equal(maps.label_map([threshold] * 3), maps.label_map(threshold))


def test_one_threshold_per_class_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    maps = ResponseMaps(np.array([1, 4]), rng.random((2, 25, 30)), (98, 118))
    whole = maps.label_map([0.3, 0.6])
    monkeypatch.setattr(tagmask.large_images, "MAX_PIXELS", 1000)
    np.testing.assert_array_equal(maps.label_map([0.3, 0.6]), whole)


def test_the_number_of_thresholds_must_fit() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        maps_of([0.5] * 4, [0.6] * 4).label_map([0.3])


def test_the_crf_refines_what_several_thresholds_cut() -> None:
    """The dense CRF gets the label map of the thresholds: the same result as from its own functions."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    maps = ResponseMaps(np.array([2, 5]), rng.random((2, 10, 12)), (40, 48))
    labels = maps.label_map([0.5, 0.7])
    unary = unary_from_labels(np.searchsorted([0, 2, 5], labels).astype(np.uint8), 3, 0.8)
    expected = np.array([0, 2, 5])[apply_crf(image, unary, CrfSettings()).argmax(0)]
    np.testing.assert_array_equal(cut_maps(image, maps, [0.5, 0.7], CrfSettings(), 0.8), expected)


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not be above"):
        SeedSettings(fg=0.3, bg=0.5)


def random_maps(size: tuple[int, int] = (30, 44)) -> tuple[np.ndarray, ResponseMaps]:
    rng = np.random.default_rng(0)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    maps = ResponseMaps(np.array([2, 5]), rng.random((2, *grid)).astype(np.float32) ** 2, size)
    return rng.integers(0, 256, (*size, 3), np.uint8), maps


@pytest.mark.parametrize("alpha", [1, 4, 16, 32])
def test_a_power_of_the_background_is_a_threshold(alpha: float) -> None:
    image, maps = random_maps()
    labels = cut_maps_by_power(image, maps, alpha, None)
    np.testing.assert_array_equal(labels, cut_maps(image, maps, threshold_of_power(alpha), None))
    assert {0, 2, 5} == set(np.unique(labels).tolist())


def test_the_crf_takes_activations_as_probabilities() -> None:
    image, maps = random_maps()
    full = maps.full_size()
    scores = np.concatenate([(1 - full.max(0, keepdims=True)) ** 4, full])
    unary = unary_from_probabilities(scores / scores.sum(0))  # a factor per pixel changes nothing
    expected = np.array([0, 2, 5])[apply_crf(image, unary, CrfSettings()).argmax(0)]
    assert (cut_maps_by_power(image, maps, 4, CrfSettings()) == expected).mean() > 0.999


def test_seeds_by_two_powers() -> None:
    image, maps = random_maps()
    seeds = confident_seeds(image, maps, SeedSettings(alphas=(4, 32), crf=None))
    thresholds = SeedSettings(fg=threshold_of_power(4), bg=threshold_of_power(32), crf=None)
    np.testing.assert_array_equal(seeds, confident_seeds(image, maps, thresholds))
    with pytest.raises(ValidationError, match="give the smaller one first"):
        SeedSettings(alphas=(32, 4))
