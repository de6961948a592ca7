"""`MaskItem`: one image and its label map, as the output formats receive them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
