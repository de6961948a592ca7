"""A folder of images and a table of their tags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tagmask.data.class_names import class_ids, find_class_list, read_class_list
from tagmask.data.image_files import given, images_in, with_masks
from tagmask.data.image_ids import unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.tag_table import Row, TagTable, read_tag_table
from tagmask.errors import DataError
from tagmask.text import did_you_mean


def read_table(
    folder: Path | str,
    table: Path,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
) -> TaggedImages:
    """Read a folder of images whose tags are in a table (`read_tag_table` says what that may look like).

    Images are named by their path in the folder, with or without suffix; a bare name finds a nested image; an
    absolute path or a URL is taken as it is. An image with no tag is background only.

    Args:
        folder: of the images, nested ones too; or a URL that the names are joined to.
        split: only the rows whose `split` column says so. The classes are those of the whole table in any case.
        masks, saliency: folders of PNGs named `<id>.png`, the id being the image's path without suffix.
        class_list: file of class names, one a line, that fixes the class ids (default: `classes.txt` in the
            folder; else the table's tags, sorted). Masks hold these ids.

    Raises:
        DataError: the folder or the table cannot be read at all. What is wrong with single lines is in `problems`.
    """
    tags = read_tag_table(table)
    rows = tags.of_split(split)
    files = images_in(folder, leave_out=(masks, saliency))
    classes = tags.names
    if named := find_class_list(folder, class_list):
        classes = read_class_list(named)
        check_columns(tags, classes)

    images, problems = rows_by_image(rows, files.find, tags)
    samples = []
    for id_, (image, row) in zip(unique_ids(list(images)), images.items(), strict=True):
        if row.problem:
            problems.append(row.problem)
            continue
        try:
            samples.append(Sample(id_, files.path(image), class_ids(row.tags, classes)))
        except DataError as error:
            problems.append(Problem.of(tags.where(row), error))
    samples, doubts = with_masks(samples, given(masks), given(saliency))
    doubts += _not_listed(files.names, tags, files.find)
    name = os.path.basename(os.path.abspath(folder)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *doubts), name)


def rows_by_image(
    rows: Iterable[Row], find: Callable[[str], str | None], tags: TagTable
) -> tuple[dict[str, Row], list[Problem]]:
    """Each image's row, in the table's order, and the problems of lines that no image belongs to.

    A row whose image is listed again with other tags gets a `problem` of its own.

    Args:
        find: a name in the table → the image's own name, or None where it is of no interest.
    """
    found: dict[str, Row] = {}
    problems = []
    for row in rows:
        try:
            image = find(row.image) if row.image else None
        except DataError as error:
            problems.append(row.problem or Problem.of(tags.where(row), error))
            continue
        if image is None:
            problems += [row.problem] if row.problem and not row.image else []
            continue
        first = found.setdefault(image, row)
        if first is row or first.problem:
            continue
        again = f"lists {row.image!r} again, after line {first.line}"
        if row.problem:
            found[image] = row
        elif set(first.tags) == set(row.tags):
            problems.append(Problem(tags.where(row), again, "remove one of the lines", "warning"))
        else:
            problem = Problem(tags.where(row), f"{again}, with other tags", "remove the wrong line")
            found[image] = replace(first, problem=problem)
    return found, problems


def check_columns(tags: TagTable, classes: tuple[str, ...]) -> None:
    """Raises DataError for a one-hot column that is no class."""
    unknown = next((name for name in tags.names if tags.one_hot and name not in classes), None)
    if unknown is not None:
        near = did_you_mean(unknown, classes)
        raise DataError(f"{tags.path}, line 1 has an unknown column {unknown!r}{near}; rename or remove it.")


def _not_listed(names: list[str], tags: TagTable, find: Callable[[str], str]) -> list[Problem]:
    """One doubt that counts the images in the folder that the table (any split of it) does not name."""
    listed = set()
    for row in tags.rows:
        try:
            listed.add(find(row.image))
        except DataError:
            continue
    unused = [name for name in names if name not in listed]
    if not unused:
        return []
    what = f"does not list {len(unused)} images of the folder ({', '.join(unused[:3])}{', ...' * (len(unused) > 3)})"
    return [Problem(str(tags.path), what, "add lines for them if they are to be used", "warning")]
