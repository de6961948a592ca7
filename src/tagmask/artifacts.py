"""Reading and writing files atomically: a file that exists is complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, load_file, save

from tagmask.errors import RunError
from tagmask.text import shorten

TEMPORARY_SUFFIX = ".tmp"  # the names of unfinished files end with it
MAX_JSON_BYTES = 2**26  # of a record; parsed, it can take thirty times as much memory
_MAX_JSON_DEPTH = 50

RUN_AGAIN = "run the same `tagmask run` command again, which makes it again"
REMOVE = "remove it, then run the same command again"

T = TypeVar("T")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
        RunError: the file cannot be written (disk full, no permission); nothing is left behind.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")  # of fixed length: `path`'s name may be long
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        remedy = "shorten the image's name" if too_long else "free space or choose another folder"
        raise RunError(f"cannot write {path}: {reason}; {remedy}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` on success, remove it on failure.

    A folder that exists at `path` is replaced.

    Raises:
        RunError: the folder or a file in it cannot be written; `path` is as before.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")  # a killed process leaves it to the next one
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; free space or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path, min_age: float = 0.0) -> None:
    """Remove the temporary files that a killed process left in a folder and its subfolders.

    Args:
        folder: the folder.
        min_age: in seconds; younger files may be those of a process that is still running.
    """
    for file in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError):
            if not min_age or time.time() - file.stat().st_mtime >= min_age:
                file.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises RunError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically. Raises RunError if it cannot be written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_is_file(path: Path, max_bytes: int | None = None) -> None:
    """Check a path before it is opened.

    Raises:
        RunError: it does not exist, is not a regular file (e.g. a named pipe), or is larger than `max_bytes`.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: {RUN_AGAIN}.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): make it readable.") from error
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path} is not a file: {REMOVE}.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise RunError(f"{path} has {status.st_size:,} bytes, which no file of tagmask needs: {REMOVE}.")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a file of limited size.

    Raises:
        RunError: the file does not exist, cannot be read, is not a regular file (e.g. a named pipe) or is larger.
    """
    try:
        check_is_file(path, max_bytes)
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): make it readable.") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of limited size. Raises RunError if it does not exist, is larger or is not JSON."""
    return decode_json(read_bytes(path, max_bytes), str(path))


def decode_json(content: bytes, name: str) -> Any:
    """Return the value in the content of a JSON file. Raises RunError, which calls it `name`, if it is not JSON."""
    try:
        text = content.decode()
        value = json.loads(text)
        _check_depth(value)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a character: no file could store it, no terminal show it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, or nested too deeply
        raise RunError(f"{name} is not JSON ({shorten(str(error))}): {REMOVE}.") from error


def _check_depth(value: Any) -> None:
    """Raise ValueError if a JSON value is nested deeper than any record, because other libraries recurse."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_JSON_DEPTH):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
    if level:
        raise ValueError(f"more than {_MAX_JSON_DEPTH} lists and mappings are nested")


def read_model(path: Path, model: type[T], *, remedy: str = REMOVE, max_bytes: int = MAX_JSON_BYTES) -> T:
    """Read a JSON file as a pydantic model, or as another type that pydantic validates.

    Args:
        path: the file.
        model: the type of the content.
        remedy: what to do if the file is damaged.
        max_bytes: the largest size that the file can have.

    Raises:
        RunError: the file does not exist, or its content is not of the type.
    """
    return _as_model(read_json(path, max_bytes), str(path), model, remedy)


def decode_model(content: bytes, name: str, model: type[T], *, remedy: str = RUN_AGAIN) -> T:
    """Return the content of a JSON file as a pydantic model; see `read_model`. `name` is what messages call it."""
    return _as_model(decode_json(content, name), name, model, remedy)


def _as_model(value: Any, name: str, model: type[T], remedy: str) -> T:
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        reason = shorten(f"{location}: {first['msg']}" if location else first["msg"])
        raise RunError(f"{name} is damaged ({reason}): {remedy}.") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to one safetensors file, atomically. Raises RunError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote. Raises RunError if the file does not exist or is damaged."""
    return read_safetensors(load_file, path)


def decode_arrays(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the arrays in the content of a safetensors file. Raises RunError, which calls it `name`, if damaged."""
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that NumPy does not have
        raise RunError(f"{name} is damaged ({shorten(str(error))}): {RUN_AGAIN}.") from error


def read_array_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype (as safetensors names it, e.g. "F16") and the shape of each array in a file, without its data.

    Raises:
        RunError: the file does not exist or is damaged.
    """

    def read_header(path: Path) -> dict[str, Any]:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (array.get_dtype(), tuple(array.get_shape())) for name, array in slices.items()}

    return read_safetensors(read_header, path)


def read_safetensors(load: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """Read a safetensors file with one of safetensors' functions.

    Raises:
        RunError: the file does not exist or is damaged.
    """
    check_is_file(path)
    try:
        return load(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({shorten(str(error))}): {RUN_AGAIN}.") from error


def digest(value: Any) -> str:
    """Return a short, stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return a short, stable hash of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
