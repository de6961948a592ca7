"""Where the held-out images of a run come from: a split, another table, or a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

from tagmask.data.class_names import find_class_list
from tagmask.data.image_files import ImageFiles
from tagmask.data.images import is_url
from tagmask.data.shard_reader import holds_shards
from tagmask.data.source import DataSource
from tagmask.errors import DataError

_FORMATS_WITHOUT_SPLITS = ("coco", "images")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".xlsx", ".xlsm", ".xml")


def held_out_source(
    training: DataSource,
    val: str | None,
    *,
    tags: str | None = None,
    masks: str | None = None,
    annotations: str | None = None,
) -> DataSource | None:
    """Return where the held-out images come from, or None if no argument names them.

    Images in a folder of their own need no tags. They never get those of the training table, which may name other
    images alike. The ids in their masks are those of the training classes, unless the folder has its own class list.

    Args:
        training: where the training images come from.
        val: a folder, the URL of shards, the name of a split of the training data, or a table of other images in the
            training folder.
        tags: the table of the held-out images.
        masks: the folder of their ground-truth masks.
        annotations: their COCO file.

    Raises:
        DataError: `val` does not exist, or there are masks without images.
    """
    if val is not None and is_url(val):
        return DataSource(root=val, masks=masks, classes=training.classes, limit=training.limit)
    if val is not None and Path(val).is_dir():
        return _folder_source(training, Path(val), tags, masks, annotations)
    if val is not None and tags is None and Path(val).is_file() and Path(val).suffix.lower() in _TABLE_SUFFIXES:
        val, tags = None, val
    if val is None and tags is None and annotations is None:
        if masks is not None:
            raise DataError(f"the masks {masks} have no held-out images: add --val FOLDER or --val-tags FILE.")
        return None
    if val is not None:
        _check_split(training, val)
    own = {"tags": tags, "masks": masks, "annotations": annotations}
    split = training.split if val is None and tags is None else val
    return training.model_copy(update={"split": split, **{key: value for key, value in own.items() if value}})


def _check_split(training: DataSource, val: str) -> None:
    """Raise DataError if `val` can only be the path of a folder that does not exist."""
    if Path(val).exists() or (Path(training.root) / val).exists():
        return
    if "/" in val or os.sep in val or training.detect_format() in _FORMATS_WITHOUT_SPLITS:
        raise DataError(f"the folder {val} of held-out images does not exist; correct the path.")


def _folder_source(
    training: DataSource, folder: Path, tags: str | None, masks: str | None, annotations: str | None
) -> DataSource:
    """Return the source of a folder; settings of the training data are kept only if they mean files in the folder."""

    def in_folder(path: str | None) -> str | None:
        return path if path and not os.path.isabs(path) and (folder / path).exists() else None

    source = training.model_copy(
        update={
            "root": str(folder),
            "format": training.format if training.format in ("voc", "folders", "yolo") else "auto",
            "split": None,
            "tags": tags or in_folder(training.tags),
            "masks": masks or in_folder(training.masks),
            "annotations": annotations,
            "coco_order": training.coco_order if annotations else None,
            "coco_crowds": training.coco_crowds if annotations else None,
            "saliency": None,
            "reviewed": None,
            "class_list": _class_list(training, folder),
        }
    )
    format = source.detect_format()
    if format == "folders" and (training.detect_format() != "folders" or not _has_subfolders(folder, source)):
        return source.model_copy(update={"format": "images"})
    return source


def _class_list(training: DataSource, folder: Path) -> str | None:
    """Return the class list of the training images, unless the folder has its own or its format has none."""
    if find_class_list(folder, None) or training.detect_format() == "coco" or holds_shards(str(folder)):
        return None
    path = find_class_list(training.root, training.resolve_path(training.class_list))
    return None if path is None else str(path)


def _has_subfolders(folder: Path, source: DataSource) -> bool:
    """Return whether a folder has images in subfolders other than that of the masks."""
    return any("/" in name for name in ImageFiles(folder, [source.resolve_path(source.masks)]).names)
