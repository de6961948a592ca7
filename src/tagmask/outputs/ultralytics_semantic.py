"""Masks for Ultralytics' semantic segmentation (https://docs.ultralytics.com/datasets/semantic/)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tagmask.artifacts import write_text
from tagmask.outputs.image_files import write_pairs
from tagmask.outputs.mask_item import MaskItem, unused_name
from tagmask.outputs.settings import ExportSettings
from tagmask.yaml_text import dump_yaml


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write images/<subset>, masks/<subset> and data.yaml. Ultralytics ignores pixels of value 255, too.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: the name of the subset is used, and how images are written.

    Raises:
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    for _ in write_pairs(
        items, folder / "images" / settings.subset_name, folder / "masks" / settings.subset_name, settings
    ):
        pass
    names = [unused_name("background", classes), *classes]
    write_text(folder / "data.yaml", data_yaml(names, settings.subset_name, masks_dir="masks"))


def data_yaml(names: Sequence[str], subset: str, **settings: str) -> str:
    """Return the text of data.yaml. Ultralytics requires `train` and `val`, so both name the only subset."""
    path = f"images/{subset}"
    content = {"train": path, "val": path, **settings, "names": dict(enumerate(names))}
    return dump_yaml(content)
