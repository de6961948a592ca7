"""Masks in the folder layout of PASCAL VOC, which CVAT calls "segmentation mask 1.1"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tagmask.artifacts import write_text
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX, voc_palette, write_label_map
from tagmask.outputs.image_files import write_image
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings


def check(classes: Sequence[str], ids: Iterable[str]) -> None:
    """Raise RunError if a class name has a colon."""
    if name := next((name for name in classes if ":" in name), None):
        raise RunError(f"the class {name!r} has a colon, which separates columns in labelmap.txt: rename it.")


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write SegmentationClass, SegmentationObject, ImageSets/Segmentation/<subset>.txt and labelmap.txt.

    Image-level tags do not separate objects, so an object is all pixels of a class in an image. `labelmap.txt` also
    declares the ignored pixels, because CVAT refuses colors that are not declared.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written (to JPEGImages).

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    ids = []
    for item in items:
        class_ids = item.class_ids(len(classes))
        write_label_map(folder / "SegmentationClass" / f"{item.id}.png", item.labels)
        objects = np.zeros(256, np.uint8)
        objects[class_ids] = np.arange(1, len(class_ids) + 1)
        objects[IGNORE_INDEX] = IGNORE_INDEX
        write_label_map(folder / "SegmentationObject" / f"{item.id}.png", objects[item.labels])
        write_image(item, folder / "JPEGImages", settings)
        ids.append(item.id)
    write_text(folder / "ImageSets" / "Segmentation" / f"{settings.subset_name}.txt", "".join(f"{i}\n" for i in ids))
    names = {0: unused_name("background", classes), **dict(enumerate(classes, 1))}
    names[IGNORE_INDEX] = unused_name("ignored", classes)
    colors = np.reshape(voc_palette(), (256, 3))
    lines = [f"{name}:{','.join(map(str, colors[k]))}::" for k, name in names.items()]
    write_text(folder / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
