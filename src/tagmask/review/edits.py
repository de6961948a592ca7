"""What the editor needs to continue where a person left off: the painted pixels and the thresholds of an image.

They are stored in a file beside the reviewed masks, for one mask: if the mask changes in another way, they are ignored.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydantic import Field, TypeAdapter

from tagmask.artifacts import atomic_write, read_bytes
from tagmask.errors import RunError
from tagmask.label_map import MAX_BYTES, MAX_CLASSES

ClassId = Annotated[int, Field(strict=False, ge=1, le=MAX_CLASSES)]
Activation = Annotated[float, Field(strict=False, ge=0, le=1, allow_inf_nan=False)]
Thresholds = dict[ClassId, Activation]

_THRESHOLDS = TypeAdapter(Thresholds)


class Edits(NamedTuple):
    """What a person has done to a mask.

    Attributes:
        painted: [H, W] bool, True where a person has painted; a threshold does not change these pixels.
        thresholds: where the sliders stand, by class id.
    """

    painted: NDArray[np.bool_]
    thresholds: Thresholds


def write_edits(path: Path, labels: NDArray[np.uint8], edits: Edits) -> None:
    """Write what a person has done to a mask, as a PNG file.

    Args:
        path: the file.
        labels: [H, W] the mask.
        edits: what led to it.

    Raises:
        RunError: the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text("mask", _digest(labels))
    text.add_text("thresholds", _THRESHOLDS.dump_json(edits.thresholds).decode())
    content = io.BytesIO()
    Image.fromarray(edits.painted).save(content, "PNG", pnginfo=text)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def read_edits_if_any(path: Path, labels: NDArray[np.uint8]) -> Edits | None:
    """Read what a person has done to a mask; None if that is not known, or if the mask has changed since.

    Args:
        path: the file.
        labels: [H, W] the mask.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path, MAX_BYTES)), formats=["PNG"]) as picture:
            if picture.size != labels.shape[::-1] or picture.info.get("mask") != _digest(labels):
                return None
            thresholds = _THRESHOLDS.validate_json(str(picture.info.get("thresholds", "")))
            return Edits(np.asarray(picture.convert("1")), thresholds)
    except (RunError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # there is none, or it is damaged: the editor starts as for a mask from elsewhere


def _digest(labels: NDArray[np.uint8]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(labels).tobytes(), digest_size=12).hexdigest()
