"""Masks as indexed PNG files, with a legend of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tagmask.artifacts import write_text
from tagmask.label_map import voc_palette, write_label_map
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write the label maps to <folder>/masks as indexed PNG files, and <folder>/legend.txt.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: not used.

    Raises:
        RunError: a file cannot be written.
    """
    for item in items:
        write_label_map(folder / "masks" / f"{item.id}.png", item.labels)
    write_legend(folder, classes)


def write_legend(folder: Path, classes: Sequence[str]) -> None:
    """Write `legend.txt` to a folder: one line per class with its id, red, green and blue value, and name.

    Raises:
        RunError: the file cannot be written.
    """
    colors = np.reshape(voc_palette(), (256, 3))
    lines = [f"{i} {' '.join(map(str, colors[i]))} {name}" for i, name in enumerate(("background", *classes))]
    write_text(folder / "legend.txt", "\n".join(lines) + "\n")
