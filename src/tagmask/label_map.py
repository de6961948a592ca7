"""Label maps: [H, W] uint8 arrays of class ids, stored as indexed PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write
from tagmask.errors import RunError

IGNORE_INDEX = 255  # the VOC convention for ignored pixels, which belong to no known class


def voc_palette() -> list[int]:
    """The VOC colour map, 256 × RGB flattened: bit i of the class id gives bits 7-i of R, G, B in turn."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette.ravel().tolist()


_PALETTE = voc_palette()


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map [H, W] uint8 (0 background, 1..K classes, 255 unsure) as a PNG with the VOC palette."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(_PALETTE)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=False)


def read_label_map(path: Path) -> np.ndarray:
    """Read an indexed or grey PNG as its ids, [H, W] uint8. Raises RunError for any other picture, or none."""
    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L"):
                return np.array(image)
            raise RunError(f"{path} is a {image.mode} picture, not an indexed or grey label map: save it as ids.")
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: finish the run first (start it again).") from error
    except (OSError, SyntaxError) as error:  # what Pillow raises on a broken PNG
        raise RunError(f"{path} is no picture that can be read ({error}): remove it, then make it again.") from error
