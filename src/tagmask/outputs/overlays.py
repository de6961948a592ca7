"""Label maps drawn over their images, for viewing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write
from tagmask.data.images import read_image
from tagmask.label_map import IGNORE_INDEX, label_boundaries, voc_palette
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings

_PALETTE = np.array(voc_palette(), np.uint8).reshape(256, 3)
_OUTLINE_COLORS = 255 - (255 - _PALETTE) // 2  # halfway to white: dark colors stay visible on dark photographs
_HATCH_SPACING = 6  # pixels from one line of the hatching of ignored pixels to the next
_HATCH_OPACITY = 0.7
_SUFFIX_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def overlay(image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Return an image with the regions of a label map in their palette colors, with outlines of one pixel.

    Ignored pixels are hatched in black and white, which is visible on any image. The background does not change.

    Args:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
        opacity: of the color inside the outlines, 0..1.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ValueError: the shapes or types do not fit.
    """
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8 or labels.dtype != np.uint8:
        raise ValueError(
            f"image is {list(image.shape)} {image.dtype}, labels are {list(labels.shape)} {labels.dtype}; "
            "they must be [H, W, 3] uint8 and [H, W] uint8"
        )
    ignored = labels == IGNORE_INDEX
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    line = (rows + columns) % _HATCH_SPACING
    colors = np.where(ignored[..., None], np.where(line == 0, 255, 0)[..., None], _PALETTE[labels])
    strength = np.where(ignored, (line < 2) * _HATCH_OPACITY, (labels > 0) * opacity)[..., None]
    blended = np.rint(image * (1 - strength) + colors * strength).astype(np.uint8)
    outlines = label_boundaries(labels) & (labels > 0) & ~ignored
    blended[outlines] = _OUTLINE_COLORS[labels[outlines]]
    return blended


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> None:
    """Write an overlay as a JPEG or PNG file.

    Args:
        path: the file; its suffix (.jpg, .jpeg or .png) selects the format.
        image: see `overlay`.
        labels: see `overlay`.
        opacity: see `overlay`.

    Raises:
        ValueError: the suffix is another one, or the shapes do not fit.
        RunError: the file cannot be written.
    """
    if path.suffix.lower() not in _SUFFIX_FORMATS:
        raise ValueError(f"{path} must end in {', '.join(_SUFFIX_FORMATS)}")
    picture = Image.fromarray(overlay(image, labels, opacity=opacity))
    with atomic_write(path) as temporary:
        # without chroma subsampling, because the outlines are one pixel wide
        picture.save(temporary, format=_SUFFIX_FORMATS[path.suffix.lower()], quality=90, subsampling=0)


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write an overlay of each image to a folder, as JPEG files.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: not used.
        settings: not used.

    Raises:
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    for item in items:
        write_overlay(folder / f"{item.id}.jpg", read_image(item.image), item.labels)
