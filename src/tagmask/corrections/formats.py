"""The formats of `tagmask import`.

To add a format, write a module with a function `read` like that of `corrections/png.py`, and add its line to
`IMPORT_FORMATS`. The module has the name of the format, with "_" for "-".
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tagmask.errors import DataError
from tagmask.text import did_you_mean

if TYPE_CHECKING:  # help texts do not need NumPy
    from collections.abc import Callable, Iterator

    from tagmask.corrections.archive import Archive
    from tagmask.corrections.known_images import CorrectedMask, KnownImages

    Reader = Callable[[Archive, KnownImages], Iterator[CorrectedMask]]

IMPORT_FORMATS = {
    "cvat": "CVAT for images 1.1: masks and polygons",
    "label-studio": "Label Studio's JSON: brush masks of submitted annotations",
    "coco": "COCO instances JSON: RLE masks and polygons",
    "png": "indexed or grayscale PNGs of class ids, named after the images",
}


def load_reader(name: str) -> Reader:
    """Import the module of a format, and return its function `read`. Raises DataError if there is no such format."""
    if name not in IMPORT_FORMATS:
        raise DataError(f"format {name!r} is not known{did_you_mean(name, IMPORT_FORMATS)}")
    return import_module(f"tagmask.corrections.{name.replace('-', '_')}").read
