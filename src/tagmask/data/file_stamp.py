"""Detecting changed files without opening them."""

from __future__ import annotations

import os
from pathlib import Path

from tagmask.data.images import is_url
from tagmask.data.shard_row import ShardRow


def file_stamp(path: str | Path) -> str | None:
    """Return a text that changes when a file is edited or replaced: its absolute path, its size and its mtime.

    That of an image or mask in a shard changes when the shard is replaced; in object storage, when the shard is another
    one than at the time when it was listed. The file is not opened. Returns None if it does not exist or is at a URL.
    """
    text = os.fspath(path)
    if row := ShardRow.parse(text):
        from tagmask.data.shard_file import shard_row_stamp

        return shard_row_stamp(row)
    if is_url(text):
        return None
    try:
        status = os.stat(text)
    except (OSError, ValueError):
        return None
    absolute = text if os.path.isabs(text) else os.path.abspath(text)
    return f"{absolute}|{status.st_size}|{status.st_mtime_ns}"
