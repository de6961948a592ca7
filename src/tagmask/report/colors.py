"""The colors of the classes in the report, chosen so that they can be told apart, also by color-blind readers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tagmask.label_map import IGNORE_INDEX, voc_palette

# Found by a greedy search for colors that differ in CIELAB, also as people with protanopia or deuteranopia see them.
# The smallest of these differences is 42 among the first six colors and 22 among all of them; 2 is just noticeable.
_DISTINCT_COLORS = (
    (255, 105, 75), (0, 0, 255), (0, 180, 255), (135, 15, 120), (240, 240, 0), (0, 255, 210),
    (45, 105, 255), (255, 0, 120), (225, 240, 150), (120, 60, 0), (255, 0, 195), (240, 150, 0),
)  # fmt: skip


def label_colors() -> NDArray[np.uint8]:
    """Return the color of each label in the report, [256, 3] uint8 RGB.

    The first twelve classes have distinct colors; the others have those of PASCAL VOC, mixed with white.
    """
    colors = 255 - (255 - np.array(voc_palette(), np.uint8).reshape(256, 3)) // 2
    colors[0] = 128
    colors[1 : 1 + len(_DISTINCT_COLORS)] = _DISTINCT_COLORS
    colors[IGNORE_INDEX] = 255
    return colors


def css_color(label: int) -> str:
    """Return the color of a label as CSS, e.g. "#ff694b"."""
    return "#{:02x}{:02x}{:02x}".format(*label_colors()[label])
