"""Tag tables: CSV, TSV or JSON Lines that list the tags of each image."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.samples import Problem
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import did_you_mean

Record = tuple[int, dict[str, Any]]
"""The number of a line, and its values by column. Where the number of values is wrong, "" holds all of them."""

_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false", ""})


@dataclass(frozen=True)
class Row:
    """One line of a tag table.

    Attributes:
        line: the line number, from 1.
        image: the name of the image, as written.
        tags: the tag names.
        split: the split, if the line names one.
        problem: why the row cannot be used. The image may then be empty.
    """

    line: int
    image: str
    tags: tuple[str, ...]
    split: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class TagTable:
    """A tag table.

    Attributes:
        path: the file.
        rows: one row for each image that is listed.
        names: every tag that occurs or has a column, sorted.
        one_hot: whether the table has one column per class.
        has_split: whether the table has a column `split`.
    """

    path: Path
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    one_hot: bool
    has_split: bool

    def location(self, row: Row) -> str:
        """Return the file and line of a row, for messages."""
        return f"{self.path}, line {row.line}"

    def rows_of_split(self, split: str | None) -> tuple[Row, ...]:
        """Return the rows of a split, and the bad rows whose split is not known; all rows for None.

        Raises:
            DataError: the table has no such split.
        """
        if split is None:
            return self.rows
        if not self.has_split:
            raise DataError(f"{self.path} has no column 'split'; add one, or do not name a split to read all lines.")
        splits = sorted({row.split for row in self.rows if row.split})
        if split not in splits:
            raise DataError(f"{self.path} has no line of split {split!r}{did_you_mean(split, splits)}")
        return tuple(row for row in self.rows if row.split == split or (row.problem and not row.split))


def read_tag_table(path: Path) -> TagTable:
    """Read a table whose first line names its columns.

    The columns are `image`, then either `tags` or one column per class, and optionally `split`. `tags` holds names
    separated by ";" (JSON Lines may also hold a list). A class column holds 1, 0, true, false or nothing. Columns are
    separated by commas, by tabs or, if the first line has neither, by semicolons. Names are trimmed and converted to
    Unicode normal form C. The tag "background" is ignored.

    Raises:
        DataError: the file is missing, not UTF-8 or not such a table. The error names the line.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
        raise DataError(f"{path} is a spreadsheet; save it as CSV in UTF-8.")
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        columns, records = _parse_json_lines(path, text)
    else:
        columns, records = _parse_csv(path, text)
    roles = _assign_columns(path, columns)
    rows = tuple(_parse_row(path, record, roles) for record in records)
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


def _assign_columns(path: Path, columns: Sequence[str]) -> _ColumnRoles:
    where = f"{path}, line 1"
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{where} names the column {repeated[0]!r} twice; remove or rename one.")
    if "" in columns:
        raise DataError(f"{where} has a column without a name; name or remove it.")
    reserved = {name.casefold(): name for name in columns if name.casefold() in ("image", "tags", "split")}
    if "image" not in reserved:
        listed = ", ".join(columns[:10])
        raise DataError(f"{where} has no column 'image' but {listed!r}; begin the table with a line like image,tags.")
    others = tuple(name for name in columns if name not in reserved.values())
    if "tags" in reserved and others:
        hint = did_you_mean(others[0], ["image", "tags", "split"])
        raise DataError(f"{where} has an unknown column {others[0]!r}{hint}; rename or remove it.")
    if "tags" not in reserved and not others:
        raise DataError(f"{where} has no column for the tags; add a column 'tags', or one column per class.")
    return _ColumnRoles(reserved["image"], reserved.get("tags"), reserved.get("split"), others)


def _parse_csv(path: Path, text: str) -> tuple[list[str], Iterator[Record]]:
    first_line = text.partition("\n")[0]
    is_tsv = path.suffix.lower() in (".tsv", ".tab")
    delimiter = "\t" if is_tsv else next((d for d in ",\t;" if d in first_line), ",")
    lines = _csv_lines(path, text, delimiter)
    _, header = next(lines, (0, []))
    columns = [normalize_class_name(name) for name in _strip_trailing_blanks(header)]
    if not columns:
        raise DataError(f"{path} is empty; begin it with a line like image,tags.")

    def records() -> Iterator[Record]:
        for line, values in lines:
            if len(values) > len(columns):
                values = [*values[: len(columns)], *_strip_trailing_blanks(values[len(columns) :])]
            mismatch = {} if len(values) == len(columns) else {"": values}
            yield line, dict(zip(columns, values, strict=False)) | mismatch

    return columns, records()


def _csv_lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the values of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line} is not valid CSV ({error}); check the quotes.") from error
        if any(value.strip() for value in values):
            yield line, values


def _strip_trailing_blanks(values: list[str]) -> list[str]:
    """Remove empty values at the end: spreadsheets write commas for empty columns."""
    while values and not values[-1].strip():
        values = values[:-1]
    return values


def _parse_json_lines(path: Path, text: str) -> tuple[list[str], Iterator[Record]]:
    records: list[Record] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON but not valid text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); write one object per line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object; write one object per line.")
        records.append((number, {normalize_class_name(key): value for key, value in record.items()}))
        columns |= dict.fromkeys(records[-1][1])
    return list(columns), iter(records)


def _parse_row(path: Path, record: Record, roles: _ColumnRoles) -> Row:
    line, values = record

    def bad_row(message: str, fix: str) -> Row:
        texts = [values.get(name) if name else None for name in (roles.image, roles.split)]
        image, split = (text.strip() if isinstance(text, str) else "" for text in texts)
        return Row(line, image, (), split or None, Problem(f"{path}, line {line}", message, fix))

    if "" in values:
        num_columns = 1 + bool(roles.tags) + bool(roles.split) + len(roles.classes)
        message = f"has {len(values[''])} columns, but the first line names {num_columns}"
        return bad_row(message, "separate tags by ';', and quote values that contain a comma")
    image = values.get(roles.image)
    if not isinstance(image, str) or not image.strip():
        return bad_row("names no image", "write the name of the image or remove the line")
    split = values.get(roles.split) if roles.split else None
    if split is not None and not isinstance(split, str):
        return bad_row(f"has the split {split!r}, which is not text", "write its name")
    if roles.tags:
        tags = _parse_tags(values.get(roles.tags))
        if tags is None:
            return bad_row("has tags that are neither text nor a list of texts", "write them like 'cat;dog'")
    else:
        unclear = _find_unclear_column(values, roles.classes)
        if unclear:
            message = f"has {values[unclear]!r} in the column {unclear!r}, which is neither 0 nor 1"
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
