"""Regions of a label map as polygons along the edges of the pixels, which describe them exactly."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Directions right, down, left and up as (row, column); the next one is a right turn.
_DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
# For each direction, the pixels ahead of a corner to the right and to the left of the path. They are relative to the
# pixel to the lower right of the corner.
_RIGHT_PIXELS = ((0, 0), (0, -1), (-1, -1), (-1, 0))
_LEFT_PIXELS = ((-1, 0), (0, 0), (0, -1), (-1, -1))


def region_polygons(region: np.ndarray) -> list[list[int]]:
    """Return polygons that cover a region exactly and do not overlap.

    No polygon has a hole, which a COCO polygon cannot have: a part with holes is cut along a row through one of them
    until no hole is left.

    Args:
        region: [H, W] bool.

    Returns:
        The polygons as flat lists x1, y1, x2, y2, ... of pixel edges.
    """
    polygons = []
    parts = [(region, 0, 0)]
    while parts:
        mask, top, left = parts.pop()
        labels, count = ndimage.label(mask)
        for k, box in enumerate(ndimage.find_objects(labels, count), 1):
            rows, columns = box
            part = labels[box] == k
            part_top, part_left = top + rows.start, left + columns.start
            cut = _row_through_hole(part)
            if cut is None:
                polygons.append(_outline(part, part_top, part_left))
            else:
                parts += [(part[:cut], part_top, part_left), (part[cut:], part_top + cut, part_left)]
    return polygons


def _row_through_hole(part: np.ndarray) -> int | None:
    """The first row below the cut that opens a hole of the part, nearest to its middle row; None without holes."""
    # Regions are connected by four neighbors, so holes are connected by eight.
    holes, count = ndimage.label(~np.pad(part, 1), np.ones((3, 3), int))
    if count == 1:  # only the outside, which contains the padding
        return None
    boxes = [box[0] for k, box in enumerate(ndimage.find_objects(holes), 1) if k != holes[0, 0]]
    middle_rows = [(box.start + box.stop) // 2 - 1 for box in boxes]  # - 1 for the padding
    return min(middle_rows, key=lambda row: abs(row - part.shape[0] // 2))


def _outline(part: np.ndarray, top: int, left: int) -> list[int]:
    """The outline of a part [H, W] bool without holes, clockwise, with one corner per turn."""
    inside = np.pad(part, 1).tolist()
    start = 0, int(part[0].argmax())
    (row, column), direction, turned = start, 0, True
    corners: list[int] = []
    while True:
        if turned:
            corners += [left + column, top + row]
        row, column = row + _DIRECTIONS[direction][0], column + _DIRECTIONS[direction][1]
        if (row, column) == start:
            return corners
        right_pixel, left_pixel, previous = _RIGHT_PIXELS[direction], _LEFT_PIXELS[direction], direction
        if not inside[row + right_pixel[0] + 1][column + right_pixel[1] + 1]:
            direction = (direction + 1) % 4
        elif inside[row + left_pixel[0] + 1][column + left_pixel[1] + 1]:
            direction = (direction - 1) % 4
        turned = direction != previous
