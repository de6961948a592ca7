"""Tests of confident seeds: two thresholds with ignored pixels between them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tagmask.maps import ResponseMaps
from tagmask.refine.map_cutting import confident_seeds, cut_maps
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


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not be above"):
        SeedSettings(fg=0.3, bg=0.5)
