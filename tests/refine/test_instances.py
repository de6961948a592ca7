"""Tests of instances on displacement fields with a known solution."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.maps import ResponseMaps
from tagmask.refine.instances import cluster_cells, find_instances, follow_displacement
from tagmask.refine.settings import RandomWalkSettings


def two_centers() -> np.ndarray:
    """Displacements of a fifth of the way to (10, 8) in the left half, to (10, 31) in the right half."""
    rows, columns = np.mgrid[:20, :40].astype(np.float32)
    center = np.where(columns < 20, 8, 31)
    return np.stack([10 - rows, center - columns]) / 5


def test_cells_follow_the_field_to_their_center() -> None:
    ends = follow_displacement(two_centers())
    assert ends[:, :, :20].reshape(2, -1).T.tolist() == [[10, 8]] * 400
    assert ends[:, :, 20:].reshape(2, -1).T.tolist() == [[10, 31]] * 400


def test_no_cell_leaves_the_grid() -> None:
    ends = follow_displacement(np.full((2, 5, 7), 100.0, np.float32))
    assert (ends[0] == 4).all()
    assert (ends[1] == 6).all()
    assert follow_displacement(np.full((2, 1, 1), -3.0, np.float32)).ravel().tolist() == [0, 0]


def test_clusters_are_the_regions_of_short_displacements() -> None:
    field = two_centers()
    clusters = cluster_cells(field, follow_displacement(field), centroid_displacement=1.0)
    assert np.array_equal(clusters, np.arange(40) // 20 * np.ones((20, 1), int))


def test_two_objects_of_one_class() -> None:
    maps = np.zeros((1, 20, 40), np.float32)
    maps[0, 6:14, 2:14], maps[0, 6:14, 25:38] = 1, 0.8
    boundary = np.zeros((20, 40), np.float32)
    boundary[:, 19:21] = 1
    field = two_centers() * 5 / 2  # shorter than 2.5 cells within 5 cells of a center
    response_maps = ResponseMaps(np.array([4]), maps, (80, 160))
    instances = find_instances(response_maps, boundary, field, RandomWalkSettings(steps=4), threshold=0.25)
    assert [i.class_id for i in instances] == [4, 4]
    left, right = sorted(instances, key=lambda i: i.mask.argmax(1).max())
    assert left.mask[40, 32]
    assert right.mask[40, 124]
    assert not (left.mask & right.mask).any()
    assert left.score == 1 > right.score > 0.5


def test_images_without_tags_or_activation_have_no_instances() -> None:
    for num_classes in (0, 2):
        maps = ResponseMaps(np.arange(1, num_classes + 1), np.zeros((num_classes, 8, 8), np.float16), (32, 30))
        boundary, displacement = np.zeros((8, 8), np.float32), np.zeros((2, 8, 8), np.float32)
        assert find_instances(maps, boundary, displacement, RandomWalkSettings(), threshold=0.25) == []


def test_map_power_lowers_the_score_of_the_weaker_object() -> None:
    maps = np.zeros((2, 20, 40), np.float32)
    maps[0, :, :20], maps[1, :, 20:] = 1, 0.5
    response_maps = ResponseMaps(np.array([1, 2]), maps, (80, 160))
    boundary, displacement = np.zeros((20, 40), np.float32), np.zeros((2, 20, 40), np.float32)
    settings = RandomWalkSettings(steps=0, map_power=1.3)
    instances = find_instances(response_maps, boundary, displacement, settings, threshold=0.25)
    assert [(i.class_id, i.score) for i in instances] == [(1, 1), (2, pytest.approx(0.5**1.3))]
