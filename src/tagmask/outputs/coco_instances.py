"""Instance masks as COCO "instances" JSON: an annotation an object, with its id and score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tagmask.artifacts import write_text

Item = tuple[str, tuple[int, ...], list[dict[str, Any]]]
"""(file name of the image, its (H, W), its annotations as `instance_annotation` makes them)"""


def instance_annotation(class_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    """One object as a COCO annotation that still lacks its ids: mask [H, W] bool, score 0..1."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": class_id,
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
        "area": int(np.count_nonzero(mask)),
        "bbox": rle.toBbox(encoded).tolist(),
        "iscrowd": 0,
        "score": round(score, 4),
    }


def write_instances(path: Path, items: Iterable[Item], classes: Sequence[str]) -> None:
    """Write the images' objects as one COCO file; image ids and object ids count from 1. Raises RunError."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, (height, width), found) in enumerate(items, 1):
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        annotations += [{"id": len(annotations) + n, "image_id": image_id, **f} for n, f in enumerate(found, 1)]
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(classes, 1)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    write_text(path, text + "\n")  # ASCII, as pycocotools opens it in the machine's own encoding
