"""Masks as indexed PNG files, with a legend of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tagmask.artifacts import write_text
from tagmask.label_map import voc_palette, write_label_map
from tagmask.outputs.mask_item import MaskItem


def write_png(path: Path, items: Iterable[MaskItem], classes: Sequence[str]) -> None:
    """Write the label maps to a folder as indexed PNG files, and `legend.txt` next to the folder.

    Args:
        path: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].

    Raises:
        RunError: a file cannot be written.
    """
    for item in items:
        write_label_map(path / f"{item.id}.png", item.labels)
    write_legend(path.parent, classes)


def write_legend(folder: Path, classes: Sequence[str]) -> None:
    """Write `legend.txt` to a folder: one line per class with its id, red, green and blue value, and name.

    Raises:
        RunError: the file cannot be written.
    """
    colors = np.reshape(voc_palette(), (256, 3))
    lines = [f"{i} {' '.join(map(str, colors[i]))} {name}" for i, name in enumerate(("background", *classes))]
    write_text(folder / "legend.txt", "\n".join(lines) + "\n")
