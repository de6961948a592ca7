"""Masks as FiftyOne's ImageSegmentationDirectory (https://docs.voxel51.com/user_guide/import_datasets.html)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tagmask.artifacts import write_json
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.image_files import write_pairs
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write data/, labels/ and mask_targets.json, which gives the labels in the masks their names.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: how images are written.

    Raises:
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    for _ in write_pairs(items, folder / "data", folder / "labels", settings):
        pass
    targets = {**dict(enumerate(classes, 1)), IGNORE_INDEX: unused_name("ignored", classes)}
    write_json(folder / "mask_targets.json", targets)
