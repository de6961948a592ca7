"""Test what the response maps let pass, and how instances enter a label map, on arrays worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.maps import ResponseMaps
from tagmask.refine.concepts import Instance, apply_instances, instances_that_pass

LEFT, RIGHT, ALL, NONE = (np.array([row], bool) for row in ([1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]))


def maps_of(activations: dict[int, list[float]]) -> ResponseMaps:
    """Return maps whose cells have these values; the image has one row and four pixels per cell."""
    width = 4 * len(next(iter(activations.values())))
    grids = np.array([[row] for row in activations.values()], np.float32)
    return ResponseMaps(np.array(list(activations)), grids, (1, width))


def wide(*columns: int) -> np.ndarray:
    """Return the mask of an image of 12 pixels that has these ones."""
    mask = np.zeros((1, 12), bool)
    mask[0, list(columns)] = True
    return mask


def test_an_instance_passes_if_its_tag_has_the_highest_mean_activation() -> None:
    """Upsampled four times, the cells 0 and 1 give 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1."""
    maps = maps_of({2: [0, 1, 1], 5: [0.5, 0.5, 0.5]})
    within = {columns: wide(*columns) for columns in ((0, 1, 2, 3), (4, 5), (3, 4), (3, 5), (2, 5))}
    # means of class 2: 1/8, 3/4, 1/2, 5/8, 1/2; of class 5 always 1/2
    passing = {2: [(4, 5), (3, 4), (3, 5), (2, 5)], 5: [(0, 1, 2, 3), (3, 4), (2, 5)]}
    for class_id, expected in passing.items():
        instances = [Instance(class_id, 0.9, mask) for mask in within.values()]
        masks = [instance.mask for instance in instances_that_pass(instances, maps)]
        assert [columns for columns, mask in within.items() if any(mask is m for m in masks)] == expected


def test_tags_that_sam_is_not_asked_for_are_compared_too() -> None:
    maps = maps_of({1: [0.2], 2: [0.3], 3: [0.9]})
    instances = [Instance(class_id, 0.9, ALL) for class_id in (1, 2)]
    assert instances_that_pass(instances, maps) == []


def test_the_only_tag_confirms_every_instance_that_has_pixels() -> None:
    instances = [Instance(4, 0.9, LEFT), Instance(4, 0.9, NONE)]
    assert instances_that_pass(instances, maps_of({4: [0.0]})) == instances[:1]


def test_no_instances() -> None:
    assert instances_that_pass([], maps_of({4: [0.5]})) == []
    no_tags = ResponseMaps(np.zeros(0, int), np.zeros((0, 1, 1)), (1, 4))
    assert instances_that_pass([], no_tags) == []


@pytest.mark.parametrize(
    ("labels", "instances", "expected"),
    [
        ([1, 2, 255, 0], [], [1, 2, 255, 0]),
        ([1, 1, 1, 0], [Instance(1, 0.6, RIGHT)], [0, 0, 1, 1]),  # the old pixels of the class become background
        ([2, 0, 255, 2], [Instance(1, 0.6, LEFT)], [1, 1, 255, 2]),  # it wins over other classes and background
        ([0, 255, 255, 2], [Instance(1, 0.6, LEFT)], [1, 1, 255, 2]),  # and over ignored pixels
        ([0, 0, 0, 0], [Instance(1, 0.6, ALL), Instance(2, 0.7, LEFT)], [2, 2, 1, 1]),
        ([0, 0, 0, 0], [Instance(1, 0.7, ALL), Instance(2, 0.6, LEFT)], [1, 1, 1, 1]),
        ([2, 2, 2, 2], [Instance(2, 0.6, LEFT), Instance(1, 0.7, LEFT)], [1, 1, 0, 0]),  # class 2 has an instance
        ([0, 0, 0, 0], [Instance(2, 0.7, ALL), Instance(1, 0.7, LEFT)], [1, 1, 2, 2]),  # equal scores: the lower id
        ([3, 0, 0, 0], [Instance(1, 0.6, LEFT), Instance(1, 0.9, RIGHT)], [1, 1, 1, 1]),  # the union
    ],
)
def test_instances_enter_the_label_map(labels: list[int], instances: list[Instance], expected: list[int]) -> None:
    old = np.array([labels], np.uint8)
    new = apply_instances(old, instances)
    assert new.dtype == np.uint8
    assert new.tolist() == [expected]
    assert old.tolist() == [labels]
    assert apply_instances(old, instances[::-1]).tolist() == [expected]


def test_random_instances_against_the_rule_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (5, 6))
        classes = rng.choice([1, 2, 3, 4], rng.integers(1, 6)).tolist()
        instances = [Instance(c, float(rng.random()), rng.random((5, 6)) < 0.3) for c in classes]
        expected = np.empty_like(labels)
        for pixel, old in np.ndenumerate(labels):
            here = [(instance.score, instance.class_id) for instance in instances if instance.mask[pixel]]
            expected[pixel] = max(here)[1] if here else 0 if old in classes else old
        np.testing.assert_array_equal(apply_instances(labels, instances), expected)


def test_instances_of_a_reduced_image_are_enlarged() -> None:
    labels = np.full((4, 16), 1, np.uint8)
    labels[:, 8:] = 2
    instance = Instance(1, 0.9, np.repeat(RIGHT, 2, axis=0))
    expected = np.where(np.arange(16) < 8, 0, np.ones((4, 1))).astype(np.uint8)
    np.testing.assert_array_equal(apply_instances(labels, [instance]), expected)
