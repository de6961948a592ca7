"""Reading whole files, limited in size; pipes, devices and sockets are refused, because reading them may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tagmask.errors import DataError
from tagmask.formatting import format_bytes

MAX_BYTES = 2**30  # COCO's largest file of instances has 0.45 GB


def read_regular_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a local file.

    Raises:
        DataError: it is not a regular file (or a link to one), or it has more than `max_bytes`.
        OSError: it cannot be read.
    """
    check_regular_file(path, max_bytes)
    return Path(path).read_bytes()


def check_regular_file(path: str | Path, max_bytes: int = MAX_BYTES) -> os.stat_result:
    """Return the status of a file, or raise the errors of `read_regular_file`, without opening it."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder, not a file; correct the path.")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe, device or socket, not a file; remove it.")
    if status.st_size > max_bytes:
        raise DataError(f"{path} has more than {format_bytes(max_bytes)}; make it smaller or split it.")
    return status
