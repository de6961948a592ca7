"""Pictures inside the page: small, and as data URIs."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

MAX_WIDTH, MAX_HEIGHT = 320, 480  # pixels; twice what the page shows, for sharp screens
_MASK_COLORS = 64  # a picture of no more colours is drawn, not taken: PNG keeps its edges
_SMALL = 200  # pixels of width below which a mask is shown magnified


class Thumbnail(NamedTuple):
    """`crisp`: drawn pixels, to be magnified without smoothing."""

    uri: str
    width: int
    height: int
    crisp: bool


def thumbnail(picture: np.ndarray) -> Thumbnail:
    """A picture [H, W, 3] uint8 as a data URI: indexed PNG where it has few colours (masks), JPEG otherwise.

    Raises ValueError for another shape or dtype.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture is {list(picture.shape)} {picture.dtype}, not [H, W, 3] uint8")
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_WIDTH / width, MAX_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, ids = np.unique(packed, return_inverse=True)
    drawn = len(colors) <= _MASK_COLORS
    buffer = io.BytesIO()
    if drawn:
        indexed = Image.fromarray(ids.reshape(height, width).astype(np.uint8))
        indexed.putpalette(np.stack([colors >> 16, colors >> 8, colors], 1).astype(np.uint8).tobytes())
        indexed.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    else:
        small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        small.save(buffer, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/{'png' if drawn else 'jpeg'};base64,{data}", *size, drawn and width < _SMALL)
