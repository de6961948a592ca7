"""Masks as COCO "instances" JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as rle

import tagmask
from tagmask.artifacts import atomic_write
from tagmask.outputs.image_files import write_image
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings

Annotate = Callable[[np.ndarray, list[int]], Iterable[dict[str, Any]]]
"""Returns the annotations in a label map without their ids: (labels [H, W], class ids in it) → annotations."""

CocoRecord = tuple[dict[str, Any], list[dict[str, Any]]]
"""The COCO entry of an image, and its annotations."""


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write label maps to <folder>/annotations/instances_<subset>.json: one RLE mask per class and image.

    Image-level tags do not separate instances, so an annotation is all pixels of a class in an image. It is exact.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written (to images/<subset>).

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: the file cannot be written.
    """

    def annotate(labels: np.ndarray, class_ids: list[int]) -> Iterator[dict[str, Any]]:
        for class_id in class_ids:
            yield {"category_id": class_id, **rle_annotation(labels == class_id)}

    write_instances(folder, items, classes, settings, annotate)


def write_instances(
    folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings, annotate: Annotate
) -> None:
    """Write annotations/instances_<subset>.json, image by image: the memory does not grow with their number.

    Image ids count from 1 in the order of `items`; category ids are class ids; `iscrowd` is 0. Ignored pixels belong to
    no annotation.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written (to images/<subset>).
        annotate: returns the annotations in a label map.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    path = folder / "annotations" / f"instances_{settings.subset_name}.json"
    images = with_images(items, folder, settings)
    write_coco_json(path, {"categories": coco_categories(classes)}, _records(images, len(classes), annotate))


def with_images(items: Iterable[MaskItem], folder: Path, settings: ExportSettings) -> Iterator[MaskItem]:
    """Yield the items, and write the image of each to images/<subset>, as the settings say."""
    images = folder / "images" / settings.subset_name
    images.mkdir(parents=True, exist_ok=True)  # datumaro wants the folder also without images
    for item in items:
        write_image(item, images, settings, item.file_name)
        yield item


def write_coco_json(path: Path, head: dict[str, Any], records: Iterable[CocoRecord]) -> None:
    """Write a COCO JSON file from the entry of each image and its annotations.

    Args:
        path: the file; missing folders are created.
        head: further parts of the file, such as the categories.
        records: the images and their annotations.

    Raises:
        RunError: the file cannot be written.
    """
    # The JSON is ASCII with \u escapes, because pycocotools and others open the file in the encoding of the machine.
    # File names that are not valid UTF-8 survive this way, too.
    info = {"description": "Masks made by tagmask from image-level tags", "version": tagmask.__version__}
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="ascii") as file,
        tempfile.TemporaryFile("w+", encoding="ascii", dir=path.parent) as annotations_file,
    ):
        file.write(json.dumps({"info": info, "licenses": [], **head})[:-1] + ', "images": [')
        count = 0
        for i, (image, annotations) in enumerate(records):
            _append(file, image, first=i == 0)
            for annotation in annotations:
                _append(annotations_file, annotation, first=count == 0)
                count += 1
        file.write('\n], "annotations": [')
        annotations_file.seek(0)
        shutil.copyfileobj(annotations_file, file, 1 << 20)
        file.write("\n]}\n")


def image_entry(image_id: int, item: MaskItem) -> dict[str, Any]:
    """Return the entry of an image in a COCO file."""
    height, width = item.labels.shape
    return {"id": image_id, "file_name": item.file_name, "width": width, "height": height}


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


def _records(items: Iterable[MaskItem], num_classes: int, annotate: Annotate) -> Iterator[CocoRecord]:
    """Yield the COCO entry of each image and its annotations."""
    next_id = 1
    for image_id, item in enumerate(items, 1):
        annotations = [
            {"id": annotation_id, "image_id": image_id, **annotation, "iscrowd": 0}
            for annotation_id, annotation in enumerate(annotate(item.labels, item.class_ids(num_classes)), next_id)
        ]
        next_id += len(annotations)
        yield image_entry(image_id, item), annotations
