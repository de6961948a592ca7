"""Confident seeds: two thresholds, unsure between them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tagmask.maps import ResponseMaps
from tagmask.refine.label_maps import ConfidentSeeds, crf_label_map
from tagmask.refine.settings import CrfSettings

IMAGE = np.zeros((4, 16, 3), np.uint8)


def maps_of(*rows: list[float]) -> ResponseMaps:
    """Maps of classes 2, 3, ... on an image of 4×16, so a row of four cells each."""
    return ResponseMaps(np.arange(2, 2 + len(rows)), np.array(rows, np.float32).reshape(len(rows), 1, 4), (4, 16))


def test_foreground_background_and_unsure() -> None:
    seeds = ConfidentSeeds(fg=0.30, bg=0.05, crf=None).label_map(IMAGE, maps_of([0.9, 0.0, 0.2, 0.4], [0, 0, 0, 0.6]))
    assert seeds[:, [0, 6, 9, 10, 15]].tolist() == [[2, 0, 255, 255, 3]] * 4
    assert seeds.dtype == np.uint8


@pytest.mark.parametrize("crf", [None, CrfSettings()])
def test_a_map_of_zeros_and_no_map_are_background(crf: CrfSettings | None) -> None:
    seeds = ConfidentSeeds(fg=0.30, bg=0.05, crf=crf)
    assert not seeds.label_map(IMAGE, maps_of([0, 0, 0, 0])).any()
    assert not seeds.label_map(IMAGE, maps_of()).any()


def test_the_crf_cleans_each_of_the_two() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.array([20, 230], np.uint8), 8)[None, :, None].repeat(4, 0).repeat(3, 2)
    maps = maps_of(rng.uniform(0.1, 0.9, 4).tolist())
    high, low = (crf_label_map(image, maps, t, CrfSettings()) for t in (0.6, 0.2))
    seeds = ConfidentSeeds(fg=0.6, bg=0.2).label_map(image, maps)
    assert np.array_equal(seeds == 2, high == 2)
    assert np.array_equal(seeds == 0, (high == 0) & (low == 0))
    assert np.array_equal(seeds == 255, (high == 0) & (low != 0))


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not be above"):
        ConfidentSeeds(fg=0.3, bg=0.5)
