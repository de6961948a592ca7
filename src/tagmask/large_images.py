"""Images of more than a megapixel: reduced for response maps, cut into overlapping tiles for segmentation networks.

Two rules keep the memory bounded, whatever the size of an image:

- Response maps, seeds and pseudo-masks are computed on a reduced image of at most `MAX_PIXELS`. Their networks learn
  from whole images of some hundred pixels, and the tags hold for the whole image, not for a part of it. Maps and
  label maps are then enlarged to the size of the image.
- A segmentation network learns from crops at full resolution. It sees a large image as overlapping tiles, and of each
  tile only the core is kept (the overlap-tile strategy of Ronneberger et al., "U-Net", MICCAI 2015, section 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 20
"""Images with at most as many pixels (1024 × 1024) are processed as a whole and at full resolution."""

HALO = 128
"""Pixels of context around the core of a tile: half a usual training crop, and twice the reach of the dense CRF."""

CORE_SIDE = 736  # pixels; with the halo and the alignment, a tile has at most MAX_PIXELS
WINDOW_SIDE = 2048  # pixels; of a window in training: room for a crop of 1024 pixels at half the scale
ALIGNMENT = 32  # pixels; cells of strided networks lie at the same places in a tile and in the whole image

Window = tuple[slice, slice]
"""The rows and columns of a part of an image."""


@dataclass(frozen=True)
class Tile:
    """A part of an image, with context.

    Attributes:
        window: what is computed: the core and up to `HALO` pixels around it.
        core: what is kept. The cores of all tiles cover the image without overlap.
    """

    window: Window
    core: Window

    @property
    def core_in_window(self) -> Window:
        """Where the core lies in the window."""
        rows, columns = (
            slice(core.start - window.start, core.stop - window.start)
            for core, window in zip(self.core, self.window, strict=True)
        )
        return rows, columns


def is_large(size: tuple[int, int]) -> bool:
    """Return whether an image of (H, W) pixels has more than `MAX_PIXELS`."""
    return size[0] * size[1] > MAX_PIXELS


def reduced_size(size: tuple[int, int], max_pixels: int | None = None) -> tuple[int, int]:
    """Return the size (H, W) to which a large image is reduced; other sizes are returned as they are.

    Args:
        size: (H, W) of the image in pixels.
        max_pixels: the largest number of pixels; None: `MAX_PIXELS`.

    Example:
        >>> reduced_size((375, 500)), reduced_size((3000, 4000))
        ((375, 500), (886, 1182))
    """
    height, width = size
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if height * width <= max_pixels:
        return size
    scale = math.sqrt(max_pixels / (height * width))
    short = max(1, math.floor(min(size) * scale))
    long = min(math.floor(max(size) * scale), max_pixels // short)
    return (short, long) if height <= width else (long, short)


def tiles(size: tuple[int, int]) -> list[Tile]:
    """Divide an image of (H, W) pixels into tiles, row by row.

    Example:
        >>> [tile.window for tile in tiles((700, 2000))][1]
        (slice(0, 700, None), slice(544, 1472, None))
    """
    rows, columns = (_spans(side) for side in size)
    return [Tile((row[0], column[0]), (row[1], column[1])) for row in rows for column in columns]


def whole_image(size: tuple[int, int]) -> Tile:
    """Return the tile that covers an image of (H, W) pixels."""
    window = (slice(0, size[0]), slice(0, size[1]))
    return Tile(window, window)


def middle_window(size: tuple[int, int]) -> Window:
    """Return the window of a tile in the middle of an image of (H, W) pixels; the whole image unless it is large.

    Example:
        >>> middle_window((300, 400)), middle_window((700, 4000))
        ((slice(0, 300, None), slice(0, 400, None)), (slice(0, 700, None), slice(1856, 2784, None)))
    """
    every = tiles(size) if is_large(size) else [whole_image(size)]
    return every[len(every) // 2].window


def segment_tiles(
    image: np.ndarray, segment: Callable[[np.ndarray], np.ndarray], on_tile: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Segment a large image in overlapping tiles; an image that is not large is one tile.

    The memory does not grow with the image, apart from the image and its label map.

    Args:
        image: [H, W, 3] uint8.
        segment: returns the label map [h, w] uint8 of a tile [h, w, 3] uint8, which is a copy.
        on_tile: called after each tile.

    Returns:
        The label map [H, W] uint8.
    """
    size = (image.shape[0], image.shape[1])
    result = np.empty(size, np.uint8)
    for tile in tiles(size) if is_large(size) else [whole_image(size)]:
        result[tile.core] = segment(np.array(image[tile.window]))[tile.core_in_window]
        on_tile()
    return result


def _spans(side: int) -> list[tuple[slice, slice]]:
    """Divide a side into cores of almost equal length; return each window and its core."""
    count = -(-side // CORE_SIDE)
    bounds = [round(side * n / count / ALIGNMENT) * ALIGNMENT for n in range(count)] + [side]
    return [
        (slice(max(0, start - HALO), min(side, stop + HALO)), slice(start, stop))
        for start, stop in itertools.pairwise(bounds)
    ]


def random_window(size: tuple[int, int], rng: np.random.Generator) -> Window:
    """Return a random window of an image of (H, W) pixels, at most 2048 pixels high and wide."""
    sides = [min(side, WINDOW_SIDE) for side in size]
    top, left = (int(rng.integers(0, full - side + 1)) for full, side in zip(size, sides, strict=True))
    return slice(top, top + sides[0]), slice(left, left + sides[1])


def reduce_image(image: np.ndarray) -> np.ndarray:
    """Reduce an image [H, W, 3] uint8 to `reduced_size` if it is large; otherwise return it as it is."""
    size = reduced_size((image.shape[0], image.shape[1]))
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map.

    When it becomes larger, each pixel gets the label that has the largest share there, if the areas of all labels are
    interpolated bilinearly. Outlines then have no steps of the size of the old pixels. When it becomes smaller, each
    pixel gets the label at its center.

    Args:
        labels: [h, w] uint8.
        size: (H, W) of the result in pixels.

    Returns:
        [H, W] uint8; the argument itself if it has this size.
    """
    if labels.shape == size:
        return labels
    shape = size[::-1]
    if size[0] * size[1] < labels.size:
        return np.array(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST))
    result, largest_share = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for label in np.unique(labels):
        area = Image.fromarray(np.where(labels == label, 255, 0).astype(np.uint8))
        share = np.asarray(area.resize(shape, Image.Resampling.BILINEAR))
        np.copyto(result, label, where=share > largest_share)
        np.maximum(largest_share, share, out=largest_share)
    return result
