"""Reader for a folder of images and a table of their tags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tagmask.data.class_names import MAX_HINTS, class_ids, find_class_list, read_class_list
from tagmask.data.image_files import ImageFiles, RemoteImages, attach_masks, find_image_files
from tagmask.data.image_ids import unique_ids
from tagmask.data.images import is_url
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.tag_rows import Row, TagTable
from tagmask.errors import DataError
from tagmask.text import did_you_mean, join_first_names, pluralize, shorten


def read_table(
    folder: Path | str,
    tag_table: TagTable,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
    leave_out: Sequence[Path | None] = (),
) -> TaggedImages:
    """Read a folder of images whose tags are in a table.

    The table names an image by its path in the folder, with or without suffix. The file name alone is enough if it is
    unique. Absolute paths and URLs are allowed, too. Folders that all paths begin with may be missing on disk. An image
    without tags shows only background.

    Args:
        folder: the folder of the images, which may be in subfolders; or a URL, to which the names are appended.
        tag_table: the table.
        split: read only the rows of this split. The classes are those of all rows.
        masks, saliency: folders of PNGs named `<id>.png`. The id is the path of the image without suffix.
        class_list: a file of class names, one per line, that fixes the class ids. By default `classes.txt` in the
            folder, or else the tags of the table, sorted. Masks hold these ids.
        leave_out: folders in which no images are looked for, besides those of masks and saliency maps.

    Raises:
        DataError: the folder cannot be read, or the table has no tag. Errors in single lines are in `problems` instead.
    """
    class_file = find_class_list(folder, class_list)
    if not tag_table.names and not class_file:
        raise DataError(f"{tag_table.path} has no tag; write the names of the classes that each image shows into it.")
    rows = tag_table.rows_of_split(split)
    files = find_image_files(folder, leave_out=(masks, saliency, *leave_out))
    classes = tag_table.names
    if class_file:
        classes = read_class_list(class_file)
        _refuse_unknown_one_hot_columns(tag_table, classes)

    find = ImageFinder(files, tag_table)
    row_by_image, problems = match_rows_to_images(rows, find, tag_table)
    _refuse_other_folder(rows, row_by_image, files, tag_table)
    samples = []
    for image_id, (image, row) in zip(unique_ids(list(row_by_image)), row_by_image.items(), strict=True):
        if row.problem:
            problems.append(row.problem)
            continue
        try:
            tags = class_ids(row.tags, classes, with_hint=len(problems) < MAX_HINTS)
            samples.append(Sample(image_id, files.path(image), tags))
        except DataError as error:
            problems.append(Problem.from_error(tag_table.location(row), error))
    samples, warnings = attach_masks(samples, [masks] if masks else [], [saliency] if saliency else [])
    warnings += [*tag_table.problems, *find.problems, *_warn_unlisted_images(files.names, tag_table, find)]
    name = os.path.basename(os.path.abspath(folder)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *warnings), name)


class ImageFinder:
    """Finds the image of a row, also if the table's paths begin with folders that are not on disk.

    Such a prefix is removed if it ends with the name of the image folder (`photos/1.jpg` in the folder `photos`), or if
    all rows have it and no folder of this name lies beside the image folder.

    Args:
        files: the images.
        table: the table whose rows are looked up.

    Attributes:
        problems: a warning if a prefix was removed whose name is not that of the folder.
    """

    def __init__(self, files: ImageFiles | RemoteImages, table: TagTable) -> None:
        self.files = files
        self.problems: list[Problem] = []
        self._found: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self.prefix, is_certain = _find_prefix(files, table)
        if self.prefix and not is_certain:
            message = f"begins its paths with {shorten(self.prefix)!r}, which {files.root} does not have"
            problem = Problem(str(table.path), message, "check that the tags belong to these images", "warning")
            self.problems.append(problem)

    def __call__(self, row: Row) -> str:
        """Return the name of the image of a row. Raises DataError if there is none."""
        if row.image not in self._found and row.image not in self._errors:
            self._look_up(row)
        if row.image in self._errors:
            raise DataError(self._errors[row.image])
        return self._found[row.image]

    def _look_up(self, row: Row) -> None:
        path = row.image.replace("\\", "/")
        without_prefix = path.removeprefix(self.prefix) if self.prefix else path
        names = [row.image, *({without_prefix} - {path}), *filter(None, [row.other_name])]
        for name in names:
            try:
                self._found[row.image] = self.files.find(name)
            except DataError as error:
                self._errors.setdefault(row.image, str(error))
            else:
                self._errors.pop(row.image, None)
                return


def _find_prefix(files: ImageFiles | RemoteImages, table: TagTable) -> tuple[str, bool]:
    """Return the folders that are to be removed from the table's paths, and whether they end with the image folder."""
    names = [row.image.replace("\\", "/") for row in table.rows if row.image and not is_url(row.image)]
    if isinstance(files, RemoteImages) or not names:
        return "", True

    def is_found(name: str) -> bool:
        try:
            files.find(name)
        except DataError:
            return False
        return True

    sample = names[:: max(1, len(names) // 50)]
    missing = [name for name in sample if "/" in name and not is_found(name)]
    folders = missing[0].split("/")[:-1] if missing else []
    root = Path(os.path.abspath(files.root))
    for depth in range(1, len(folders) + 1):
        prefix = "/".join(folders[:depth]) + "/"
        if not any(name.startswith(prefix) and is_found(name.removeprefix(prefix)) for name in missing):
            continue
        if folders[depth - 1] == root.name:
            return prefix, True
        if all(name.startswith(prefix) for name in names) and not (root.parent / prefix).is_dir():
            return prefix, False
    return "", True


def match_rows_to_images(
    rows: Iterable[Row], find: Callable[[Row], str | None], table: TagTable
) -> tuple[dict[str, Row], list[Problem]]:
    """Find the image of each row.

    Args:
        rows: rows of the table.
        find: maps a row to the name of its image. It returns None for an image to be ignored, and raises DataError if
            there is no such image.
        table: the table, for messages.

    Returns:
        The row of each image, in the order of the table, and the problems of rows without an image. If an image is
        listed again with other tags, its row has a `problem`.
    """
    row_by_image: dict[str, Row] = {}
    problems = []
    for row in rows:
        try:
            image = find(row) if row.image else None
        except DataError as error:
            problems.append(row.problem or Problem.from_error(table.location(row), error))
            continue
        if image is None:
            problems += [row.problem] if row.problem and not row.image else []
            continue
        first = row_by_image.setdefault(image, row)
        if first is row or first.problem:
            continue
        message = f"lists {shorten(row.image)!r} again, after {table.unit} {first.line}"
        if row.problem:
            row_by_image[image] = row
        elif set(first.tags) == set(row.tags):
            problems.append(Problem(table.location(row), message, f"remove one of the {table.unit}s", "warning"))
        else:
            problem = Problem(table.location(row), f"{message}, with other tags", f"remove the wrong {table.unit}")
            row_by_image[image] = replace(first, problem=problem)
    return row_by_image, problems


def _refuse_unknown_one_hot_columns(table: TagTable, classes: tuple[str, ...]) -> None:
    """Raise DataError if a column of a one-hot table is not one of the classes."""
    unknown = next((name for name in table.names if table.one_hot and name not in classes), None)
    if unknown is not None:
        hint = did_you_mean(unknown, classes)
        raise DataError(f"{table.path}, line 1 has an unknown column {shorten(unknown)!r}{hint}; rename or remove it.")


def _refuse_other_folder(
    rows: Sequence[Row], row_by_image: Mapping[str, Row], files: ImageFiles | RemoteImages, table: TagTable
) -> None:
    """Raise DataError if the folder has images, but none of those that a table of many rows names."""
    names = [row.image for row in rows if row.image]
    if not row_by_image and len(names) > 3 and isinstance(files, ImageFiles) and files.names:
        raise DataError(
            f"{table.path} names {len(names)} images (first: {shorten(names[0])}), and {files.root} has none of them, "
            f"but others (first: {shorten(files.names[0])}); give the folder in which the names of the table begin."
        )


def _warn_unlisted_images(names: list[str], table: TagTable, find: ImageFinder) -> list[Problem]:
    """Return one warning with the number of images in the folder that no row of the table names, in any split."""
    listed = set()
    for row in table.rows:
        with suppress(DataError):
            listed.add(find(row))
    unlisted = [name for name in names if name not in listed]
    if not unlisted:
        return []
    message = f"does not list {pluralize(len(unlisted), 'image')} of the folder ({join_first_names(unlisted, 3)})"
    return [Problem(str(table.path), message, "add lines for them if they are to be used", "warning")]
