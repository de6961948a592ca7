"""The archive that the evaluation server of PASCAL VOC reads: the development kit, section "Segmentation Task"."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tagmask.artifacts import atomic_write
from tagmask.data.class_names import normalize_class_name
from tagmask.data.voc_reader import VOC_CLASSES
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX, encode_label_map
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings
from tagmask.text import join_first_names

ARCHIVE = "results.tar.gz"


def check(classes: Sequence[str], ids: Iterable[str]) -> None:
    """Raise RunError if the classes are not the 20 of VOC, in any order, or an id has a folder in it."""
    names = {normalize_class_name(name) for name in classes}
    if names != set(VOC_CLASSES):
        missing, others = [name for name in VOC_CLASSES if name not in names], sorted(names.difference(VOC_CLASSES))
        differences = [f"missing: {join_first_names(missing, 3)}"] if missing else []
        differences += [f"unknown: {join_first_names(others, 3)}"] if others else []
        raise RunError(
            f"the format 'voc-server' needs VOC's 20 classes ({'; '.join(differences)}): train a network with these "
            "class names, or choose another format."
        )
    if name := next((name for name in ids if "/" in name), None):
        raise RunError(
            f"the format 'voc-server' has no place for folders, as in {name!r}: name the folder of VOC and its list "
            "(--split test), or the folder that holds the images themselves."
        )


def write(folder: Path, items: Iterable[MaskItem], classes: Sequence[str], settings: ExportSettings) -> None:
    """Write <folder>/results.tar.gz with results/VOC2012/Segmentation/<competition>_<subset>_cls/<id>.png.

    The PNGs are indexed, with VOC's palette, and have the class ids of VOC, in whatever order the classes are here. The
    same masks in the same order give the same bytes: the archive holds no times and no owners.

    Args:
        folder: the folder.
        items: the images and their label maps.
        classes: VOC's 20 classes in any order (see `check`); class id k is classes[k - 1].
        settings: the competition and the name of the subset are used.

    Raises:
        ValueError: a label map is not [H, W] uint8, or has a value above the number of classes.
        RunError: a label map has ignored pixels, or the file cannot be written.
    """
    voc_ids = np.zeros(256, np.uint8)
    voc_ids[1 : len(classes) + 1] = [VOC_CLASSES.index(normalize_class_name(name)) + 1 for name in classes]
    masks = f"results/VOC2012/Segmentation/{settings.competition}_{settings.subset or 'test'}_cls"
    with (
        atomic_write(folder / ARCHIVE) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed,
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.USTAR_FORMAT) as archive,
    ):
        for item in items:
            item.class_ids(len(classes))
            if (item.labels == IGNORE_INDEX).any():
                raise RunError(
                    f"{item.file_name} has ignored pixels, which the evaluation server refuses: send the masks of a "
                    "segmentation network."
                )
            content = encode_label_map(voc_ids[item.labels])
            member = tarfile.TarInfo(f"{masks}/{item.id}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
