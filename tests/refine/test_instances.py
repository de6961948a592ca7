"""Instances from displacement fields whose answer is known."""

from __future__ import annotations

import numpy as np

from tagmask.maps import ResponseMaps
from tagmask.refine.instances import cluster, find_instances, follow


def two_centres() -> np.ndarray:
    """Cells of the left half point a fifth of the way to (10, 8), those of the right half to (10, 31)."""
    rows, columns = np.mgrid[:20, :40].astype(np.float32)
    centre = np.where(columns < 20, 8, 31)
    return np.stack([10 - rows, centre - columns]) / 5


def test_cells_follow_the_field_to_their_centre() -> None:
    ends = follow(two_centres())
    assert ends[:, :, :20].reshape(2, -1).T.tolist() == [[10, 8]] * 400
    assert ends[:, :, 20:].reshape(2, -1).T.tolist() == [[10, 31]] * 400


def test_nothing_leaves_the_grid() -> None:
    ends = follow(np.full((2, 5, 7), 100.0, np.float32))
    assert (ends[0] == 4).all()
    assert (ends[1] == 6).all()
    assert follow(np.full((2, 1, 1), -3.0, np.float32)).ravel().tolist() == [0, 0]


def test_clusters_are_the_regions_of_short_displacements() -> None:
    field = two_centres()
    assert np.array_equal(cluster(field, follow(field), weak=1.0), np.arange(40) // 20 * np.ones((20, 1), int))


def test_one_class_is_two_objects() -> None:
    maps = np.zeros((1, 20, 40), np.float32)
    maps[0, 6:14, 2:14], maps[0, 6:14, 25:38] = 1, 0.8
    boundary = np.zeros((20, 40), np.float32)
    boundary[:, 19:21] = 1
    field = two_centres() * 5 / 2  # shorter than 2.5 cells within 5 of a centre
    found = find_instances(ResponseMaps(np.array([4]), maps, (80, 160)), boundary, field, steps=4)
    assert [i.class_id for i in found] == [4, 4]
    left, right = sorted(found, key=lambda i: i.mask.argmax(1).max())
    assert left.mask[40, 32]
    assert right.mask[40, 124]
    assert not (left.mask & right.mask).any()
    assert left.score == 1 > right.score > 0.5
