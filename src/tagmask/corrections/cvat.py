"""Corrected masks in CVAT for images 1.1."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

import numpy as np

from tagmask.corrections.archive import Archive
from tagmask.corrections.known_images import CorrectedMask, KnownImages, Region, location_in_errors
from tagmask.data.coco_mask import CocoMask, parse_segmentation
from tagmask.errors import DataError

_SHAPES_WITHOUT_AREA = frozenset({"box", "polyline", "points", "cuboid", "ellipse", "skeleton"})


def read(files: Archive, images: KnownImages) -> Iterator[CorrectedMask]:
    """Yield the corrected masks in the XML files of an archive.

    Masks and polygons are painted in the order of their z_order. An image without them is background.

    Raises:
        DataError: a file is not CVAT's XML for images, or does not fit the images and classes of the run.
    """
    names = files.named(".xml")
    if not names:
        raise DataError(f"{files.path} has no XML file; export it as CVAT for images 1.1.")
    for name in names:
        try:
            with location_in_errors(files.location(name)):
                for element in _image_elements(files.read(name)):
                    with location_in_errors(element.attrib["name"]):
                        mask = _read_image(element, images)
                    yield mask
        except (ElementTree.ParseError, KeyError, ValueError, OverflowError, LookupError) as error:
            message = f"{files.location(name)} is not CVAT's XML for images ({error!r}); export it again."
            raise DataError(message) from error


def _image_elements(content: bytes) -> Iterator[ElementTree.Element]:
    """Yield the elements `image` one by one."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError("it declares entities, which CVAT never does; export it again")
    for _, element in ElementTree.iterparse(io.BytesIO(content), events=("end",)):
        if element.tag == "image":
            yield element
            element.clear()


def _read_image(element: ElementTree.Element, images: KnownImages) -> CorrectedMask:
    name = element.attrib["name"]
    image_id = images.find(name)
    if image_id is None:
        return CorrectedMask(name, None, None)
    size = images.size(image_id)
    images.check_size(image_id, (int(element.attrib["height"]), int(element.attrib["width"])))
    shapes = sorted(element, key=lambda shape: int(shape.get("z_order", 0)))
    for shape in shapes:
        if shape.tag in _SHAPES_WITHOUT_AREA:
            raise DataError(f"a {shape.tag} is no mask; draw masks or polygons")
    regions = [
        Region(shape.attrib["label"], (_decode_mask if shape.tag == "mask" else _draw_polygon)(shape.attrib, size))
        for shape in shapes
        if shape.tag in ("mask", "polygon")
    ]
    has_polygons = any(shape.tag == "polygon" for shape in shapes)
    return CorrectedMask(name, image_id, images.paint(image_id, regions), has_polygons=has_polygons)


def _decode_mask(attributes: Mapping[str, str], size: tuple[int, int]) -> np.ndarray:
    """Return the mask [H, W] bool of the run lengths in a box."""
    left, top, width, height = (int(attributes[name]) for name in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
        raise DataError("a mask leaves its image; export it again")
    runs = np.array(attributes["rle"].split(","), np.int64)
    if (runs < 0).any() or (runs > width * height).any() or runs.sum() != width * height:
        raise DataError("the run lengths of a mask do not fill its box; export it again")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
        height, width
    )
    return mask


def _draw_polygon(attributes: Mapping[str, str], size: tuple[int, int]) -> np.ndarray:
    """Return the mask [H, W] bool of a polygon."""
    corners = [float(number) for pair in attributes["points"].split(";") for number in pair.split(",")]
    shape = parse_segmentation({"segmentation": [corners]}, 1, size)
    return np.zeros(size, bool) if shape is None else CocoMask(size, (shape,)).read() == 1
