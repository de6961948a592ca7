"""Regions of a label map as polygons, exact or simplified."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import shapely
from shapely import Polygon

from tagmask.label_map import is_foreground


class Region(NamedTuple):
    """A connected region (4 neighbors) of one class in a label map.

    Attributes:
        class_id: the class.
        polygon: its outline in pixels; (0, 0) is the upper left corner of the image. It can have holes.
    """

    class_id: int
    polygon: Polygon


def find_regions(labels: np.ndarray, tolerance: float = 0) -> list[Region]:
    """Return the connected regions of all classes as polygons.

    Simplification removes the corners of an outline that are the least visible, as long as the triangle of the corner
    and its two neighbors has an area below tolerance² (Visvalingam and Whyatt, 1993). The outline that two regions
    share is simplified once, so that neither a gap nor an overlap appears between them.

    Args:
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
        tolerance: in pixels; 0: the outlines run along the edges of the pixels, and describe the regions exactly.

    Returns:
        The regions in the order of their class ids, without background and ignored pixels. Their polygons are valid and
        do not overlap.
    """
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_boundary_edges(labels))))
    inside = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(int)
    class_ids = labels[inside[:, 1], inside[:, 0]]
    is_class = is_foreground(class_ids)
    order = np.argsort(class_ids[is_class], kind="stable")
    faces, class_ids = faces[is_class][order], class_ids[is_class][order]
    polygons = shapely.coverage_simplify(faces, tolerance) if tolerance else shapely.simplify(faces, 0)
    return [Region(int(k), polygon) for k, polygon in zip(class_ids, polygons, strict=True)]


def cut_at_holes(polygon: Polygon) -> list[Polygon]:
    """Cut a polygon along rows through its holes, until no part has a hole.

    A polygon whose corners are whole numbers is cut at a whole row, so that the parts consist of whole pixels if the
    polygon does.
    """
    holes = shapely.bounds(shapely.get_rings(polygon)[1:])
    if not len(holes):
        return [polygon]
    left, top, right, bottom = shapely.bounds(polygon)
    middle_rows = (holes[:, 1] + holes[:, 3]) / 2
    row = middle_rows[np.abs(middle_rows - (top + bottom) / 2).argmin()]
    for cut in (math.floor(row), row):
        halves = shapely.box(left, [top, cut], right, [cut, bottom])
        parts = shapely.get_parts(shapely.intersection(polygon, halves))
        parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
        if shapely.get_num_interior_rings(parts).sum() < len(holes):
            break
    return [piece for part in shapely.simplify(parts, 0) for piece in cut_at_holes(part)]


def corner_coordinates(polygon: Polygon) -> np.ndarray:
    """Return the corners of a polygon without holes, [N, 2] float64 of x and y; the first is not repeated."""
    return shapely.get_coordinates(polygon)[:-1].round(2)


def _boundary_edges(labels: np.ndarray) -> np.ndarray:
    """Return the pixel edges between different labels and around the image, [N, 2, 2]: two points x, y each."""
    padded = np.pad(labels.astype(np.int16), 1, constant_values=-1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    vertical = np.stack([np.stack([column, row], 1), np.stack([column, row + 1], 1)], 1)
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    horizontal = np.stack([np.stack([column, row], 1), np.stack([column + 1, row], 1)], 1)
    return np.concatenate([vertical, horizontal]).astype(np.float64)
