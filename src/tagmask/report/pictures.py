"""Pictures that are embedded in the page as data URIs."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

_QUALITY = 72


class Thumbnail(NamedTuple):
    """A picture of the page.

    Attributes:
        uri: the picture as a data URI.
        width: in pixels.
        height: in pixels.
    """

    uri: str
    width: int
    height: int


def thumbnail(picture: np.ndarray) -> Thumbnail:
    """Encode a picture as WebP in a data URI, without changing its size.

    Args:
        picture: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: the shape or dtype is another one.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture is {list(picture.shape)} {picture.dtype}, not [H, W, 3] uint8")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/webp;base64,{data}", picture.shape[1], picture.shape[0])
