"""Reader for a folder of images and a table of their tags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tagmask.data.class_names import class_ids, find_class_list, read_class_list
from tagmask.data.image_files import attach_masks, find_image_files
from tagmask.data.image_ids import unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.tag_table import Row, TagTable, read_tag_table
from tagmask.errors import DataError
from tagmask.text import did_you_mean, join_first_names, pluralize


def read_table(
    folder: Path | str,
    table: Path,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
) -> TaggedImages:
    """Read a folder of images whose tags are in a table (see `read_tag_table`).

    The table names an image by its path in the folder, with or without suffix. The file name alone is enough if it is
    unique. Absolute paths and URLs are allowed, too. An image without tags shows only background.

    Args:
        folder: the folder of the images, which may be in subfolders; or a URL, to which the names are appended.
        table: the table.
        split: read only the rows with this value in the column `split`. The classes are those of all rows.
        masks, saliency: folders of PNGs named `<id>.png`. The id is the path of the image without suffix.
        class_list: a file of class names, one per line, that fixes the class ids. By default `classes.txt` in the
            folder, or else the tags of the table, sorted. Masks hold these ids.

    Raises:
        DataError: the folder or the table cannot be read. Errors in single lines are in `problems` instead.
    """
    tag_table = read_tag_table(table)
    if not tag_table.names and not find_class_list(folder, class_list):
        raise DataError(f"{table} has no tag; write the names of the classes that each image shows into its column.")
    rows = tag_table.rows_of_split(split)
    files = find_image_files(folder, leave_out=(masks, saliency))
    classes = tag_table.names
    if class_file := find_class_list(folder, class_list):
        classes = read_class_list(class_file)
        _refuse_unknown_one_hot_columns(tag_table, classes)

    row_by_image, problems = match_rows_to_images(rows, files.find, tag_table)
    samples = []
    for image_id, (image, row) in zip(unique_ids(list(row_by_image)), row_by_image.items(), strict=True):
        if row.problem:
            problems.append(row.problem)
            continue
        try:
            samples.append(Sample(image_id, files.path(image), class_ids(row.tags, classes)))
        except DataError as error:
            problems.append(Problem.from_error(tag_table.location(row), error))
    samples, warnings = attach_masks(samples, [masks] if masks else [], [saliency] if saliency else [])
    warnings += _warn_unlisted_images(files.names, tag_table, files.find)
    name = os.path.basename(os.path.abspath(folder)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *warnings), name)


def match_rows_to_images(
    rows: Iterable[Row], find: Callable[[str], str | None], table: TagTable
) -> tuple[dict[str, Row], list[Problem]]:
    """Find the image of each row.

    Args:
        rows: rows of the table.
        find: maps a name in the table to the name of the image. It returns None for an image to be ignored, and raises
            DataError if there is no such image.
        table: the table, for messages.

    Returns:
        The row of each image, in the order of the table, and the problems of rows without an image. If an image is
        listed again with other tags, its row has a `problem`.
    """
    row_by_image: dict[str, Row] = {}
    problems = []
    for row in rows:
        try:
            image = find(row.image) if row.image else None
        except DataError as error:
            problems.append(row.problem or Problem.from_error(table.location(row), error))
            continue
        if image is None:
            problems += [row.problem] if row.problem and not row.image else []
            continue
        first = row_by_image.setdefault(image, row)
        if first is row or first.problem:
            continue
        message = f"lists {row.image!r} again, after line {first.line}"
        if row.problem:
            row_by_image[image] = row
        elif set(first.tags) == set(row.tags):
            problems.append(Problem(table.location(row), message, "remove one of the lines", "warning"))
        else:
            problem = Problem(table.location(row), f"{message}, with other tags", "remove the wrong line")
            row_by_image[image] = replace(first, problem=problem)
    return row_by_image, problems


def _refuse_unknown_one_hot_columns(table: TagTable, classes: tuple[str, ...]) -> None:
    """Raise DataError if a column of a one-hot table is not one of the classes."""
    unknown = next((name for name in table.names if table.one_hot and name not in classes), None)
    if unknown is not None:
        hint = did_you_mean(unknown, classes)
        raise DataError(f"{table.path}, line 1 has an unknown column {unknown!r}{hint}; rename or remove it.")


def _warn_unlisted_images(names: list[str], table: TagTable, find: Callable[[str], str]) -> list[Problem]:
    """Return one warning with the number of images in the folder that no row of the table names, in any split."""
    listed = set()
    for row in table.rows:
        try:
            listed.add(find(row.image))
        except DataError:
            continue
    unlisted = [name for name in names if name not in listed]
    if not unlisted:
        return []
    message = f"does not list {pluralize(len(unlisted), 'image')} of the folder ({join_first_names(unlisted, 3)})"
    return [Problem(str(table.path), message, "add lines for them if they are to be used", "warning")]
