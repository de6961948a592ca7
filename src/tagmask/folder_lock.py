"""A lock that keeps a second command from writing to the same folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tagmask.compute import is_main_process
from tagmask.errors import RunError

if TYPE_CHECKING:
    from tagmask.compute import Processes

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"

_held: set[Path] = set()  # a process can take its own POSIX lock twice


@contextmanager
def lock_folder(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the lock of a folder for all processes of this command; each of them calls it.

    The folder is created if it does not exist, and removed again if it stays empty. The lock is a POSIX lock on a
    file that names the process and its machine. The operating system releases it when the process ends, however it
    ends, so that a killed run can be resumed at once, also from another machine that shares the file system.
    Processes that this one forks do not hold it. Without effect on Windows and on file systems that have no locks.

    Raises:
        RunError: another command holds the lock (its process is named), or the folder cannot be written.
    """
    with _lock(folder) if processes.is_main_process else nullcontext():
        processes.barrier()
        yield


def refuse_if_locked(folder: Path) -> None:
    """Raise RunError at once if another command holds the lock of a folder, before any slow work begins."""
    if is_main_process() and (folder / LOCK_FILE).exists():
        with _lock(folder):
            pass


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    path = folder.resolve() / LOCK_FILE
    if path in _held:
        raise RunError(f"{folder} is in use by this process already: wait until it has finished, or choose another.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}; choose another folder.") from error
    if descriptor is None:
        raise RunError(
            f"{folder} is in use by {_owner(path)}: wait until it has finished, stop it, or choose another folder."
        )
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # before the lock is released, or it could be the file of the next process
        os.close(descriptor)
        with suppress(OSError):
            path.parent.rmdir()


def _open_locked(path: Path) -> int | None:
    """Create, lock and open a lock file; None if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            pass  # the file system has no locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # the process that held the lock has removed this file in the meantime
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
    return descriptor


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_bytes())
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
