"""Tests of the removal of crumbs and holes from label maps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.cleaning import fill_holes, remove_small_regions
from tests.outputs.conftest import at_any_speed

LABEL_MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


def region_areas(labels: np.ndarray) -> list[int]:
    areas: list[int] = []
    for label in np.unique(labels):
        areas += np.bincount(ndimage.label(labels == label)[0].ravel())[1:].tolist()
    return areas


@at_any_speed
@given(LABEL_MAPS, st.integers(0, 12))
def test_no_small_region_remains_and_large_ones_keep_their_pixels(labels: np.ndarray, min_area: int) -> None:
    before = labels.copy()
    cleaned = remove_small_regions(labels, min_area)
    np.testing.assert_array_equal(labels, before)
    if max(region_areas(labels)) < min_area:
        np.testing.assert_array_equal(cleaned, labels)
        return
    assert min(region_areas(cleaned)) >= min_area
    for label in np.unique(labels):
        regions, count = ndimage.label(labels == label)
        for k in range(1, count + 1):
            if (regions == k).sum() >= min_area:
                assert (cleaned[regions == k] == label).all()


def test_a_crumb_takes_the_label_with_the_longest_common_border() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 4:] = 1
    labels[2, 4], labels[5, 6], labels[5, 2] = 2, 2, 2  # at the border between both, inside 1, inside the background
    expected = np.zeros_like(labels)
    expected[:, 4:] = 1
    np.testing.assert_array_equal(remove_small_regions(labels, 2), expected)


def test_a_crumb_in_a_crumb_is_removed_with_it() -> None:
    labels = np.full((9, 9), 3, np.uint8)
    labels[3:6, 3:6], labels[4, 4] = 1, 2
    assert (remove_small_regions(labels, 9) == 3).all()


def test_small_holes_are_filled_and_small_ignored_regions_vanish() -> None:
    labels = np.ones((6, 6), np.uint8)
    labels[2, 2], labels[4, 4] = 0, IGNORE_INDEX
    assert (remove_small_regions(labels, 2) == 1).all()


def test_fill_holes_by_hand() -> None:
    labels = np.array(
        [
            [1, 1, 1, 1, 0, 2, 2, 2],
            [1, 0, 255, 1, 0, 2, 0, 2],
            [1, 0, 3, 1, 0, 2, 1, 2],
            [1, 1, 1, 1, 0, 2, 2, 2],
            [0, 0, 1, 255, 1, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0, 255],
        ],
        np.uint8,
    )
    filled = labels.copy()
    filled[4, 3] = 1
    np.testing.assert_array_equal(fill_holes(labels), filled)  # the other holes touch two classes


@at_any_speed
@given(LABEL_MAPS)
def test_filling_holes_is_binary_fill_holes_where_there_is_one_class(labels: np.ndarray) -> None:
    labels = np.where(labels == 2, 0, labels)
    cleaned = fill_holes(labels)
    expected = ndimage.binary_fill_holes(labels == 1)
    np.testing.assert_array_equal(cleaned == 1, expected)
    np.testing.assert_array_equal(cleaned[~expected], labels[~expected])
