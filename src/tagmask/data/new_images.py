"""Images without tags: files and folders to segment, and sources that need no tags."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tagmask.data.class_names import MAX_HINTS, class_ids
from tagmask.data.image_files import ImageFiles, require_folder
from tagmask.data.image_ids import normalize_unicode, strip_image_suffix, unique_ids
from tagmask.data.images import is_url
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.shard_reader import holds_shards, may_hold_shards, read_shards
from tagmask.data.split_list import read_split
from tagmask.data.table_reader import match_rows_to_images
from tagmask.data.tag_rows import Row
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError
from tagmask.text import shorten

if TYPE_CHECKING:
    from tagmask.data.source import DataSource


def find_new_images(
    paths: Sequence[str],
    classes: tuple[str, ...],
    tags: str | None = None,
    leave_out: Sequence[Path] = (),
    split: str | None = None,
) -> TaggedImages:
    """Find the images among files, folders (with their subfolders) and URLs.

    If a folder has a folder JPEGImages (the layout of VOC), only the images in that one are found.

    Args:
        paths: files, folders and URLs; or one folder or URL of shards.
        classes: the classes of the network that will segment the images.
        tags: a table `image,tags`. The tags of an image that it does not name are not known.
        leave_out: folders inside the folders that are skipped.
        split: only the images of this list, see `read_split`; `paths` is then one folder.

    Raises:
        DataError: a path or the list does not exist, or there is no image. Bad lines of the list (no such image) and of
            the table (an ambiguous name, or a class that the network does not have) are in `problems` instead.
    """
    images = _find_all(paths, classes, leave_out) if split is None else _find_listed(paths, classes, leave_out, split)
    return images if tags is None else _add_tags(images, Path(tags))


def _find_listed(paths: Sequence[str], classes: tuple[str, ...], leave_out: Sequence[Path], split: str) -> TaggedImages:
    if len(paths) != 1 or is_url(paths[0]):
        raise DataError(f"the list {shorten(split)!r} names images of one folder; name the folder, and nothing else.")
    root = require_folder(Path(paths[0]))
    files = ImageFiles(_image_folder(root), leave_out)
    items, problems = read_split(root, split, files)
    names = [item.image for item in items]
    samples = tuple(Sample(i, files.path(name), None) for i, name in zip(unique_ids(names), names, strict=True))
    return TaggedImages(classes, samples, (*problems, *files.problems), name=f"the list {split!r}")


def _image_folder(folder: Path) -> Path:
    """Return the folder of the images: in VOC's layout, the others hold masks."""
    voc_images = folder / "JPEGImages"
    return voc_images if voc_images.is_dir() else folder


def _find_all(paths: Sequence[str], classes: tuple[str, ...], leave_out: Sequence[Path]) -> TaggedImages:
    names: dict[str, str] = {}  # path or URL of each image → name from which its id is derived
    problems: list[Problem] = []
    others: list[str] = []
    if len(paths) == 1 and may_hold_shards(paths[0]) and holds_shards(paths[0]):
        return _without_tags(read_shards(paths[0]), classes)
    for path in paths:
        if is_url(path):
            names.setdefault(path, path)
        elif Path(path).is_file():
            names.setdefault(os.path.abspath(path), Path(path).name)
        elif Path(path).is_dir():
            files = ImageFiles(_image_folder(Path(path)), leave_out)
            others += files.others
            names = {os.path.abspath(files.path(name)): name for name in files.names} | names
            problems += files.problems
        else:
            raise DataError(f"{path} does not exist; correct the path.")
    if not names:
        hint = f" (but {others[0]}, which cannot be read: convert it to JPEG or PNG)" if others else ""
        raise DataError(f"there is no image in {', '.join(paths)}{hint}; name image files or folders of images.")
    ids = unique_ids(_unambiguous_names(names))
    samples = tuple(Sample(image_id, path, None) for image_id, path in zip(ids, names, strict=True))
    return TaggedImages(classes, samples, tuple(problems), name="new images")


def _without_tags(images: TaggedImages, classes: tuple[str, ...]) -> TaggedImages:
    samples = tuple(replace(sample, tags=None, mask=None) for sample in images.samples)
    return replace(images, classes=classes, samples=samples, name="new images")


def _unambiguous_names(names: Mapping[str, str]) -> list[str]:
    """Return the name of each image; images of the same name get their path relative to their common folder."""
    count = Counter(names.values())
    ambiguous = [path for path, name in names.items() if count[name] > 1 and not is_url(path)]
    common_folder = os.path.commonpath(ambiguous) if ambiguous else ""
    return [
        name if count[name] == 1 else path if is_url(path) else os.path.relpath(path, common_folder)
        for path, name in names.items()
    ]


def list_images(source: DataSource) -> TaggedImages:
    """Read a source that may lack tags: a flat folder of images, without a table, gives images without tags.

    Raises:
        DataError: as `DataSource.read`.
    """
    if source.split is None and source.detect_format() == "folders":
        leave_out = [source.resolve_path(path) for path in (source.masks, source.saliency, source.reviewed)]
        names = ImageFiles(Path(source.root), leave_out).names
        if names and not any("/" in name for name in names):
            source = source.model_copy(update={"format": "images"})
    return source.read()


def _add_tags(images: TaggedImages, table_path: Path) -> TaggedImages:
    table = read_tag_table(table_path)
    ids_by_name: dict[str, set[str]] = {}
    for sample in images.samples:
        for name in (sample.id, sample.image, os.path.basename(sample.image)):
            for key in (normalize_unicode(name), strip_image_suffix(normalize_unicode(name))):
                ids_by_name.setdefault(key, set()).add(sample.id)

    def find(row: Row) -> str | None:
        names = (row.image, row.other_name or row.image)
        ids = sorted(next(filter(None, (ids_by_name.get(normalize_unicode(name)) for name in names)), ()))
        if len(ids) > 1:
            raise DataError(f"the image {shorten(row.image)!r} may be {ids[0]} or {ids[1]}; write more of its path.")
        return ids[0] if ids else None

    rows, problems = match_rows_to_images(table.rows, find, table)
    if not rows:
        raise DataError(f"{table_path} names none of the {len(images)} images; write their file names in the table.")
    tags: dict[str, tuple[int, ...]] = {}
    for image_id, row in rows.items():
        try:
            tags[image_id] = class_ids(row.tags, images.classes, with_hint=len(problems) < MAX_HINTS)
        except DataError as error:
            problems.append(Problem.from_error(table.location(row), error))
    samples = tuple(replace(sample, tags=tags.get(sample.id)) for sample in images.samples)
    return replace(images, samples=samples, problems=(*images.problems, *problems))
