"""Label maps: [H, W] uint8 arrays of class ids, stored as indexed PNG files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tagmask.artifacts import RUN_AGAIN, atomic_write, read_bytes
from tagmask.errors import RunError
from tagmask.text import shorten

IGNORE_INDEX = 255
"""The value of ignored pixels, as in PASCAL VOC: they belong to no known class."""

MAX_CLASSES = 254  # a label map has 8 bits: 0 is background, 255 marks ignored pixels
MAX_PIXELS = 100_000_000  # of a label map whose image is not known
MAX_BYTES = 2**28  # of a file of a label map


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


def is_foreground(labels: np.ndarray) -> NDArray[np.bool_]:
    """Return where a label map shows a class: neither background nor ignored. The shape is that of `labels`.

    Example:
        >>> is_foreground(np.array([0, 3, 255], np.uint8))
        array([False,  True, False])
    """
    return (labels > 0) & (labels != IGNORE_INDEX)


def present_classes(labels: np.ndarray) -> list[int]:
    """Return the class ids that have pixels in a label map [H, W] uint8, ascending.

    Example:
        >>> present_classes(np.array([[0, 3], [255, 1]], np.uint8))
        [1, 3]
    """
    ids = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    return [label for label in ids if label not in (0, IGNORE_INDEX)]


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
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_label_map(labels))


def encode_label_map(labels: np.ndarray) -> bytes:
    """Return the content of an indexed PNG file of a label map [H, W] uint8, with the PASCAL VOC palette."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(_PALETTE)
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=False)
    return content.getvalue()


def read_label_map(path: Path, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES) -> np.ndarray:
    """Read an indexed or 8-bit grayscale image as class ids, [H, W] uint8.

    Args:
        path: the file.
        size: the (H, W) of the image that it belongs to; None: any up to `MAX_PIXELS`. A file of another size is
            refused before it is decoded.
        num_classes: the largest class id.

    Raises:
        RunError: the file is missing, damaged, a color image, of another size, or has other class ids.
    """
    return decode_label_map(read_bytes(path, MAX_BYTES), str(path), size=size, num_classes=num_classes)


def decode_label_map(
    content: bytes, name: str, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES
) -> np.ndarray:
    """Decode the content of an image file as class ids, [H, W] uint8.

    Args:
        content: the bytes of the file.
        name: what error messages call it.
        size, num_classes: as in `read_label_map`.

    Raises:
        RunError: as `read_label_map`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, whose size is checked below
            image = Image.open(io.BytesIO(content))
        with image:
            if image.mode not in ("P", "L"):
                raise RunError(
                    f"{name} is an image of mode {image.mode}, not a label map: "
                    "save it as an indexed or 8-bit grayscale PNG of class ids."
                )
            _check_size(name, image, size)
            ids = [value for value, count in enumerate(image.histogram()) if count]
            if wrong := [value for value in ids if num_classes < value != IGNORE_INDEX]:
                raise RunError(
                    f"{name} has the class id {wrong[0]}, but there are {num_classes} classes: {RUN_AGAIN}, if it is a "
                    "mask of a run."
                )
            return np.array(image)
    except RunError:
        raise
    except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
        raise RunError(f"{name} cannot be read as an image ({shorten(str(error))}): {RUN_AGAIN}.") from error


def _check_size(name: str, image: Image.Image, size: tuple[int, int] | None) -> None:
    width, height = image.size
    if size is not None and (height, width) != tuple(size):
        raise RunError(f"{name} has {width}×{height} pixels, its image {size[1]}×{size[0]}: {RUN_AGAIN}.")
    if size is None and width * height > MAX_PIXELS:
        raise RunError(f"{name} has {width}×{height} pixels, more than {MAX_PIXELS:,}: {RUN_AGAIN}.")
