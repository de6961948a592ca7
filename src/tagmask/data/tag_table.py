"""Tag tables: CSV, TSV or JSON Lines that say which classes each image shows."""

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

Record = tuple[int, dict[str, Any]]  # line, column → value; "" → all values, where there are too few or too many

_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false", ""})


@dataclass(frozen=True)
class Row:
    """One line of a tag table; where `problem` is set it cannot be used (and the image may not be known)."""

    line: int
    image: str
    tags: tuple[str, ...]
    split: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class TagTable:
    """A tag table as it is written.

    Attributes:
        names: every tag that occurs, or has a column, sorted.
        one_hot: whether the table has a column a class.
        has_split: whether it has a column `split`.
    """

    path: Path
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    one_hot: bool
    has_split: bool

    def where(self, row: Row) -> str:
        return f"{self.path}, line {row.line}"

    def of_split(self, split: str | None) -> tuple[Row, ...]:
        """The rows of a split, and those too broken to have one; all of them for None.

        Raises DataError where the table has no such split.
        """
        if split is None:
            return self.rows
        if not self.has_split:
            raise DataError(f"{self.path} has no column 'split'; add one, or read all of it with no split.")
        known = sorted({row.split for row in self.rows if row.split})
        if split not in known:
            raise DataError(f"{self.path} has no line of split {split!r}{did_you_mean(split, known)}")
        return tuple(row for row in self.rows if row.split == split or (row.problem and not row.split))


def read_tag_table(path: Path) -> TagTable:
    """Read a table whose first line names its columns: `image`, then `tags` or a column a class, perhaps `split`.

    `tags` holds names separated by ";" (in JSON Lines a list, too); a class column holds 1, 0, true, false or
    nothing. Columns are separated by commas, by tabs or, where the first line has neither, by semicolons. Names are
    trimmed and brought to Unicode normal form C; the tag "background" is no tag.

    Raises:
        DataError: the file is missing, not UTF-8 or no such table; each names the line.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
        raise DataError(f"{path} is a spreadsheet; save it as CSV in UTF-8.")
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        columns, records = _json_records(path, text)
    else:
        columns, records = _csv_records(path, text)
    layout = _layout(path, columns)
    rows = tuple(_row(path, record, layout) for record in records)
    if not rows:
        raise DataError(f"{path} lists no image; write one line an image after the line of column names.")
    if all(row.problem for row in rows):
        raise DataError(str(rows[0].problem))
    names = {*layout.classes, *(tag for row in rows for tag in row.tags)}
    return TagTable(
        path,
        rows,
        names=tuple(sorted(name for name in names if name.casefold() != BACKGROUND)),
        one_hot=layout.tags is None,
        has_split=layout.split is not None,
    )


@dataclass(frozen=True)
class _Layout:
    """Which column holds what."""

    image: str
    tags: str | None
    split: str | None
    classes: tuple[str, ...]


def _layout(path: Path, columns: Sequence[str]) -> _Layout:
    where = f"{path}, line 1"
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{where} names the column {twice[0]!r} twice; remove or rename one.")
    if "" in columns:
        raise DataError(f"{where} has a column without a name; name or remove it.")
    own = {name.casefold(): name for name in columns if name.casefold() in ("image", "tags", "split")}
    if "image" not in own:
        reporter = ", ".join(columns[:10])
        raise DataError(f"{where} has no column 'image' but {reporter!r}; begin the table with a line like image,tags.")
    others = tuple(name for name in columns if name not in own.values())
    if "tags" in own and others:
        near = did_you_mean(others[0], ["image", "tags", "split"])
        raise DataError(f"{where} has an unknown column {others[0]!r}{near}; rename or remove it.")
    if "tags" not in own and not others:
        raise DataError(f"{where} has no column for the tags; add a column 'tags', or one column a class.")
    return _Layout(own["image"], own.get("tags"), own.get("split"), others)


def _csv_records(path: Path, text: str) -> tuple[list[str], Iterator[Record]]:
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else next((d for d in ",\t;" if d in first), ",")
    lines = _csv_lines(path, text, delimiter)
    _, header = next(lines, (0, []))
    columns = [normalize_class_name(name) for name in _without_trailing_blanks(header)]
    if not columns:
        raise DataError(f"{path} is empty; begin it with a line like image,tags.")

    def records() -> Iterator[Record]:
        for line, values in lines:
            if len(values) > len(columns):
                values = [*values[: len(columns)], *_without_trailing_blanks(values[len(columns) :])]
            broken = {} if len(values) == len(columns) else {"": values}
            yield line, dict(zip(columns, values, strict=False)) | broken

    return columns, records()


def _csv_lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line} is not valid CSV ({error}); mind the quotes.") from error
        if any(value.strip() for value in values):
            yield line, values


def _without_trailing_blanks(values: list[str]) -> list[str]:
    """Spreadsheets write commas for columns that hold nothing."""
    while values and not values[-1].strip():
        values = values[:-1]
    return values


def _json_records(path: Path, text: str) -> tuple[list[str], Iterator[Record]]:
    records: list[Record] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON, but no text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); write one object a line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object; write one object a line.")
        records.append((number, {normalize_class_name(key): value for key, value in record.items()}))
        columns |= dict.fromkeys(records[-1][1])
    return list(columns), iter(records)


def _row(path: Path, record: Record, layout: _Layout) -> Row:
    line, values = record

    def broken(what: str, fix: str) -> Row:
        texts = [values.get(name) if name else None for name in (layout.image, layout.split)]
        image, split = (text.strip() if isinstance(text, str) else "" for text in texts)
        return Row(line, image, (), split or None, Problem(f"{path}, line {line}", what, fix))

    if "" in values:
        width = 1 + bool(layout.tags) + bool(layout.split) + len(layout.classes)
        what = f"has {len(values[''])} columns, and the first line names {width}"
        return broken(what, "separate tags by ';', and quote what contains a comma")
    image = values.get(layout.image)
    if not isinstance(image, str) or not image.strip():
        return broken("names no image", "write the image's name or remove the line")
    split = values.get(layout.split) if layout.split else None
    if split is not None and not isinstance(split, str):
        return broken(f"has the split {split!r}, which is no text", "write its name")
    if layout.tags:
        tags = _tag_list(values.get(layout.tags))
        if tags is None:
            return broken("has tags that are neither text nor a list of texts", "write them like 'cat;dog'")
    else:
        unclear = _unclear(values, layout.classes)
        if unclear:
            what = f"has {values[unclear]!r} in the column {unclear!r}, not 0 or 1"
            return broken(what, "correct it, or name the column 'tags' if it holds tag names")
        tags = [name for name in layout.classes if _cell(values.get(name)) in _YES]
    kept = dict.fromkeys(name for name in tags if name and name.casefold() != BACKGROUND)
    return Row(line, image.strip(), tuple(kept), (split or "").strip() or None)


def _tag_list(value: Any) -> list[str] | None:
    if value is None:
        return []
    if isinstance(value, str):
        value = value.split(";")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return [normalize_class_name(name) for name in value]


def _unclear(values: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    return next((name for name in classes if _cell(values.get(name)) not in _YES | _NO), None)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip().casefold()
