"""Test the vote of regions against SEPL's merger in plain NumPy, and the regions against simple images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagmask.refine.regions import (
    RegionLayers,
    boundary_regions,
    felzenszwalb_regions,
    layers_of_masks,
    slic_regions,
    vote,
)


def sepl(labels: np.ndarray, masks: list[np.ndarray], num_classes: int) -> np.ndarray:
    """The steps of SEPL's public code (`max_iou_imp2`), one mask after the other, for labels without ignored pixels."""
    result, seen = np.zeros_like(labels), set()
    for class_id in range(1, num_classes + 1):
        of_class = labels == class_id
        if not of_class.any():
            continue
        free = np.zeros_like(of_class)
        mine = np.zeros_like(of_class)
        for number, mask in enumerate(masks):
            if number in seen:
                continue
            free |= mask
            common = (of_class & mask).sum()
            if 2 * common > mask.sum() or common / of_class.sum() >= 0.85:
                mine |= mask
                seen.add(number)
        result[mine | (of_class & ~free)] = class_id
    return result


@given(st.integers(0, 1000))
def test_the_vote_is_that_of_sepl(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (3, 4)), np.ones((4, 4))).astype(np.uint8)
    masks = []
    for _ in range(rng.integers(0, 8)):
        mask = np.zeros(labels.shape, bool)
        y, x = rng.integers(0, 12), rng.integers(0, 16)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
        masks.append(mask)
    np.testing.assert_array_equal(vote(labels, layers_of_masks(masks, labels.shape)), sepl(labels, masks, 3))


def test_a_class_takes_whole_regions() -> None:
    regions = np.array([[[1, 1, 1, 2, 2, 0]]], np.int32)
    labels = np.array([[3, 3, 0, 0, 3, 3]], np.uint8)
    np.testing.assert_array_equal(vote(labels, regions), [[3, 3, 3, 0, 0, 3]])


def test_a_region_that_contains_a_class_is_taken() -> None:
    regions = np.array([[[1] * 9 + [0]]], np.int32)
    labels = np.array([[0, 2, 2, 0, 0, 0, 0, 0, 0, 0]], np.uint8)
    np.testing.assert_array_equal(vote(labels, regions), [[2] * 9 + [0]])


def test_ignored_pixels_stay_unless_a_class_takes_them() -> None:
    regions = np.array([[[1, 1, 1, 2, 2]]], np.int32)
    labels = np.array([[1, 1, 255, 255, 0]], np.uint8)
    np.testing.assert_array_equal(vote(labels, regions), [[1, 1, 1, 255, 0]])


def test_no_regions_change_nothing() -> None:
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    np.testing.assert_array_equal(vote(labels, np.zeros((0, 1, 4), np.int32)), labels)


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        vote(np.zeros((2, 3), np.uint8), np.zeros((1, 3, 2), np.int32))


def test_masks_that_do_not_overlap_share_a_layer() -> None:
    a, b, c = (np.array([row], bool) for row in ([1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]))
    layers = layers_of_masks([a, b, np.zeros((1, 4), bool), c], (1, 4))
    np.testing.assert_array_equal(layers, [[[1, 1, 2, 0]], [[0, 1, 1, 0]]])


@pytest.mark.parametrize(("make", "size"), [(felzenszwalb_regions, 400), (slic_regions, 100)])
def test_regions_follow_edges(make: Callable[..., RegionLayers], size: float) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = [200, 30, 30]
    regions = make(image, [size, 10 * size])
    assert regions.shape == (2, 40, 60)
    assert regions.min() == 1
    inside = np.zeros((40, 60), np.uint8)
    inside[12:28, 22:38] = 5  # smaller than the square
    voted = vote(inside, regions[:1])
    assert (voted[10:30, 20:40] == 5).mean() > 0.8  # felzenszwalb smooths the image, and so shrinks its corners
    assert (voted == 5).sum() < 1.1 * 400


def test_boundaries_divide_an_image_into_basins() -> None:
    """Columns with floors 0.1, 0.2 and 0.15 between ridges of 0.6 and 0.23: the second ridge is 0.03 above a floor."""
    profile = np.array([0.1, 0.1, 0.1, 0.6, 0.2, 0.2, 0.23, 0.15, 0.15, 0.15], np.float32)
    boundary = np.tile(profile, (8, 1))
    size = (31, 38)  # the last cells are cropped
    (deep,) = boundary_regions(boundary, size, 0.05)
    assert deep.shape == size
    assert deep.dtype == np.int32
    assert len(np.unique(deep)) == 2
    assert (deep == deep[0]).all()  # the ridge is vertical
    assert np.flatnonzero(np.diff(deep[0])).tolist() == [13]  # in the middle of the cell of columns 12 to 15
    (shallow,) = boundary_regions(boundary, size, 0.02)
    assert len(np.unique(shallow)) == 3
    (whole,) = boundary_regions(boundary, size, 0.7)
    assert (whole == 1).all()
    (flat,) = boundary_regions(np.zeros((8, 10), np.float32), size, 0.05)
    assert (flat == 1).all()
