"""Class names and image ids: how they are cleaned, listed and kept apart."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tagmask.data.images import SUFFIXES, is_url
from tagmask.data.samples import did_you_mean
from tagmask.errors import DataError

BACKGROUND = "background"  # no class: a tag, a class folder or the first line of a class list of this name is id 0


def normal(text: str) -> str:
    """Unicode normal form C, in which names are compared: "é" may be one character or two."""
    return unicodedata.normalize("NFC", text)


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def without_suffix(name: str) -> str:
    """Only an image's suffix is one: "v1.2/a.b.jpg" → "v1.2/a.b", and "a.b" stays."""
    return os.path.splitext(name)[0] if suffix(name) in SUFFIXES else name


def unique_ids(names: Sequence[str]) -> list[str]:
    """For each image (relative path, absolute path or URL), a safe relative path that no other has.

    It is the path without suffix; where that is shared, all who share it keep their suffix.
    """
    paths = [_safe_path(name) for name in names]
    ids = [without_suffix(path) for path in paths]
    while (longer := _lengthened(ids, lambda i: paths[i])) != ids:
        ids = longer
    return _lengthened(ids, lambda i: f"{paths[i]}-{hashlib.sha256(names[i].encode()).hexdigest()[:8]}")  # such URLs


def _lengthened(ids: list[str], longer: Callable[[int], str]) -> list[str]:
    """The ids; those that are not unique are replaced."""
    count = Counter(ids)
    return [longer(i) if count[short] > 1 else short for i, short in enumerate(ids)]


def _safe_path(name: str) -> str:
    """A relative path, without scheme and query."""
    if is_url(name):
        name = name.partition("://")[2].partition("?")[0].partition("#")[0]
    return "/".join(part for part in normal(name).split("/") if part not in ("", ".", "..")) or "image"


def clean_name(text: str) -> str:
    """A class name as it is compared: trimmed, in Unicode normal form C."""
    return normal(text).strip()


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without byte order mark.

    Raises:
        DataError: it is missing, or not UTF-8 (the line is named).
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', error)}); correct the path.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not UTF-8; save the file as UTF-8.") from error


def class_list_file(root: Path | str, given: Path | None) -> Path | None:
    """The class list to use: the one given, else classes.txt in the data's own folder, if there is one."""
    own = Path(root) / "classes.txt"
    return given or (own if own.is_file() else None)


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of their ids; empty lines and a first line "background" do not count.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or names a class twice.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name = clean_name(line)
        if not name or (name.casefold() == BACKGROUND and not lines):
            continue
        if name in lines:
            raise DataError(f"{path}, line {number} names {name!r} again, after line {lines[name]}; remove one.")
        lines[name] = number
    if not lines:
        raise DataError(f"{path} names no class; write one class name a line.")
    return tuple(lines)


def class_ids(names: Iterable[str], classes: Sequence[str]) -> tuple[int, ...]:
    """The ids (1-based) of these classes, ascending. Raises DataError for a name that is none of them."""
    ids = set()
    for name in names:
        if name not in classes:
            near = did_you_mean(name, classes)
            raise DataError(f"the tag {name!r} is not one of the classes; correct it or add it to the class list{near}")
        ids.add(classes.index(name) + 1)
    return tuple(sorted(ids))
