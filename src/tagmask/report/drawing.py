"""Drawing label maps over photographs at the size of the report, so that they can be seen on any photograph."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from tagmask.label_map import IGNORE_INDEX, label_boundaries
from tagmask.report.colors import label_colors

MAX_WIDTH, MAX_HEIGHT = 400, 480  # pixels; twice the size on the page, for high-resolution screens
_OPACITY = 0.5  # of the color of a class
_HATCH_SPACING, _HATCH_WIDTH, _HATCH_OPACITY = 10, 3, 0.7  # of ignored pixels


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size at which an image is drawn: at most `MAX_HEIGHT` × `MAX_WIDTH`.

    A small image is magnified by an integer factor, so that its outlines are as thin as those of a large one.

    Args:
        size: (H, W) of the image in pixels.

    Returns:
        (height, width) in pixels, at least 1.
    """
    scale = min(MAX_HEIGHT / size[0], MAX_WIDTH / size[1])
    scale = float(int(scale)) if scale >= 1 else scale
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_picture(picture: np.ndarray) -> np.ndarray:
    """Return a picture [H, W, 3] uint8 at its display size."""
    height, width = display_size((picture.shape[0], picture.shape[1]))
    if (height, width) == picture.shape[:2]:
        return picture
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def draw_mask(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw the regions of a label map over its image, at display size; see `draw_regions`.

    Args:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.

    Returns:
        [h, w, 3] uint8, RGB, of the size that `display_size` returns.

    Raises:
        ValueError: the shapes do not fit.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"image is {list(image.shape)}, labels are {list(labels.shape)}")
    height, width = display_size((labels.shape[0], labels.shape[1]))
    resized = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return draw_regions(resize_picture(image), np.array(resized))


def draw_regions(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw the regions of a label map over a picture of the same size.

    A region has the color of its class and a double outline, black outside and white inside: one of the two lines
    differs from any photograph, also in grayscale. Ignored pixels are hatched in black and white.

    Args:
        picture: [h, w, 3] uint8, RGB.
        labels: [h, w] uint8, 0 background, 1..K classes, 255 ignored.

    Returns:
        [h, w, 3] uint8, RGB.
    """
    ignored = labels == IGNORE_INDEX
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    line = (rows + columns) % (2 * _HATCH_SPACING)
    hatched = ignored & (line % _HATCH_SPACING < _HATCH_WIDTH)
    colors = np.where(hatched[..., None], np.where(line < _HATCH_SPACING, 255, 0)[..., None], label_colors()[labels])
    strength = np.where(ignored, hatched * _HATCH_OPACITY, (labels > 0) * _OPACITY)[..., None]
    drawn = np.rint(picture * (1 - strength) + colors * strength).astype(np.uint8)
    foreground = (labels > 0) & ~ignored
    near = ndimage.binary_dilation(label_boundaries(labels))
    drawn[near & (labels == 0)] = 0
    drawn[near & foreground] = 255
    drawn[label_boundaries(labels, valid=foreground)] = 0  # between two classes
    return drawn
