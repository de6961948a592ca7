"""Thumbnails that are embedded in the page."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

MAX_WIDTH, MAX_HEIGHT = 320, 480  # pixels; twice the size on the page, for high-resolution screens
_MAX_MASK_COLORS = 64  # pictures with at most as many colors are stored as PNG, which keeps edges sharp
_SMALL_WIDTH = 200  # pixels; narrower masks are magnified on the page


class Thumbnail(NamedTuple):
    """A small picture.

    Attributes:
        uri: the picture as a data URI.
        width: in pixels.
        height: in pixels.
        crisp: whether the browser should magnify the picture without smoothing.
    """

    uri: str
    width: int
    height: int
    crisp: bool


def thumbnail(picture: np.ndarray) -> Thumbnail:
    """Encode a picture as a data URI: an indexed PNG if it has few colors (masks), else a JPEG.

    Args:
        picture: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: the shape or dtype is another one.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture is {list(picture.shape)} {picture.dtype}, not [H, W, 3] uint8")
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_WIDTH / width, MAX_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, indices = np.unique(packed, return_inverse=True)
    has_few_colors = len(colors) <= _MAX_MASK_COLORS
    buffer = io.BytesIO()
    if has_few_colors:
        indexed = Image.fromarray(indices.reshape(height, width).astype(np.uint8))
        indexed.putpalette(np.stack([colors >> 16, colors >> 8, colors], 1).astype(np.uint8).tobytes())
        indexed.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    else:
        resized = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        resized.save(buffer, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    mime_type = "image/png" if has_few_colors else "image/jpeg"
    return Thumbnail(f"data:{mime_type};base64,{data}", *size, has_few_colors and width < _SMALL_WIDTH)
