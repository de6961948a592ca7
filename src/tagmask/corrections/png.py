"""Corrected masks in PNG files of class ids, named after the images."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tagmask.corrections.archive import Archive
from tagmask.corrections.known_images import CorrectedMask, KnownImages, location_in_errors
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX


def read(files: Archive, images: KnownImages) -> Iterator[CorrectedMask]:
    """Yield the corrected masks in the PNG files of an archive.

    Raises:
        DataError: a file is not a label map of the size of its image, or has a value that is no class.
    """
    for name in files.named(".png"):
        image_id = images.find(name[: -len(".png")])
        if image_id is None:
            yield CorrectedMask(name, None, None)
            continue
        try:
            with location_in_errors(files.location(name)), Image.open(io.BytesIO(files.read(name))) as image:
                images.check_size(image_id, image.size[::-1])  # before the pixels are decoded
                if image.mode not in ("P", "L"):
                    raise DataError(f"it has the color mode {image.mode}; save it as an indexed or 8-bit gray PNG")
                labels = np.array(image)
        except DataError:
            raise
        except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
            message = f"{files.location(name)}: it cannot be read as an image ({error}); export it again."
            raise DataError(message) from error
        unknown = np.unique(labels[(labels > len(images.classes)) & (labels != IGNORE_INDEX)])
        if len(unknown):
            raise DataError(
                f"{files.location(name)} has the value {unknown[0]}, but the run has {len(images.classes)} classes; "
                "use the ids of legend.txt."
            )
        yield CorrectedMask(name, image_id, labels)
