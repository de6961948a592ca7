"""The formats of `tagmask export`.

To add a format, write a module with a function `write` like that of `outputs/png.py`, and add its line to
`OUTPUT_FORMATS`. The module has the name of the format, with "_" for "-". If the format cannot hold all classes or all
ids of images, the module also has a function `check(classes, ids)`, which raises RunError.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tagmask.errors import RunError
from tagmask.text import did_you_mean

if TYPE_CHECKING:  # help texts do not need NumPy
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tagmask.outputs.mask_item import MaskItem
    from tagmask.outputs.settings import ExportSettings

    Writer = Callable[[Path, Iterable[MaskItem], Sequence[str], ExportSettings], None]


class OutputFormat(NamedTuple):
    """A format in which masks can be written.

    Attributes:
        description: what it is, for help texts and the docs.
        has_polygons: whether masks become polygons. By default, these are without crumbs, and simplified.
        images: what happens to the images by default, "copy" or "none"; None: the format has no place for images.
    """

    description: str
    has_polygons: bool = False
    images: Literal["copy", "none"] | None = None


OUTPUT_FORMATS = {
    "png": OutputFormat("one indexed PNG per image, with a legend"),
    "coco": OutputFormat("COCO instances JSON, with one RLE mask per class and image", images="none"),
    "coco-polygons": OutputFormat("COCO instances JSON, with simplified polygons, for editing", True, images="none"),
    "coco-panoptic": OutputFormat("COCO panoptic JSON, with PNGs of segment ids", images="none"),
    "cvat": OutputFormat("CVAT for images 1.1, with masks", images="none"),
    "voc": OutputFormat("PASCAL VOC, which CVAT calls segmentation mask 1.1", images="none"),
    "voc-server": OutputFormat("the archive that VOC's evaluation server reads"),
    "label-studio": OutputFormat("Label Studio tasks, with brush masks"),
    "yolo-seg": OutputFormat("YOLO instance segmentation, with simplified polygons", True, images="copy"),
    "ultralytics-semantic": OutputFormat("Ultralytics semantic segmentation", images="copy"),
    "huggingface": OutputFormat("Hugging Face imagefolder of images and masks", images="copy"),
    "fiftyone": OutputFormat("FiftyOne ImageSegmentationDirectory", images="copy"),
    "mmseg": OutputFormat("MMSegmentation folders of images and masks", images="copy"),
    "overlays": OutputFormat("the masks drawn over the images, for viewing"),
}


def find_format(name: str) -> OutputFormat:
    """Return a format by its name. Raises RunError if there is none."""
    if name not in OUTPUT_FORMATS:
        raise RunError(f"format {name!r} is not known{did_you_mean(name, OUTPUT_FORMATS)}")
    return OUTPUT_FORMATS[name]


def check_format(name: str, classes: Sequence[str], ids: Iterable[str]) -> None:
    """Check whether a format can hold masks, before they are made.

    Args:
        name: the name of the format.
        classes: names of the classes.
        ids: ids of the images.

    Raises:
        RunError: there is no such format, or it cannot hold these classes or ids.
    """
    find_format(name)
    check = getattr(_load_module(name), "check", None)
    if check is not None:
        check(classes, ids)


def load_writer(name: str) -> Writer:
    """Import the module of a format, and return its function `write(folder, items, classes, settings)`."""
    return _load_module(name).write


def _load_module(name: str) -> Any:
    return import_module(f"tagmask.outputs.{name.replace('-', '_')}")
