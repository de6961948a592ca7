"""Masks as a Hugging Face `imagefolder` data set (https://huggingface.co/docs/datasets/image_dataset)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tagmask.artifacts import atomic_write, write_json
from tagmask.outputs.image_files import write_pairs
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write <subset>/images, <subset>/masks, <subset>/metadata.jsonl, and id2label.json, as transformers names it.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written.

    Raises:
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    subset = folder / settings.subset_name
    with atomic_write(subset / "metadata.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for item, image_name in write_pairs(items, subset / "images", subset / "masks", settings):
            line = {"image_file_name": f"images/{image_name}", "mask_file_name": f"masks/{item.id}.png"}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(folder / "id2label.json", dict(enumerate([unused_name("background", classes), *classes])))
