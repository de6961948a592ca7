"""Reading image files of any format as arrays."""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tagmask.data.regular_files import read_regular_file
from tagmask.data.shard_row import ShardRow
from tagmask.errors import DataError
from tagmask.large_images import Window, reduced_size
from tagmask.text import shorten

MAX_PIXELS = 100_000_000  # a larger image alone would need tens of gigabytes in the networks
HEIC_SUFFIXES = (".heic", ".heif")  # read with an optional package
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", *HEIC_SUFFIXES}
)

_STRIP_PIXELS = 1 << 22  # pixels that are copied at a time
_ORIENTATION_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # in the info of Pillow
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_ASPECT_TOLERANCE = 0.02  # relative difference allowed between the aspect ratios of a map and its image


def is_url(path: str | Path) -> bool:
    """Return whether fsspec opens this (s3://, gs://, http://, ...), because it is not a local path."""
    return "://" in str(path)


def is_file(path: str | Path) -> bool:
    """Return whether this is the path of a local file: neither a URL nor an image in a shard."""
    return not is_url(path) and ShardRow.parse(path) is None


def image_suffix(path: str) -> str:
    """Return the suffix of an image file, of one at a URL or of one in a shard; empty if it is not that of an image.

    Example:
        >>> image_suffix("a/b.JPG"), image_suffix("s3://a/b.png?c=d"), image_suffix("data-00000-of-00001.parquet#3.jpg")
        ('.JPG', '.png', '.jpg')
    """
    if is_url(path) and not ShardRow.parse(path):
        path = path.partition("?")[0]
    suffix = Path(path).suffix
    return suffix if suffix.lower() in SUFFIXES else ""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as RGB.

    The EXIF rotation is applied. CMYK, grey, palette and 16-bit images are converted; 16-bit values are stretched to
    the full range. Transparent pixels are blended with white. An animation gives its first frame.

    Example:
        >>> import tagmask
        >>> image = tagmask.read_image("photos/beach/001.jpg")
        >>> image.ndim, image.shape[2], image.dtype
        (3, 3, dtype('uint8'))

    Args:
        path: a local path, or a URL that fsspec opens (s3://, gs://, http://, ...).

    Returns:
        [H, W, 3] uint8.

    Raises:
        DataError: the file is missing, empty, truncated, too large or not an image.
    """
    return decode_image(read_bytes(path), path)


def decode_image(content: bytes, path: str | Path) -> np.ndarray:
    """Decode the content of an image file, which messages call `path`; otherwise as `read_image`."""
    with _open_image(path, content) as image:
        _apply_exif_rotation_inplace(image)
        return _as_array(_to_rgb(image))


def read_reduced_image(path: str | Path, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file as RGB, and reduce it to `reduced_size` if it is large.

    A JPEG is reduced while it is decoded, which saves time and memory.

    Args:
        path: a local path, or a URL that fsspec opens.
        max_pixels: the largest number of pixels of an image that is not reduced; None: that of `tagmask.large_images`.

    Returns:
        [h, w, 3] uint8; otherwise as `read_image`.
    """
    with _open_image(path, load=False) as image:
        if image.format == "TIFF":  # Pillow itself rotates a TIFF when it loads it
            image.load()
        size = reduced_size(image.size, max_pixels)
        is_reduced = size != image.size
        if is_reduced:
            size = size[::-1] if _exif_orientation(image) in _TURNED else size
            image.draft(None, reduced_size(image.size, max_pixels))  # decodes a JPEG at 1/2, 1/4 or 1/8 of its size
        image.load()
        _apply_exif_rotation_inplace(image)
        rgb = _to_rgb(image)
        return _as_array(rgb.resize(size, Image.Resampling.BILINEAR) if is_reduced else rgb)


def read_image_window(path: str | Path, window: Window) -> np.ndarray:
    """Read a part of an image file as RGB, [h, w, 3] uint8; otherwise as `read_image`."""
    rows, columns = window
    with _open_image(path) as image:
        _apply_exif_rotation_inplace(image)
        right, bottom = min(columns.stop, image.width), min(rows.stop, image.height)
        return np.array(_to_rgb(image).crop((columns.start, rows.start, right, bottom)))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the size (H, W) of an image after its EXIF rotation.

    Only the header is decoded where the format allows it.

    Raises:
        DataError: as in `read_image`.
    """
    with _open_image(path, load=False) as image:
        if image.format == "TIFF" or image.info.keys() & _ORIENTATION_KEYS:
            image.load()  # as read_image does: it rotates a TIFF, and may find that the EXIF data is damaged
        width, height = image.size
        return (width, height) if _exif_orientation(image) in _TURNED else (height, width)


def read_mask_image(path: str | Path) -> np.ndarray:
    """Read an image of class ids as [H, W] uint8.

    Raises:
        DataError: the file cannot be read, or the image is neither indexed nor 8-bit grey.
    """
    with _open_image(path) as image:
        if image.mode not in ("P", "L"):
            raise DataError(
                f"{path} has the color mode {image.mode}, so it is not a mask; save it as an indexed or 8-bit grey PNG."
            )
        return np.array(image)


def read_number_image(path: str | Path) -> np.ndarray:
    """Read an image of numbers, of 1, 8 or 16 bits per pixel, as [H, W] int32.

    Raises:
        DataError: the file cannot be read, or the image has colors.
    """
    with _open_image(path) as image:
        if image.mode not in ("1", "P", "L", "I", "I;16", "I;16B", "I;16L"):
            raise DataError(f"{path} has the color mode {image.mode}; save it as a grey PNG of 8 or 16 bits.")
        return np.array(image).astype(np.int32)


def read_grey(path: str | Path) -> np.ndarray:
    """Read an image as grey values, [H, W] float32 in 0..1. Raises DataError as `read_image`."""
    with _open_image(path) as image:
        return np.asarray(image.convert("L"), np.float32) / 255


def check_aspect_ratio(path: str | Path, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Check that a map can be resized to its image without distortion.

    The aspect ratios may differ by 2 %, or by as much as rounding to one pixel of the map causes.

    Args:
        path: the file of the map, for the error message.
        size: (H, W) of the map in pixels.
        image_size: (H, W) of the image in pixels.

    Raises:
        DataError: the aspect ratios differ.
    """
    (h, w), (height, width) = size, image_size
    if abs(h * width - w * height) > max(_ASPECT_TOLERANCE * h * width, height, width):
        raise DataError(f"{path} has {w}×{h} pixels and its image {width}×{height}; give both the same aspect ratio.")


@contextmanager
def _open_image(path: str | Path, content: bytes | None = None, *, load: bool = True) -> Iterator[Image.Image]:
    """Open an image file, or its content; every exception in the `with` block becomes a DataError."""
    content = read_bytes(path) if content is None else content
    _register_heic(path)
    if content.startswith((b"II", b"MM")):
        _silence_libtiff()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of sizes that are allowed here
            image = Image.open(io.BytesIO(content))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{path} has {width}×{height} pixels, more than {MAX_PIXELS // 10**6} million; "
                "make it smaller or cut it into tiles."
            )
        if load:
            image.load()
        yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller or cut it into tiles."
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read; replace or remove it.") from error
    except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
        raise DataError(f"{path} is damaged ({shorten(str(error))}); replace or remove it.") from error


def _register_heic(path: str | Path) -> None:
    """Make Pillow read HEIC files, if `path` is one. Raises DataError if the optional package is missing."""
    if not str(path).lower().endswith(HEIC_SUFFIXES):
        return
    if find_spec("pillow_heif") is None:
        raise DataError(
            f'{path} is a HEIC image; install pillow-heif with pip install "tagmask[heic]", or convert it to JPEG.'
        )
    import pillow_heif

    pillow_heif.register_heif_opener()


@cache
def _silence_libtiff() -> None:
    """Stop libtiff and Pillow from printing lines about damaged TIFFs; damage that matters is an exception, too."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):  # where libtiff is not a shared library
        library = ctypes.CDLL(Image.core.__file__)  # its symbols include those of the libraries that it needs
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


def read_bytes(path: str | Path) -> bytes:
    """Read the content of a file or URL, or of an image or mask in a shard (`ShardRow`).

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    try:
        if row := ShardRow.parse(path):
            from tagmask.data.shard_file import read_shard_row

            content = read_shard_row(row)
        elif is_url(path):
            import fsspec

            with fsspec.open(str(path), "rb") as file:
                content = file.read()
        else:  # fsspec would take 0.5 ms more for each file, and interpret names with "::" or "~"
            content = read_regular_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; correct the name or remove its line.") from error
    except DataError:
        raise
    except Exception as error:  # remote file systems raise exceptions of their own
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({shorten(str(reason))}); make it readable or remove it.") from error
    if not content:
        raise DataError(f"{path} is empty (0 bytes); replace or remove it.")
    return content


def _as_array(image: Image.Image) -> np.ndarray:
    """Copy an RGB image to an array, in strips: Pillow would make two more copies of the whole image."""
    width, height = image.size
    array = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        array[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return array


def _exif_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8, if there is one."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF data is damaged; loading shows whether the pixels are damaged, too
        image.load()
        return None


def _apply_exif_rotation_inplace(image: Image.Image) -> None:
    with suppress(Exception):  # damaged EXIF data does not matter: the pixels are loaded already
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits per pixel: stretch to the full range
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low or 1.0) * 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
