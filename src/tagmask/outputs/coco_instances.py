"""Instance masks as COCO "instances" JSON: one annotation per object, with its score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.artifacts import write_text
from tagmask.outputs.coco import coco_categories, rle_annotation

InstanceItem = tuple[str, tuple[int, ...], list[dict[str, Any]]]
"""File name of the image, its (H, W), and its annotations as `instance_annotation` returns them."""


def instance_annotation(class_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    """Return a COCO annotation of one object without the ids of the annotation and the image.

    Args:
        class_id: class of the object.
        mask: [H, W] bool.
        score: confidence, 0..1.
    """
    return {"category_id": class_id, **rle_annotation(mask), "iscrowd": 0, "score": round(score, 4)}


def write_instances(path: Path, items: Iterable[InstanceItem], classes: Sequence[str]) -> None:
    """Write the objects of all images as one COCO JSON file; image and annotation ids count from 1.

    Args:
        path: the file; missing folders are created.
        items: the images and their annotations.
        classes: names of the classes; class id k is classes[k - 1].

    Raises:
        RunError: the file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, (height, width), objects) in enumerate(items, 1):
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    text = json.dumps({"images": images, "annotations": annotations, "categories": coco_categories(classes)})
    write_text(path, text + "\n")  # ASCII, because pycocotools opens the file in the encoding of the machine
