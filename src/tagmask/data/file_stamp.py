"""Detecting changed files without opening them."""

from __future__ import annotations

import os
from pathlib import Path

from tagmask.data.images import is_url


def file_stamp(path: str | Path) -> str | None:
    """Return a text that changes when a file is edited or replaced: its absolute path, its size and its mtime.

    The file is not opened. Returns None if it does not exist or is at a URL.
    """
    text = os.fspath(path)
    if is_url(text):
        return None
    try:
        status = os.stat(text)
    except (OSError, ValueError):
        return None
    absolute = text if os.path.isabs(text) else os.path.abspath(text)
    return f"{absolute}|{status.st_size}|{status.st_mtime_ns}"
