"""Tests of polygons: exact ones describe the pixels, simplified ones are valid and leave no gap."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.draw import polygon2mask

from tagmask.data.scenes import make_scene
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.polygons import corner_coordinates, cut_at_holes, find_regions
from tests.outputs.conftest import at_any_speed

LABEL_MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


@at_any_speed
@given(LABEL_MAPS)
def test_exact_polygons_are_the_connected_regions(labels: np.ndarray) -> None:
    regions = find_regions(labels)
    expected = [k for k in (1, 2) for _ in range(ndimage.label(labels == k)[1])]
    assert [region.class_id for region in regions] == expected
    for k in (1, 2):
        polygons = [region.polygon for region in regions if region.class_id == k]
        assert sum(polygon.area for polygon in polygons) == (labels == k).sum()
        rows, columns = np.nonzero(labels == k)
        assert shapely.contains_xy(shapely.union_all(polygons), columns + 0.5, rows + 0.5).all()


@at_any_speed
@given(LABEL_MAPS, st.sampled_from([0.0, 0.8, 1.5, 4.0]))
def test_pieces_have_no_holes_and_add_up_to_the_polygon(labels: np.ndarray, tolerance: float) -> None:
    for _, polygon in find_regions(labels, tolerance):
        pieces = cut_at_holes(polygon)
        assert not any(piece.interiors for piece in pieces)
        assert sum(piece.area for piece in pieces) == pytest.approx(polygon.area)
        assert shapely.union_all(pieces).symmetric_difference(polygon).area == pytest.approx(0, abs=1e-6)
        if tolerance == 0:
            for piece in pieces:
                corners = corner_coordinates(piece)
                steps = np.abs(np.diff(corners, axis=0, append=corners[:1]))
                assert (corners == corners.round()).all()
                assert ((steps > 0).sum(1) == 1).all(), "every side runs along pixel edges"


@at_any_speed
@given(LABEL_MAPS, st.sampled_from([0.8, 1.5, 4.0]))
def test_simplified_polygons_are_valid_and_do_not_overlap(labels: np.ndarray, tolerance: float) -> None:
    exact, simplified = find_regions(labels), find_regions(labels, tolerance)
    assert [region.class_id for region in simplified] == [region.class_id for region in exact]
    polygons = [region.polygon for region in simplified]
    assert all(polygon.is_valid and polygon.area > 0 for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(shapely.union_all(polygons).area)


@at_any_speed
@given(st.integers(0, 500), st.sampled_from([1.0, 2.0, 4.0]))
def test_no_gap_appears_between_neighboring_classes(seed: int, tolerance: float) -> None:
    """Two classes that fill the image: their simplified polygons share one outline, however jagged it was."""
    rng = np.random.default_rng(seed)
    columns = np.clip(np.cumsum(rng.integers(-2, 3, 40)) + 20, 2, 38)
    labels = np.where(np.arange(40) < columns[:, None], 1, 2).astype(np.uint8)
    polygons = [region.polygon for region in find_regions(labels, tolerance)]
    union = shapely.union_all(polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(union.area)
    # The corners of the image may be cut off, as they are outlines, too; between the classes there is no hole.
    assert len(union.interiors) == 0
    gaps = shapely.box(0, 0, 40, 40).difference(union)
    assert gaps.area <= 2 * tolerance**2 + 1e-9


def test_simplification_keeps_the_shapes_of_scenes() -> None:
    before = after = 0
    for seed in range(6):
        mask = make_scene(seed, size=256).mask
        exact, simplified = find_regions(mask), find_regions(mask, 1.28)
        drawn = np.zeros_like(mask)
        for class_id, polygon in simplified:
            for piece in cut_at_holes(polygon):
                drawn[polygon2mask(mask.shape, corner_coordinates(piece)[:, ::-1] - 0.5)] = class_id
        for k in np.unique(mask[mask > 0]):
            assert ((drawn == k) & (mask == k)).sum() / ((drawn == k) | (mask == k)).sum() > 0.95
        before += sum(shapely.get_num_coordinates(polygon) for _, polygon in exact)
        after += sum(shapely.get_num_coordinates(polygon) for _, polygon in simplified)
    assert after < before / 2


def test_a_label_map_without_classes_has_no_polygons() -> None:
    assert find_regions(np.full((3, 4), IGNORE_INDEX, np.uint8)) == []
    assert find_regions(np.zeros((1, 1), np.uint8), 2.0) == []
