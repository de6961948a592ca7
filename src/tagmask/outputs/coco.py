"""Masks as COCO "instances" JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as rle
from scipy import ndimage

import tagmask
from tagmask.artifacts import atomic_write
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.polygons import polygons as outlines

Item = tuple[str, np.ndarray]
"""(file name of the image, label map [H, W] uint8: 0 background, 1..n classes, 255 unsure)"""


def to_coco(items: Iterable[Item], classes: Sequence[str], *, polygons: bool = False) -> dict[str, Any]:
    """Label maps as a COCO dict. Image ids count from 1 in the order of `items`; category ids are class ids.

    Tags tell no instances apart, so an annotation is, with `iscrowd` 0:

    - as compressed RLE (the default), all of a class in an image;
    - as polygons, one connected region (4 neighbours) of it. The polygons run along the pixels' edges and, drawn by
      pycocotools, give exactly the same mask. A region with holes is several polygons side by side, as a COCO
      polygon can have none. (OpenCV's `fillPoly`, and what uses it, also fills the pixels just right and below of
      these edges; choose RLE for such readers where that matters.)

    Unsure pixels belong to nothing.

    Raises:
        ValueError: a label map that is not [H, W] uint8, or has a value beyond the classes.
    """
    images, annotations = [], []
    for image, found in _records(items, len(classes), polygons):
        images.append(image)
        annotations += found
    return {**_head(classes), "images": images, "annotations": annotations}


def write_coco(path: Path, items: Iterable[Item], classes: Sequence[str], *, polygons: bool = False) -> None:
    """Write `to_coco` as JSON, image by image: memory does not grow with their number.

    Raises:
        ValueError: as `to_coco`.
        RunError: the file cannot be written.
    """
    # ASCII, with \u for the rest: pycocotools and others open the file in the machine's own encoding, and file
    # names that are no valid UTF-8 come back as they were.
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="ascii") as file,
        tempfile.TemporaryFile("w+", encoding="ascii", dir=path.parent) as second,
    ):
        file.write(json.dumps(_head(classes))[:-1] + ', "images": [')
        count = 0
        for i, (image, found) in enumerate(_records(items, len(classes), polygons)):
            _append(file, image, first=i == 0)
            for annotation in found:
                _append(second, annotation, first=count == 0)
                count += 1
        file.write('\n], "annotations": [')
        second.seek(0)
        shutil.copyfileobj(second, file, 1 << 20)
        file.write("\n]}\n")


def _append(file: IO[str], record: dict[str, Any], *, first: bool) -> None:
    file.write(("\n" if first else ",\n") + json.dumps(record))


def _head(classes: Sequence[str]) -> dict[str, Any]:
    return {
        "info": {"description": "Masks made by tagmask from image-level tags", "version": tagmask.__version__},
        "licenses": [],
        "categories": [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(classes, 1)],
    }


def _records(
    items: Iterable[Item], num_classes: int, as_polygons: bool
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image's entry and its annotations."""
    next_id = 1
    for image_id, (name, labels) in enumerate(items, 1):
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f"{name}: the label map is {list(labels.shape)} {labels.dtype}, not [H, W] uint8")
        height, width = labels.shape
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        found = []
        for k in np.unique(labels[(labels > 0) & (labels != IGNORE_INDEX)]).tolist():
            if k > num_classes:
                raise ValueError(f"{name}: the label map has the value {k}; there are {num_classes} classes")
            for annotation in _regions(labels == k) if as_polygons else [_whole(labels == k)]:
                found.append({"id": next_id, "image_id": image_id, "category_id": k, **annotation, "iscrowd": 0})
                next_id += 1
        yield image, found


def _whole(mask: np.ndarray) -> dict[str, Any]:
    """All of a class's pixels as one RLE."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = [int(x) for x in rle.toBbox(encoded)]
    segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
    return {"segmentation": segmentation, "area": int(np.count_nonzero(mask)), "bbox": box}


def _regions(mask: np.ndarray) -> Iterator[dict[str, Any]]:
    """Each connected region of a class as polygons."""
    labels, count = ndimage.label(mask)
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels, count), 1):
        region = labels[rows, columns] == k
        x, y = columns.start, rows.start
        moved = [[a + (x, y)[i % 2] for i, a in enumerate(outline)] for outline in outlines(region)]
        yield {
            "segmentation": moved,
            "area": int(np.count_nonzero(region)),
            "bbox": [x, y, columns.stop - x, rows.stop - y],
        }
