"""Masks as COCO "instances" JSON with polygons, which can be edited corner by corner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely import Polygon

from tagmask.outputs.coco import write_instances
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.polygons import corner_coordinates, cut_at_holes, find_regions
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write label maps to <folder>/annotations/instances_<subset>.json: one annotation per connected region.

    A region with holes becomes several polygons side by side, because a COCO polygon cannot have holes. Polygons that
    are not simplified run along the edges of the pixels; pycocotools draws exactly the same mask from them. (OpenCV's
    `fillPoly`, and libraries that use it, also fill the pixels just right of and below these edges.)

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the tolerance of simplification and the name of the subset are used, and how images are written.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: the file cannot be written.
    """

    def annotate(labels: np.ndarray, class_ids: list[int]) -> Iterator[dict[str, Any]]:
        for region in find_regions(labels, settings.tolerance_of(labels.shape)):
            yield {"category_id": region.class_id, **_annotation(region.polygon)}

    write_instances(folder, items, classes, settings, annotate)


def _annotation(polygon: Polygon) -> dict[str, Any]:
    """Return the polygons, area and bounding box of a region as part of a COCO annotation."""
    left, top, right, bottom = map(int, shapely.bounds(polygon))
    return {
        "segmentation": [_numbers(corner_coordinates(part)) for part in cut_at_holes(polygon)],
        "area": _number(polygon.area),
        "bbox": [left, top, right - left, bottom - top],
    }


def _numbers(corners: np.ndarray) -> list[float]:
    return [_number(value) for value in corners.ravel().tolist()]


def _number(value: float) -> float:
    """Return a number for JSON, without ".0"."""
    return int(value) if value == int(value) else round(value, 2)
