"""What the page shows of an image: the photograph, and a thumbnail of the photograph with its mask."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write
from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import is_url, read_bytes, read_image, read_reduced_image
from tagmask.errors import DataError, RunError
from tagmask.report.drawing import draw_regions

THUMBNAIL_SIDE = 256  # pixels; of the longer side
_THUMBNAIL_VERSION = 1  # increase it when thumbnails are drawn in another way
_QUALITY = {"thumbnail": 80, "photo": 95}
_CHANGES_PIXELS = {"exif", "icc_profile", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "gamma", "chromaticity"}
_SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of the thumbnail of an image of (H, W) pixels; it is never larger than the image."""
    scale = min(1.0, THUMBNAIL_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def draw_thumbnail(image: str, labels: np.ndarray) -> bytes:
    """Draw the thumbnail of an image with its mask.

    Args:
        image: path or URL of the image.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.

    Returns:
        A WebP file.

    Raises:
        DataError: the image cannot be read.
    """
    height, width = thumbnail_size((labels.shape[0], labels.shape[1]))
    photo = Image.fromarray(read_reduced_image(image, 4 * height * width))
    picture = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))
    regions = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return _encode(Image.fromarray(draw_regions(picture, np.asarray(regions))), "WEBP", "thumbnail")


def read_or_draw_thumbnail(folder: Path, key: str, image: str, mask: str, read_mask: Callable[[], np.ndarray]) -> bytes:
    """Read the thumbnail of an image from a folder; draw it first if it is missing or out of date.

    Args:
        folder: the folder of all thumbnails.
        key: of the image.
        image: path or URL of the image.
        mask: the path of the mask that is drawn, or its place in a shard.
        read_mask: reads it.

    Returns:
        A WebP file.

    Raises:
        DataError, RunError: the image or the mask cannot be read.
    """
    content = f"{_THUMBNAIL_VERSION}|{image}|{file_stamp(image)}|{file_stamp(mask)}"
    stamp = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    path = folder / key[:2] / f"{key}-{stamp}.webp"
    with suppress(OSError):
        return path.read_bytes()
    picture = draw_thumbnail(image, read_mask())
    with suppress(RunError, OSError):  # a run folder that cannot be written is drawn again each time
        with atomic_write(path) as temporary:
            temporary.write_bytes(picture)
        for old in path.parent.glob(f"{key}-*.webp"):
            if old != path:
                old.unlink(missing_ok=True)
    return picture


def encode_photo(path: str, size: tuple[int, int]) -> tuple[bytes, str]:
    """Return an image as a file that browsers show as tagmask reads it, and its media type.

    A JPEG, PNG or WebP file that needs no conversion is returned as it is; of other images a JPEG is made.

    Args:
        path: path or URL of the image.
        size: the (H, W) that it must have.

    Raises:
        DataError: the image cannot be read, or has another size.
    """
    content = read_bytes(path)
    with suppress(Exception), Image.open(io.BytesIO(content)) as image:  # damaged files get a sentence below
        media_type = _SENT_AS_THEY_ARE.get(image.format or "")
        is_plain = image.mode == "RGB" and not image.has_transparency_data and not image.info.keys() & _CHANGES_PIXELS
        if media_type and is_plain and not getattr(image, "is_animated", False) and image.size == size[::-1]:
            image.load()
            return content, media_type
    pixels = read_image(path)
    check_size(path, pixels, size)
    return _encode(Image.fromarray(pixels), "JPEG", "photo"), "image/jpeg"


def check_size(path: str, image: np.ndarray, size: tuple[int, int]) -> None:
    """Raise DataError if an image does not have the (H, W) of its mask."""
    height, width = image.shape[:2]
    if (height, width) != size:
        raise DataError(
            f"{path} has {width}×{height} pixels, but its mask {size[1]}×{size[0]}; bring the old image back, or run "
            "tagmask again with the new one."
        )


def photo_etag(path: str) -> str | None:
    """Return a text that changes when the file changes; None for an image at a URL, or that does not exist."""
    stamp = None if is_url(path) else file_stamp(path)
    return stamp and '"' + hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:24] + '"'


def _encode(image: Image.Image, format: str, quality: str) -> bytes:
    buffer = io.BytesIO()
    options = {"subsampling": 0} if format == "JPEG" else {}
    image.save(buffer, format=format, quality=_QUALITY[quality], **options)
    return buffer.getvalue()
