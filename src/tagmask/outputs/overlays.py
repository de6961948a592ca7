"""Label maps drawn over their images, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write
from tagmask.label_map import IGNORE_INDEX, voc_palette

_PALETTE = np.array(voc_palette(), np.uint8).reshape(256, 3)
_OUTLINES = 255 - (255 - _PALETTE) // 2  # half way to white: the dark colours stay visible on dark photographs
_HATCH = 6  # pixels from one line of the unsure hatching to the next
_HATCH_OPACITY = 0.7
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def overlay(image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Blend each region's palette colour into the image, with an outline of one pixel.

    Unsure regions (255) are hatched in white and black, to be seen on any image; the background stays as it is.

    Args:
        image: [H, W, 3] uint8.
        labels: [H, W] uint8, 0 background, 1..n classes, 255 unsure.
        opacity: of the colour inside the outline, 0..1.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: the shapes do not fit.
    """
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8 or labels.dtype != np.uint8:
        raise ValueError(
            f"image is {list(image.shape)} {image.dtype}, labels are {list(labels.shape)} {labels.dtype}; "
            "they must be [H, W, 3] uint8 and [H, W] uint8"
        )
    unsure = labels == IGNORE_INDEX
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    line = (rows + columns) % _HATCH
    colors = np.where(unsure[..., None], np.where(line == 0, 255, 0)[..., None], _PALETTE[labels])
    strength = np.where(unsure, (line < 2) * _HATCH_OPACITY, (labels > 0) * opacity)[..., None]
    blended = np.rint(image * (1 - strength) + colors * strength).astype(np.uint8)
    outline = _outline(labels)
    blended[outline] = _OUTLINES[labels[outline]]
    return blended


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> None:
    """Write `overlay` as JPEG or PNG, as the suffix says.

    Raises:
        ValueError: another suffix, or shapes that do not fit.
        RunError: the file cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path} must end in {', '.join(_FORMATS)}")
    picture = Image.fromarray(overlay(image, labels, opacity=opacity))
    with atomic_write(path) as temporary:
        # Full colour resolution: the outlines are one pixel wide.
        picture.save(temporary, format=_FORMATS[path.suffix.lower()], quality=90, subsampling=0)


def _outline(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels of classes with a different pixel beside, above or below."""
    outline = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[first] != labels[second]
        outline[first] |= differ
        outline[second] |= differ
    return outline & (labels > 0) & (labels != IGNORE_INDEX)
