"""Tag tables: files that list the tags of each image, as a table or as the export of an annotation tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.cvat_reader import read_cvat
from tagmask.data.label_studio_reader import is_label_studio, read_label_studio
from tagmask.data.samples import Problem
from tagmask.data.table_records import Record, read_records
from tagmask.data.tag_rows import Row, TagTable
from tagmask.errors import DataError
from tagmask.text import did_you_mean, shorten

_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false", ""})
_RESERVED = ("image", "tags", "split")


def read_tag_table(path: Path, *, image_column: str | None = None, tags_column: str | None = None) -> TagTable:
    """Read a file that lists the tags of images: a table, an export of CVAT (.xml) or of Label Studio (.json).

    The first line of a table names its columns: `image`, then either `tags` or one column per class, and optionally
    `split`. `tags` holds names separated by ";" (JSON Lines may also hold a list). A class column holds 1, 0, true,
    false or nothing. Columns are separated by commas, by tabs or, if the first line has neither, by semicolons. Names
    are trimmed and converted to Unicode normal form C. The tag "background" is ignored.

    Args:
        path: the file. Its suffix decides how it is read: .xml (CVAT for images), .json (Label Studio, or JSON Lines),
            .jsonl and .ndjson (JSON Lines), .xlsx (the first sheet of a workbook), .tsv, and CSV for all others.
        image_column: the name of the column `image`, if it has another one.
        tags_column: the name of the column `tags`. If it is given, unknown columns are ignored.

    Raises:
        DataError: the file is missing, not UTF-8 or not such a table. The error names the line.
    """
    if path.suffix.lower() == ".xml":
        return read_cvat(path)
    if path.suffix.lower() == ".json" and is_label_studio(path):
        return read_label_studio(path)
    columns, records = read_records(path)
    roles = _assign_columns(path, columns, image_column, tags_column)
    rows = tuple(_parse_row(path, record, roles, len(columns)) for record in records)
    if not rows:
        raise DataError(f"{path} lists no image; write one line per image after the line of column names.")
    if all(row.problem for row in rows):
        raise DataError(str(rows[0].problem))
    names = {*roles.classes, *(tag for row in rows for tag in row.tags)}
    return TagTable(
        path,
        rows,
        names=tuple(sorted(name for name in names if name.casefold() != BACKGROUND)),
        one_hot=roles.tags is None,
        has_split=roles.split is not None,
    )


@dataclass(frozen=True)
class _ColumnRoles:
    """The names of the columns that hold the image, the tags, the split and, in a one-hot table, each class."""

    image: str
    tags: str | None
    split: str | None
    classes: tuple[str, ...]


def _assign_columns(
    path: Path, columns: Sequence[str], image_column: str | None, tags_column: str | None
) -> _ColumnRoles:
    where = f"{path}, line 1"
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{where} names the column {shorten(repeated[0])!r} twice; remove or rename one.")
    if "" in columns:
        raise DataError(f"{where} has a column without a name; name or remove it.")
    roles = {name.casefold(): name for name in columns if name.casefold() in _RESERVED}
    for role, given in (("image", image_column), ("tags", tags_column)):
        if given is not None:
            roles[role] = _find_column(where, columns, given, f"--{role}-column")
    if "image" not in roles:
        listed = shorten(", ".join(columns[:10]))
        raise DataError(
            f"{where} has no column 'image' but {listed!r}; begin the table with a line like image,tags, or name the "
            "column of the images with --image-column."
        )
    others = tuple(name for name in columns if name not in roles.values())
    if "tags" in roles and others and tags_column is None:
        hint = did_you_mean(others[0], _RESERVED)
        raise DataError(
            f"{where} has an unknown column {shorten(others[0])!r}{hint}; rename or remove it, or name the column of "
            "the tags with --tags-column."
        )
    if "tags" not in roles and not others:
        raise DataError(f"{where} has no column for the tags; add a column 'tags', or one column per class.")
    return _ColumnRoles(roles["image"], roles.get("tags"), roles.get("split"), () if "tags" in roles else others)


def _find_column(where: str, columns: Sequence[str], name: str, option: str) -> str:
    matches = [column for column in columns if column.casefold() == normalize_class_name(name).casefold()]
    if not matches:
        raise DataError(f"{where} has no column {shorten(name)!r} ({option}){did_you_mean(name, columns)}")
    return matches[0]


def _parse_row(path: Path, record: Record, roles: _ColumnRoles, num_columns: int) -> Row:
    line, values = record

    def bad_row(message: str, fix: str) -> Row:
        texts = [values.get(name) if name else None for name in (roles.image, roles.split)]
        image, split = (text.strip() if isinstance(text, str) else "" for text in texts)
        return Row(line, image, (), split or None, Problem(f"{path}, line {line}", message, fix))

    if "" in values:
        message = f"has {len(values[''])} columns, but the first line names {num_columns}"
        return bad_row(message, "separate tags by ';', and quote values that contain a comma")
    image = values.get(roles.image)
    if not isinstance(image, str) or not image.strip():
        return bad_row("names no image", "write the name of the image or remove the line")
    split = values.get(roles.split) if roles.split else None
    if split is not None and not isinstance(split, str):
        return bad_row(f"has the split {shorten(repr(split))}, which is not text", "write its name")
    if roles.tags:
        tags = _parse_tags(values.get(roles.tags))
        if tags is None:
            return bad_row("has tags that are neither text nor a list of texts", "write them like 'cat;dog'")
    else:
        unclear = _find_unclear_column(values, roles.classes)
        if unclear:
            value = shorten(repr(values[unclear]))
            message = f"has {value} in the column {shorten(unclear)!r}, which is neither 0 nor 1"
            return bad_row(message, "correct it, or name the column 'tags' if it holds tag names")
        tags = [name for name in roles.classes if _cell_text(values.get(name)) in _YES]
    unique_tags = dict.fromkeys(name for name in tags if name and name.casefold() != BACKGROUND)
    return Row(line, image.strip(), tuple(unique_tags), (split or "").strip() or None)


def _parse_tags(value: Any) -> list[str] | None:
    """Return the tag names in a cell; None if it is neither text nor a list of texts."""
    if value is None:
        return []
    if isinstance(value, str):
        value = value.split(";")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return [normalize_class_name(name) for name in value]


def _find_unclear_column(values: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    """Return the first class column whose value is neither yes nor no."""
    return next((name for name in classes if _cell_text(values.get(name)) not in _YES | _NO), None)


def _cell_text(value: Any) -> str:
    return "" if value is None else str(value).strip().casefold()
