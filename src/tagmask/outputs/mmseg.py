"""Masks in the folder layout of MMSegmentation (its class `BaseSegDataset`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tagmask.artifacts import write_json
from tagmask.errors import RunError
from tagmask.label_map import voc_palette
from tagmask.outputs.image_files import write_pairs
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write img_dir/<subset>, ann_dir/<subset> and metainfo.json. MMSegmentation ignores pixels of value 255, too.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written.

    Raises:
        DataError: an image cannot be read.
        RunError: the images do not have one suffix, or a file cannot be written.
    """
    images, masks = folder / "img_dir" / settings.subset_name, folder / "ann_dir" / settings.subset_name
    suffix = None
    for item, image_name in write_pairs(items, images, masks, settings):
        suffix = Path(image_name).suffix if suffix is None else suffix
        if Path(image_name).suffix != suffix:
            raise RunError(
                f"{item.file_name} does not end in {suffix!r} as the images before it, but MMSegmentation reads one "
                "suffix: convert the images to one format, or choose another export format."
            )
    names = [unused_name("background", classes), *classes]
    palette = np.reshape(voc_palette(), (256, 3))[: len(names)].tolist()
    metainfo = {"classes": names, "palette": palette, "img_suffix": suffix, "seg_map_suffix": ".png"}
    write_json(folder / "metainfo.json", metainfo)
