"""Masks as COCO "panoptic" JSON with PNGs of segment ids (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from tagmask.artifacts import atomic_write
from tagmask.label_map import IGNORE_INDEX, voc_palette
from tagmask.outputs.coco import CocoRecord, image_entry, with_images, write_coco_json
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write <folder>/annotations/panoptic_<subset>.json, and the PNGs in a folder of the same name.

    A segment is all pixels of a class in an image; its id is the category id. The background is the last category, so
    that it differs from the ignored pixels, which belong to no segment (id 0). All categories are "stuff", because
    image-level tags do not separate objects.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written (to images/<subset>).

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: a file cannot be written.
    """
    name = f"panoptic_{settings.subset_name}"
    background = len(classes) + 1
    segment_ids = np.arange(256, dtype=np.uint8)
    segment_ids[[0, IGNORE_INDEX]] = background, 0
    colors = np.reshape(voc_palette(), (256, 3)).tolist()
    categories = [
        {"id": k, "name": category, "supercategory": "", "isthing": 0, "color": colors[k % (len(classes) + 1)]}
        for k, category in enumerate([*classes, unused_name("background", classes)], 1)
    ]

    def records() -> Iterator[CocoRecord]:
        for image_id, item in enumerate(with_images(items, folder, settings), 1):
            item.class_ids(len(classes))
            segments = segment_ids[item.labels]
            png = Path(name, f"{item.id}.png")
            _write_segment_ids(folder / "annotations" / png, segments)
            found = np.unique(segments[segments > 0]).tolist()
            infos = [_segment_info(segments == k, k) for k in found]
            record = {"image_id": image_id, "file_name": png.relative_to(name).as_posix(), "segments_info": infos}
            yield image_entry(image_id, item), [record]

    write_coco_json(folder / "annotations" / f"{name}.json", {"categories": categories}, records())


def _segment_info(mask: np.ndarray, category_id: int) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": category_id,
        "category_id": category_id,
        "area": int(np.count_nonzero(mask)),
        "bbox": [int(x) for x in rle.toBbox(encoded)],
        "iscrowd": 0,
    }


def _write_segment_ids(path: Path, segments: np.ndarray) -> None:
    """Write segment ids up to 255 as RGB: the id is R + 256 G + 65536 B."""
    rgb = np.zeros((*segments.shape, 3), np.uint8)
    rgb[..., 0] = segments
    with atomic_write(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")
