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
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.polygons import region_polygons


def write_coco(path: Path, items: Iterable[MaskItem], classes: Sequence[str], *, polygons: bool = False) -> None:
    """Write label maps as one COCO JSON file, image by image: the memory does not grow with their number.

    Image ids count from 1 in the order of `items`; category ids are class ids. Image-level tags do not separate
    instances, so `iscrowd` is 0 and an annotation is

    - with compressed RLE (the default), all pixels of a class in an image;
    - with polygons, one connected region (4 neighbors) of a class. The polygons run along the edges of the pixels;
      pycocotools draws exactly the same mask from them. A region with holes becomes several polygons side by side,
      because a COCO polygon cannot have holes. (OpenCV's `fillPoly`, and libraries that use it, also fill the pixels
      just right of and below these edges; choose RLE for such readers where that matters.)

    Ignored pixels belong to no annotation.

    Args:
        path: the file; missing folders are created.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        polygons: write polygons instead of RLE.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: the file cannot be written.
    """
    # The JSON is ASCII with \u escapes, because pycocotools and others open the file in the encoding of the machine.
    # File names that are not valid UTF-8 survive this way, too.
    head = {
        "info": {"description": "Masks made by tagmask from image-level tags", "version": tagmask.__version__},
        "licenses": [],
        "categories": coco_categories(classes),
    }
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="ascii") as file,
        tempfile.TemporaryFile("w+", encoding="ascii", dir=path.parent) as annotations_file,
    ):
        file.write(json.dumps(head)[:-1] + ', "images": [')
        count = 0
        for i, (image, annotations) in enumerate(_records(items, len(classes), polygons)):
            _append(file, image, first=i == 0)
            for annotation in annotations:
                _append(annotations_file, annotation, first=count == 0)
                count += 1
        file.write('\n], "annotations": [')
        annotations_file.seek(0)
        shutil.copyfileobj(annotations_file, file, 1 << 20)
        file.write("\n]}\n")


def coco_categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the COCO categories of the classes, whose ids are the class ids."""
    return [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(classes, 1)]


def rle_annotation(mask: np.ndarray) -> dict[str, Any]:
    """Return the segmentation (compressed RLE), area and bounding box of a mask as part of a COCO annotation.

    Args:
        mask: [H, W] bool.
    """
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
        "area": int(np.count_nonzero(mask)),
        "bbox": [int(x) for x in rle.toBbox(encoded)],
    }


def _append(file: IO[str], record: dict[str, Any], *, first: bool) -> None:
    file.write(("\n" if first else ",\n") + json.dumps(record))


def _records(
    items: Iterable[MaskItem], num_classes: int, polygons: bool
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the COCO entry of each image and its annotations."""
    next_id = 1
    for image_id, item in enumerate(items, 1):
        labels = item.labels
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(
                f"{item.file_name}: the label map is {list(labels.shape)} {labels.dtype}, not [H, W] uint8"
            )
        height, width = labels.shape
        image = {"id": image_id, "file_name": item.file_name, "width": width, "height": height}
        annotations = []
        for k in np.unique(labels[(labels > 0) & (labels != IGNORE_INDEX)]).tolist():
            if k > num_classes:
                raise ValueError(
                    f"{item.file_name}: the label map has the value {k}, but there are {num_classes} classes"
                )
            for shape in _polygon_annotations(labels == k) if polygons else [rle_annotation(labels == k)]:
                annotations.append({"id": next_id, "image_id": image_id, "category_id": k, **shape, "iscrowd": 0})
                next_id += 1
        yield image, annotations


def _polygon_annotations(mask: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the polygons, area and bounding box of each connected region of a mask [H, W] bool."""
    regions, count = ndimage.label(mask)
    for k, (rows, columns) in enumerate(ndimage.find_objects(regions, count), 1):
        region = regions[rows, columns] == k
        x, y = columns.start, rows.start
        yield {
            "segmentation": [
                [value + (x, y)[i % 2] for i, value in enumerate(polygon)] for polygon in region_polygons(region)
            ],
            "area": int(np.count_nonzero(region)),
            "bbox": [x, y, columns.stop - x, rows.stop - y],
        }
