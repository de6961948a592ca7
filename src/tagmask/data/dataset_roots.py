"""Recognizing folders that hold a whole data set, so that their subfolders are not taken for classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tagmask.errors import DataError
from tagmask.text import join_first_names

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev"})

_ROLE_NAMES = frozenset({
    "image", "images", "imgs", "img", "photos", "pictures", "jpegimages", "raw",
    "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentationclass",
    "gt", "ground_truth", "groundtruth", "saliency",
})  # fmt: skip


def refuse_dataset_root(root: Path, names: Sequence[str]) -> None:
    """Raise DataError if the folders of `root` are the parts of a data set and not its classes.

    Args:
        root: the folder that is about to be read as one folder per class.
        names: the paths of its images, relative to it.
    """
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    has_only_parts = bool(folders) and all(_is_split(name) or name.lower() in _ROLE_NAMES for name in folders)
    if voc := _find_voc(root):
        raise DataError(
            f"{root} is the root of a VOC download: give the folder that holds JPEGImages and ImageSets, and a split, "
            f"for example `tagmask check {voc} --split train`."
        )
    if coco := _find_coco(root, names, has_only_parts):
        images, annotations = coco
        raise DataError(
            f"{root} is the root of a COCO download: give one of its folders of images and the JSON file of its "
            f"objects, for example `tagmask check {images} --annotations {annotations}`."
        )
    if not has_only_parts:
        return
    listed = join_first_names(folders, 5)
    if not all(map(_is_split, folders)):
        raise DataError(
            f"the folders of {root} are parts of a data set and not classes ({listed}): give the folder of the images "
            f"and a table of their tags, for example `tagmask check {root / folders[0]} --tags tags.csv`."
        )
    advice = f"name a split, for example `tagmask check {root} --split {folders[0]}`"
    if all(name.count("/") < 2 for name in names):  # there are no folders of classes in the splits
        advice = (
            f"give one of them and a table of its tags, for example `tagmask check {root / folders[0]} --tags tags.csv`"
        )
    raise DataError(f"the folders of {root} are splits and not classes ({listed}): {advice}.")


def _is_split(name: str) -> bool:
    """Return whether a folder is named after a split, maybe with a year: "train2017"."""
    return name.lower().rstrip("0123456789_-") in SPLIT_NAMES


def _find_voc(root: Path) -> Path | None:
    """Return the folder of VOC below a VOCdevkit or its parent: the latest year."""
    folders = [path.parent for pattern in ("*/JPEGImages", "*/*/JPEGImages") for path in sorted(root.glob(pattern))]
    return folders[-1] if folders else None


def _find_coco(root: Path, names: Sequence[str], has_only_parts: bool) -> tuple[Path, Path] | None:
    """Return a folder of images and its file of instances, if `root` holds both."""
    files = [
        *sorted((root / "annotations").glob("*.json")),
        *sorted(root.glob("*/_annotations.coco.json")),  # Roboflow puts it beside the images
        *(sorted(root.glob("instances*.json")) if has_only_parts else ()),
    ]
    instances = [path for path in files if path.name.startswith(("instances", "_annotations"))] or files
    folders = sorted({name.rpartition("/")[0] for name in names if "/" in name})
    for path in instances:
        for folder in folders:
            if path.parent == root / folder or folder.rpartition("/")[2] in path.stem:
                return root / folder, path
    return (root / folders[0], instances[0]) if instances and folders else None
