"""Reading UTF-8 text files."""

from __future__ import annotations

from pathlib import Path

from tagmask.data.regular_files import MAX_BYTES, read_regular_file
from tagmask.errors import DataError


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: the file is missing, too large or not a regular file, or is not UTF-8 (the line is named).
    """
    try:
        content = read_regular_file(path, max_bytes)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', error)}); correct the path.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not UTF-8; save the file as UTF-8.") from error
