"""Pictures as arrays, whatever the file holds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from tagmask.errors import DataError

MAX_PIXELS = 100_000_000  # beyond this one image alone would need tens of GB in the networks
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

_ASPECT = 0.02  # by how much a map's aspect may differ from its image's
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The size is checked here with an error of our own, and damaged EXIF data is no reason to refuse a picture. Set
# once: `catch_warnings` around each read is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def is_url(path: str | Path) -> bool:
    """Whether this is opened by fsspec (s3://, gs://, http://, ...) rather than as a local file."""
    return "://" in str(path)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB, [H, W, 3] uint8.

    EXIF rotation is applied; CMYK, grey, palette and 16-bit pictures are converted (16 bits by their own
    range); of an animation the first frame is taken; transparency is laid on white.

    Args:
        path: a local path or a URL that fsspec opens (s3://, gs://, http://, ...).

    Raises:
        DataError: the file is missing, empty, truncated, too large or no image.
    """
    with _opened(path) as image:
        return np.array(_to_rgb(_upright(image)))


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) after EXIF rotation, from the header where the format has it there. Raises DataError as `read_image`."""
    with _opened(path, load=False) as image:
        if image.format == "TIFF":  # which Pillow turns upright itself, as it loads it
            image.load()
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_mask_image(path: str | Path) -> np.ndarray:
    """Read a picture of class ids, [H, W] uint8. Raises DataError unless it is indexed or 8-bit grey."""
    with _opened(path) as image:
        if image.mode not in ("P", "L"):
            raise DataError(f"{path} is a {image.mode} picture, not a mask; save it as indexed or 8-bit grey PNG.")
        return np.array(image)


def read_grey(path: str | Path) -> np.ndarray:
    """Read a grey picture (saliency) as [H, W] float32, 0..1. Raises DataError as `read_image`."""
    with _opened(path) as image:
        return np.asarray(image.convert("L"), np.float32) / 255


def check_shape(path: str | Path, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Raises DataError unless a map of `size` (H, W) has the aspect of its image, to whose size it will be resized."""
    (h, w), (height, width) = size, image
    if abs(h * width - w * height) > max(_ASPECT * h * width, height, width):  # or a pixel, from rounding
        raise DataError(f"{path} has {w}×{h} pixels, its image {width}×{height}; give it the same shape.")


@contextmanager
def _opened(path: str | Path, load: bool = True) -> Iterator[Image.Image]:
    """The picture in a file; whatever goes wrong until it is closed is a DataError."""
    raw = read_bytes(path)
    try:
        image = Image.open(io.BytesIO(raw))
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
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise DataError(f"{path} is damaged ({error}); replace or remove it.") from error


def read_bytes(path: str | Path) -> bytes:
    """The content of a file or URL. Raises DataError where it is missing, unreadable or empty."""
    try:
        if is_url(path):
            with fsspec.open(str(path), "rb") as file:
                raw = file.read()
        else:  # not through fsspec: half a millisecond a file, and names with "::" or "~" mean something to it
            raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; correct the name or remove its line.") from error
    except Exception as error:  # a remote store raises errors of its own kind
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); make it readable or remove it.") from error
    if not raw:
        raise DataError(f"{path} is empty (0 bytes); replace or remove it.")
    return raw


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data; the pixels may be whole
        image.load()
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits a pixel: stretched to their own range
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low or 1.0) * 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
