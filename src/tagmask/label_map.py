"""Label maps: [H, W] uint8 arrays of class ids, stored as indexed PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tagmask.artifacts import atomic_write
from tagmask.errors import RunError

IGNORE_INDEX = 255
"""The value of ignored pixels, as in PASCAL VOC: they belong to no known class."""


def voc_palette() -> list[int]:
    """Return the PASCAL VOC color map as a flat list of 256 × RGB values.

    The bits of a class id, from the lowest, set bits 7, 6, 5, ... of red, green and blue in turn.

    Example:
        >>> voc_palette()[3:9]  # class 1 is dark red, class 2 dark green
        [128, 0, 0, 0, 128, 0]
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette.ravel().tolist()


_PALETTE = voc_palette()


def label_boundaries(labels: np.ndarray, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Mark the pixels that have a different label above, below, left or right of them.

    The border of the image itself is not a boundary.

    Args:
        labels: [H, W], any dtype.
        valid: [H, W] bool; only pairs of neighbors that are both valid count. None: all pixels are valid.

    Returns:
        [H, W] bool, True on both sides of every boundary.

    Example:
        >>> label_boundaries(np.array([[0, 0, 3, 3]]))
        array([[False,  True,  True, False]])
    """
    boundaries = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[first] != labels[second]
        if valid is not None:
            differ &= valid[first] & valid[second]
        boundaries[first] |= differ
        boundaries[second] |= differ
    return boundaries


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map as an indexed PNG file with the PASCAL VOC palette.

    Args:
        path: the file; missing folders are created.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.

    Raises:
        RunError: the file cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(_PALETTE)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=False)


def read_label_map(path: Path) -> np.ndarray:
    """Read an indexed or 8-bit grayscale PNG file as class ids, [H, W] uint8.

    Raises:
        RunError: the file is missing, damaged, or a color image.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L"):
                return np.array(image)
            raise RunError(
                f"{path} is an image of mode {image.mode}, not a label map: "
                "save it as an indexed or 8-bit grayscale PNG of class ids."
            )
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: run the same command again to finish the run.") from error
    except (OSError, SyntaxError) as error:  # what Pillow raises on a broken PNG
        raise RunError(f"{path} cannot be read as an image ({error}): remove it, then create it again.") from error
