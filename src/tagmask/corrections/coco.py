"""Corrected masks in a COCO instances file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tagmask.corrections.archive import Archive
from tagmask.corrections.known_images import CorrectedMask, KnownImages, location_in_errors
from tagmask.data.coco_mask import CocoMask, CocoObject, parse_segmentation
from tagmask.errors import DataError


def read(files: Archive, images: KnownImages) -> Iterator[CorrectedMask]:
    """Yield the corrected masks in the COCO files of an archive.

    An annotation with `iscrowd` is an object like any other, because CVAT writes every mask in this way. Where objects
    overlap, the smaller one is on top.

    Raises:
        DataError: a file is not a COCO instances file, or does not fit the images and classes of the run.
    """
    names = files.named(".json")
    if not names:
        raise DataError(f"{files.path} has no JSON file; export it as COCO 1.0.")
    for name in names:
        try:
            with location_in_errors(files.location(name)):
                yield from _read_file(files.read_json(name), images)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            message = f"{files.location(name)} is not a COCO instances file ({error!r}); export it as COCO 1.0."
            raise DataError(message) from error


def _read_file(content: Mapping[str, Any], images: KnownImages) -> Iterator[CorrectedMask]:
    label_names = {category["id"]: str(category["name"]) for category in content["categories"]}
    annotations: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        name = str(image["file_name"])
        image_id = images.find(name)
        if image_id is None:
            yield CorrectedMask(name, None, None)
            continue
        size = images.size(image_id)
        objects: list[CocoObject] = []
        with location_in_errors(name):
            images.check_size(image_id, (image["height"], image["width"]))
            for annotation in annotations.get(image["id"], []):
                label = images.label_id(label_names[annotation["category_id"]])
                shape = parse_segmentation({**annotation, "iscrowd": 0}, label, size)
                objects += [shape] if shape else []
            labels = CocoMask(size, tuple(objects)).read()
        has_polygons = any(isinstance(item.shape, tuple) for item in objects)
        yield CorrectedMask(name, image_id, labels, keeps_ignored=False, has_polygons=has_polygons)
