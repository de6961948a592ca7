"""Reading and writing files atomically: a file that exists is complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tagmask.errors import RunError

TEMPORARY_SUFFIX = ".tmp"  # the names of unfinished files end with it


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


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and its subfolders."""
    for file in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises RunError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically. Raises RunError if it cannot be written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError if it does not exist or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: is {path.parent} a tagmask folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not JSON ({error}): remove it, then run the command again.") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to one safetensors file, atomically. Raises RunError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote. Raises RunError if the file does not exist or is damaged."""
    return read_safetensors(load_file, path)


def read_safetensors(load: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """Read a safetensors file with one of safetensors' functions.

    Raises:
        RunError: the file does not exist or is damaged.
    """
    try:
        return load(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: the stage that makes it is not finished; run it again.") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it, then run the command again.") from error


def digest(value: Any) -> str:
    """Return a short, stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
