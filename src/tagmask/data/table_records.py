"""The lines of a table as dictionaries: CSV, TSV, JSON Lines and Excel workbooks."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tagmask.data.class_names import normalize_class_name
from tagmask.data.regular_files import MAX_BYTES, read_regular_file
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import shorten

Record = tuple[int, dict[str, Any]]
"""The number of a line, and its values by column. Where the number of values is wrong, "" holds all of them."""

_MAX_ROWS = 1 << 20  # of a sheet, as in Excel
_MAX_CELLS = 50_000_000
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_records(path: Path) -> tuple[list[str], Iterator[Record]]:
    """Return the column names of a table and its lines.

    Raises:
        DataError: the file is missing, or is not such a table. The iterator raises it, too, for lines that are not CSV.
    """
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xlsm"):
        return _with_columns(path, _workbook_lines(path))
    if suffix in (".xls", ".ods", ".numbers"):
        raise DataError(
            f"{path} is a spreadsheet of a format that cannot be read; save it as .xlsx or as CSV in UTF-8."
        )
    text = read_text(path)
    if suffix in _JSON_SUFFIXES:
        return _parse_json_lines(path, text)
    first_line = text.partition("\n")[0]
    delimiter = "\t" if suffix in (".tsv", ".tab") else next((d for d in ",\t;" if d in first_line), ",")
    return _with_columns(path, _csv_lines(path, text, delimiter))


def _with_columns(path: Path, lines: Iterator[tuple[int, list[str]]]) -> tuple[list[str], Iterator[Record]]:
    """Return the values of the first line as the column names, and the other lines as records."""
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


def _strip_trailing_blanks(values: Sequence[str]) -> Sequence[str]:
    """Remove empty values at the end: spreadsheets write commas for empty columns."""
    end = len(values)
    while end and not values[end - 1].strip():
        end -= 1
    return values[:end]


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
            reason = shorten(str(error))
            raise DataError(f"{path}, line {number} is not JSON ({reason}); write one object per line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object; write one object per line.")
        records.append((number, {normalize_class_name(key): value for key, value in record.items()}))
        columns |= dict.fromkeys(records[-1][1])
    return list(columns), iter(records)


def _workbook_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the values of each row of a workbook's first sheet that is not blank."""
    if find_spec("openpyxl") is None:
        raise DataError(
            f"{path} is an Excel workbook: install openpyxl with pip install "
            '"tagmask[xlsx]", or save it as CSV in UTF-8.'
        )
    import openpyxl

    try:
        content = io.BytesIO(read_regular_file(path))
        with zipfile.ZipFile(content) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                raise DataError(f"{path} is too large when it is unpacked; save it as CSV in UTF-8.")
        book = openpyxl.load_workbook(content, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # the size that the file declares may be wrong
        rows, num_cells = [], 0
        for number, cells in enumerate(sheet.iter_rows(max_row=_MAX_ROWS, values_only=True), 1):
            num_cells += len(cells)
            if num_cells > _MAX_CELLS:
                raise DataError(f"{path} has more than {_MAX_CELLS:,} cells; save it as CSV in UTF-8.")
            if any(cell is not None for cell in cells):
                rows.append((number, [_cell_text(cell) for cell in cells]))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); correct the path.") from error
    except Exception as error:  # openpyxl raises exceptions of many kinds for damaged files
        raise DataError(f"{path} is not an Excel workbook ({shorten(str(error))}); save it again.") from error
    width = len(_strip_trailing_blanks(rows[0][1])) if rows else 0  # a row ends with its last cell that has a value
    return ((number, _pad(values, width)) for number, values in rows if any(value.strip() for value in values))


def _pad(values: list[str], width: int) -> list[str]:
    return values + [""] * (width - len(values))


def _cell_text(value: Any) -> str:
    return "" if value is None else str(value)
