"""`MaskItem`: one image and its label map, as the output formats receive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tagmask.label_map import present_classes, voc_palette


@dataclass(frozen=True)
class MaskItem:
    """One image and its label map.

    Attributes:
        id: id of the image, unique in its data set; the path of its output file without the suffix.
        file_name: path of the image file in its data set, with suffix.
        image: path or URL of the image file.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
    """

    id: str
    file_name: str
    image: str
    labels: np.ndarray

    def class_ids(self, num_classes: int) -> list[int]:
        """Return the class ids in the label map, ascending.

        Raises:
            ValueError: the label map is not [H, W] uint8, or has a value above the number of classes.
        """
        labels = self.labels
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(
                f"{self.file_name}: the label map is {list(labels.shape)} {labels.dtype}, not [H, W] uint8"
            )
        ids = present_classes(labels)
        if ids and ids[-1] > num_classes:
            raise ValueError(
                f"{self.file_name}: the label map has the value {ids[-1]}, but there are {num_classes} classes"
            )
        return ids


def unused_name(name: str, classes: Sequence[str]) -> str:
    """Return a name for a label that is not a class, such as "background"; with "_" if a class has this name."""
    while name in classes:
        name += "_"
    return name


def hex_color(label: int) -> str:
    """Return the color of a label in the PASCAL VOC palette as "#rrggbb"."""
    return f"#{bytes(voc_palette()[3 * label : 3 * label + 3]).hex()}"
