"""The images of a run that can be reviewed: those that a stage has made a mask of."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tagmask.data.images import image_size
from tagmask.data.samples import Sample
from tagmask.errors import DataError
from tagmask.stage_folder import StageFolder

MAX_EDITOR_PIXELS = 32 * 2**20
"""Larger images are not sent to the page: a browser would need ten bytes per pixel and more."""

_MAX_SIDE = 16_384  # pixels; of a canvas in most browsers
_READERS, _GROUP = 16, 64  # threads, for file systems that answer slowly; images that a thread takes at a time
_PNG_HEADER = struct.Struct(">8s4x4sII")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class ReviewImage:
    """One image of a run.

    Attributes:
        key: stands for the image in URLs, so that its id never becomes a path there.
        sample: the image in the data set.
        size: (H, W) in pixels, that of the mask, or that of the image if the mask is damaged; (0, 0) if both are.
    """

    key: str
    sample: Sample
    size: tuple[int, int]

    @property
    def id(self) -> str:
        """The id of the image."""
        return self.sample.id

    @property
    def num_pixels(self) -> int:
        """H · W."""
        return self.size[0] * self.size[1]

    @property
    def is_too_large(self) -> bool:
        """Whether the page cannot edit the mask."""
        return self.num_pixels > MAX_EDITOR_PIXELS or max(self.size) > _MAX_SIDE


def image_key(image_id: str) -> str:
    """Return the key of an image: the first 16 hexadecimal digits of the SHA-256 of its id."""
    return hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def find_images(samples: Iterable[Sample], stage: StageFolder) -> dict[str, ReviewImage]:
    """Return the images that a stage has made a mask of, by key, in the order of the samples. Reads the header of each
    mask."""
    samples = list(samples)
    with ThreadPoolExecutor(_READERS) as pool:
        groups = [samples[start : start + _GROUP] for start in range(0, len(samples), _GROUP)]
        found = pool.map(lambda group: [_find_image(sample, stage) for sample in group], groups)
        return {image.key: image for group in found for image in group if image is not None}


def _find_image(sample: Sample, stage: StageFolder) -> ReviewImage | None:
    """Return an image; None if the stage has no mask of it."""
    size = _read_png_size(stage.mask_path(sample.id))
    if size is None and stage.has_file("masks", sample.id):  # in a shard
        size = (0, 0)
    if size == (0, 0):
        with suppress(DataError):
            size = image_size(sample.image)
    return size and ReviewImage(image_key(sample.id), sample, size)


def _read_png_size(path: Path) -> tuple[int, int] | None:
    """Return the (H, W) in the header of a PNG file; (0, 0) if it is damaged, None if it does not exist."""
    try:
        with path.open("rb", buffering=0) as file:
            signature, chunk, width, height = _PNG_HEADER.unpack(file.read(_PNG_HEADER.size))
    except FileNotFoundError:
        return None
    except (OSError, struct.error):
        return 0, 0
    return (height, width) if (signature, chunk) == (_PNG_SIGNATURE, b"IHDR") else (0, 0)
