"""Regions of a label map as polygons along the pixels' edges: nothing is smoothed, nothing is lost."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_TURN = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up as (row, column); the next one is to the right
# The pixels ahead of a corner, to the right and to the left of the way, from the pixel below right of that corner.
_RIGHT = ((0, 0), (0, -1), (-1, -1), (-1, 0))
_LEFT = ((-1, 0), (0, 0), (0, -1), (-1, -1))


def polygons(region: np.ndarray) -> list[list[int]]:
    """The outlines of a region [H, W] bool as flat lists x1, y1, x2, y2, ... of pixel edges.

    Together the polygons cover exactly the region and do not overlap. None has a hole, which a COCO polygon
    cannot have: a part with holes is cut along a row through one of them until no hole is left.
    """
    found = []
    parts = [(region, 0, 0)]
    while parts:
        mask, top, left = parts.pop()
        labels, count = ndimage.label(mask)
        for k, box in enumerate(ndimage.find_objects(labels, count), 1):
            rows, columns = box
            part = labels[box] == k
            place = top + rows.start, left + columns.start
            cut = _cut_row(part)
            if cut is None:
                found.append(_outline(part, *place))
            else:
                parts += [(part[:cut], *place), (part[cut:], place[0] + cut, place[1])]
    return found


def _cut_row(part: np.ndarray) -> int | None:
    """The first row below a cut that opens one of the holes, the one nearest the middle; None without holes."""
    # Four neighbours make a region here, so eight make a hole.
    holes, count = ndimage.label(~np.pad(part, 1), np.ones((3, 3), int))
    if count == 1:  # the outside, which holds the padding
        return None
    boxes = [box[0] for k, box in enumerate(ndimage.find_objects(holes), 1) if k != holes[0, 0]]
    middles = [(box.start + box.stop) // 2 - 1 for box in boxes]  # without the padding; above it is hole, or part
    return min(middles, key=lambda row: abs(row - part.shape[0] // 2))


def _outline(part: np.ndarray, top: int, left: int) -> list[int]:
    """Walk around a part [H, W] bool without holes, keeping it on the right; a corner at each turn."""
    inside = np.pad(part, 1).tolist()
    start = 0, int(part[0].argmax())
    (row, column), way, turned = start, 0, True
    corners: list[int] = []
    while True:
        if turned:
            corners += [left + column, top + row]
        row, column = row + _TURN[way][0], column + _TURN[way][1]
        if (row, column) == start:
            return corners
        right, left_side, before = _RIGHT[way], _LEFT[way], way
        if not inside[row + right[0] + 1][column + right[1] + 1]:
            way = (way + 1) % 4
        elif inside[row + left_side[0] + 1][column + left_side[1] + 1]:
            way = (way - 1) % 4
        turned = way != before
