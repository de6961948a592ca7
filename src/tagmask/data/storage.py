"""Files in a folder or in object storage: list, read a part, and write all at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from tagmask.artifacts import atomic_write
from tagmask.data.images import is_url
from tagmask.data.regular_files import check_regular_file
from tagmask.errors import DataError, StorageError
from tagmask.text import shorten

MAX_FILE_BYTES = 2**40

_OBJECT_STORAGE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")  # files appear complete
_PACKAGES = {
    "s3": 'pip install "tagmask[s3]"', "s3a": 'pip install "tagmask[s3]"', "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs", "az": "pip install adlfs", "abfs": "pip install adlfs", "abfss": "pip install adlfs",
    "hf": "pip install huggingface_hub",
}  # fmt: skip
_VERSION_KEYS = ("ETag", "etag", "generation", "version_id", "LastModified", "last_modified", "mtime", "created")

T = TypeVar("T")


class StoredFile(NamedTuple):
    """A file in a folder or in object storage.

    Attributes:
        url: its path or URL.
        size: in bytes.
        version: a text that changes when the file is replaced.
    """

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The name without the folder."""
        return self.url.rpartition("/")[2]


def local_path(url: str) -> str | None:
    """Return the path of a local file or folder; None if it is at a URL."""
    for prefix in ("file://", "local://"):
        if url.startswith(prefix):
            return url.removeprefix(prefix)
    return None if is_url(url) else url


def join_url(folder: str, name: str) -> str:
    """Return the path or URL of a file in a folder."""
    path = local_path(folder)
    return f"{folder.rstrip('/')}/{name}" if path is None else os.path.join(path, name)


def list_files(folder: str, suffix: str) -> list[StoredFile]:
    """List the files with a suffix in a folder or under a URL, sorted by name; not those in subfolders.

    Returns:
        The files; none if the folder does not exist.

    Raises:
        DataError: the folder cannot be listed, or a package for this kind of URL is missing.
    """
    path = local_path(folder)
    if path is not None:
        return _run(folder, partial(_list_local_files, path, suffix), "be listed", missing=[])
    system, remote = _file_system(folder)

    def list_remote() -> list[StoredFile]:
        system.invalidate_cache()
        return [
            _describe(join_url(folder, info["name"].rpartition("/")[2]), info)
            for info in system.ls(remote, detail=True)
            if info["type"] == "file" and info["name"].endswith(suffix)
        ]

    return sorted(_run(folder, list_remote, "be listed", missing=[]))


def find_file(url: str) -> StoredFile | None:
    """Describe a file; None if it does not exist. Raises DataError if that cannot be found out."""
    path = local_path(url)
    if path is not None:
        return _run(url, partial(_describe_local, path), "be read", missing=None)
    system, remote = _file_system(url)

    def find() -> StoredFile | None:
        system.invalidate_cache(system._parent(remote))
        return _describe(url, system.info(remote))

    return _run(url, find, "be read", missing=None)


def read_range(url: str, start: int, end: int) -> bytes:
    """Read the bytes from `start` to `end` (excluded) of a file. Raises DataError if they cannot be read."""
    path = local_path(url)
    if path is None:
        system, remote = _file_system(url)
        content = _run(url, lambda: system.cat_file(remote, start=start, end=end), "be read")
    else:
        content = _run(url, partial(_read_local_range, path, start, end), "be read")
    if len(content) != end - start:
        raise DataError(f"{url} cannot be read (it has become shorter); make it again.")
    return content


def copy_to_local(url: str, folder: Path) -> str:
    """Return the path of a file; one in object storage is copied to a folder first. Raises DataError."""
    path = local_path(url)
    if path is not None:
        return path
    copy = folder / url.rpartition("/")[2]
    system, remote = _file_system(url)
    _run(url, lambda: system.get_file(remote, str(copy)), "be read")
    return str(copy)


@contextmanager
def write_file(url: str) -> Iterator[Path]:
    """Yield the path of a temporary local file; it appears at the URL, complete, when the block has ended.

    In a folder it is renamed. In object storage it is uploaded by one request, or by several that count only together.

    Raises:
        RunError: a local file cannot be written.
        DataError: the file cannot be uploaded, or this kind of URL does not let files appear when they are complete.
    """
    path = local_path(url)
    if path is not None:
        with atomic_write(Path(path)) as temporary:
            yield temporary
        return
    check_writable(url)
    with TemporaryDirectory(prefix="tagmask-") as folder:
        temporary = Path(folder) / "file"
        yield temporary
        system, remote = _file_system(url)
        _run(url, lambda: system.put_file(str(temporary), remote), "be written")


def is_object_storage(url: str) -> bool:
    """Return whether this is a URL of object storage: it can be listed, and a file appears when it is complete."""
    return url.partition("://")[0] in _OBJECT_STORAGE


def check_writable(url: str) -> None:
    """Raise DataError if no file can be written to this kind of URL, or a package for it is missing."""
    if local_path(url) is not None:
        return
    if not is_object_storage(url):
        raise DataError(f"{url} cannot be written to; choose a folder, or a URL of s3://, gs://, az:// or hf://.")
    _file_system(url)


def _list_local_files(folder: str, suffix: str) -> list[StoredFile]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith("."))
    return [_describe_local(os.path.join(folder, name)) for name in names]


def _describe_local(path: str) -> StoredFile:
    status = check_regular_file(path, MAX_FILE_BYTES)
    return StoredFile(path, status.st_size, str(status.st_mtime_ns))


def _describe(url: str, info: dict[str, Any]) -> StoredFile:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return StoredFile(url, int(info["size"]), version)


def _read_local_range(path: str, start: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        command = _PACKAGES.get(url.partition("://")[0])
        advice = f"install it with {command}" if command else "install it"
        raise DataError(f"{url} needs a package that is missing ({shorten(str(error))}); {advice}.") from error
    except Exception as error:  # credentials, unknown kinds of URLs, ...
        raise DataError(f"{url} cannot be opened ({shorten(str(error))}); correct the address.") from error


_REQUIRED: Any = object()


def _run(url: str, call: Callable[[], T], action: str, missing: Any = _REQUIRED) -> T:
    """Return the result of a call; every exception becomes a DataError, unless a file may be missing.

    Where a file is in object storage and not missing, it is a StorageError.
    """
    try:
        return call()
    except DataError:
        raise
    except Exception as error:  # remote file systems raise exceptions of their own
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if missing is not _REQUIRED:
                return missing
            raise DataError(f"{url} does not exist; correct the address, or make it again.") from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        advice = "free space" if full else "check the address, the permissions and the network"
        message = f"{url} cannot {action} ({shorten(str(reason))}); {advice}, then run the same command again."
        raise (DataError if local_path(url) else StorageError)(message) from error
