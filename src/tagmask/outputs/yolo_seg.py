"""Masks as YOLO instance segmentation (https://docs.ultralytics.com/datasets/segment/)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from shapely import Polygon

from tagmask.artifacts import write_text
from tagmask.outputs.image_files import write_image
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.polygons import corner_coordinates, find_regions
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.ultralytics_semantic import data_yaml


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write images/<subset>, labels/<subset>/<id>.txt and data.yaml.

    A line of a text file is the outer outline of a connected region: class (from 0), x1, y1, x2, y2, ..., relative to
    the size of the image. The format has no holes and no ignored pixels: holes are filled, ignored pixels are not
    written.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the tolerance of simplification and the name of the subset are used, and how images are written.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    for item in items:
        item.class_ids(len(classes))
        height, width = item.labels.shape
        lines = []
        for region in find_regions(item.labels, settings.tolerance_of((height, width))):
            corners = corner_coordinates(Polygon(region.polygon.exterior)) / (width, height)
            numbers = (np.format_float_positional(x, 6, trim="-") for x in corners.ravel())
            lines.append(f"{region.class_id - 1} {' '.join(numbers)}\n")
        write_text(folder / "labels" / settings.subset_name / f"{item.id}.txt", "".join(lines))
        write_image(item, folder / "images" / settings.subset_name, settings)
    write_text(folder / "data.yaml", data_yaml(classes, settings.subset_name))
