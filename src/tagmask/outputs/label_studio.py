"""Masks as Label Studio tasks with brush masks (https://labelstud.io/guide/predictions)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

import tagmask
from tagmask.artifacts import atomic_write, write_text
from tagmask.data.images import is_file
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.brush_rle import encode_brush_mask
from tagmask.outputs.mask_item import MaskItem, hex_color, unused_name
from tagmask.outputs.settings import ExportSettings

LOCAL_FILES = "/data/local-files/?d="  # Label Studio's path of a file in its document root
_CONTROL, _OBJECT = "label", "image"  # the names of the two tags in the labeling interface


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write tasks.json, in which the masks are predictions, and config.xml, the labeling interface of the project.

    Ignored pixels are masks of the label "ignored", so that nothing is lost. A task names its image by its URL, or by
    its path below the document root of Label Studio, which is the parent of the folder of images: Label Studio takes a
    folder of files only if it lies below its document root.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: not used.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: a file cannot be written.
    """
    names = dict(enumerate(classes, 1)) | {IGNORE_INDEX: unused_name("ignored", classes)}
    with atomic_write(folder / "tasks.json") as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for i, item in enumerate(items):
            class_ids = item.class_ids(len(classes))
            labels = [*class_ids, *[IGNORE_INDEX] * bool((item.labels == IGNORE_INDEX).any())]
            result = [_brush_result(names[k], item.labels == k) for k in labels]
            path = LOCAL_FILES + quote(_path_below_parent(item)) if is_file(item.image) else item.image
            task = {
                "data": {"image": path, "tagmask_id": item.id},
                "predictions": [{"model_version": f"tagmask {tagmask.__version__}", "result": result}],
            }
            file.write((",\n" if i else "\n") + json.dumps(task, ensure_ascii=False))
        file.write("\n]\n")
    label_tags = (
        f"    <Label value={quoteattr(name)} background={quoteattr(hex_color(k))}/>" for k, name in names.items()
    )
    colors = "\n".join(label_tags)
    write_text(
        folder / "config.xml",
        f'<View>\n  <Image name="{_OBJECT}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{_CONTROL}" toName="{_OBJECT}">\n{colors}\n  </BrushLabels>\n</View>\n',
    )


def _path_below_parent(item: MaskItem) -> str:
    """Return the path of an image from the parent of its folder of images on, e.g. photos/beach/001.jpg."""
    depth = len(Path(item.file_name).parts)
    return "/".join(Path(item.image).absolute().parts[-depth - 1 :])


def _brush_result(label: str, mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "id": label,
        "type": "brushlabels",
        "from_name": _CONTROL,
        "to_name": _OBJECT,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush_mask(mask), "brushlabels": [label]},
    }
