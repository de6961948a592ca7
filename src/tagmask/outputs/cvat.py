"""Masks as CVAT for images 1.1 (https://docs.cvat.ai/docs/manual/advanced/xml_format/)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from tagmask.artifacts import atomic_write, write_json
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.image_files import write_image
from tagmask.outputs.mask_item import MaskItem, hex_color, unused_name
from tagmask.outputs.settings import ExportSettings

IGNORED_LABEL = "ignored"
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write <folder>/annotations.xml with one mask per class and image, and <folder>/labels.json for a new CVAT task.

    Ignored pixels are masks of the label "ignored", so that nothing is lost.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: names of the classes; class id k is classes[k - 1].
        settings: how images are written (to images).

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        DataError: an image cannot be read.
        RunError: a file cannot be written, or a name has a character that XML cannot hold.
    """
    names = dict(enumerate(classes, 1)) | {IGNORE_INDEX: unused_name(IGNORED_LABEL, classes)}
    labels = [{"name": name, "color": hex_color(k), "type": "mask", "attributes": []} for k, name in names.items()]
    label_elements = "\n".join(
        f"<label><name>{escape(_in_xml(name))}</name><color>{hex_color(k)}</color><type>mask</type>"
        "<attributes></attributes></label>"
        for k, name in names.items()
    )
    with atomic_write(folder / "annotations.xml") as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(f"<meta><task><labels>\n{label_elements}\n</labels></task></meta>\n")
        for number, item in enumerate(items):
            class_ids = item.class_ids(len(classes))
            height, width = item.labels.shape
            file.write(
                f'<image id="{number}" name={quoteattr(_in_xml(item.file_name))} width="{width}" height="{height}">\n'
            )
            for k in [*class_ids, *[IGNORE_INDEX] * bool((item.labels == IGNORE_INDEX).any())]:
                file.write(_mask_element(names[k], item.labels == k))
            file.write("</image>\n")
            write_image(item, folder / "images", settings, item.file_name)
        file.write("</annotations>\n")
    write_json(folder / "labels.json", labels)


def encode_runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of a mask [H, W] bool, row by row; the first run is of zeros, maybe of length 0.

    Example:
        >>> encode_runs(np.array([[True, True, False], [False, True, True]]))
        [0, 2, 2, 2]
    """
    flat = np.concatenate([[False], mask.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(starts, prepend=0, append=mask.size).tolist()


def _mask_element(label: str, mask: np.ndarray) -> str:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    runs = ", ".join(map(str, encode_runs(mask[top : top + height, left : left + width])))
    return (
        f'<mask label={quoteattr(label)} source="auto" occluded="0" rle="{runs}" '
        f'left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"></mask>\n'
    )


def _in_xml(name: str) -> str:
    if _NOT_IN_XML.search(name):
        raise RunError(f"the name {name!r} has a character that XML cannot hold: choose another format, or rename it.")
    return name
