"""Tags from an export of CVAT: the XML file of "CVAT for images 1.1"."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.regular_files import check_regular_file
from tagmask.data.samples import Problem
from tagmask.data.tag_rows import Row, TagTable
from tagmask.errors import DataError
from tagmask.text import shorten


def read_cvat(path: Path) -> TagTable:
    """Read the tags of the images in an XML file of CVAT.

    The tags of an image are the labels of its tags and of its shapes (boxes, polygons, masks, points, ...). The labels
    of the task or project are the classes, also those that no image has. The subset of an image is its split.

    Args:
        path: `annotations.xml` of the format "CVAT for images 1.1".

    Raises:
        DataError: the file cannot be read, is not such an export, or lists no image.
    """
    rows: list[Row] = []
    labels: dict[str, None] = {}
    try:
        check_regular_file(path)
        events = ElementTree.iterparse(path, events=("start", "end"))  # expat refuses exponential entities
        root = next(events)[1]
        if root.tag != "annotations":
            raise DataError(
                f"{path} has the root element {shorten(root.tag)!r}, so it is not an export of CVAT; export the "
                "task as 'CVAT for images 1.1'."
            )
        for event, element in events:
            if event == "start":
                continue
            if element.tag == "track":
                raise DataError(f"{path} holds tracks of a video; export the task as 'CVAT for images 1.1'.")
            if element.tag == "label" and element.find("parent") is None:  # a part of a skeleton has a parent
                labels[normalize_class_name(element.findtext("name", ""))] = None
            elif element.tag == "image":
                rows.append(_read_image(path, len(rows) + 1, element))
                element.clear()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML ({shorten(str(error))}); export it again.") from error
    if not rows:
        raise DataError(f"{path} lists no image; export the task as 'CVAT for images 1.1'.")
    names = {*labels, *(tag for row in rows for tag in row.tags)} - {""}
    return TagTable(
        path, tuple(rows), names=tuple(sorted(name for name in names if name.casefold() != BACKGROUND)),
        has_split=any(row.split for row in rows), unit="image",
    )  # fmt: skip


def _read_image(path: Path, number: int, element: ElementTree.Element) -> Row:
    name = element.get("name", "").strip()
    if not name:
        problem = Problem(f"{path}, image {number}", "names no image", "export the task again")
        return Row(number, "", (), problem=problem)
    labels = (normalize_class_name(shape.get("label", "")) for shape in element)
    tags = dict.fromkeys(label for label in labels if label and label.casefold() != BACKGROUND)
    return Row(number, name, tuple(tags), element.get("subset") or None)
