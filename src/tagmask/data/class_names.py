"""Class names: normalization, class lists, and class ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tagmask.data.image_ids import normalize_unicode
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import did_you_mean, shorten

MAX_HINTS = 100  # of a table: a person reads the first ones

BACKGROUND = "background"  # a tag, class folder or first line of a class list with this name stands for id 0


def normalize_class_name(text: str) -> str:
    """Return a class name without surrounding spaces, in Unicode normal form C."""
    return normalize_unicode(text).strip()


def find_class_list(root: Path | str, class_list: Path | None) -> Path | None:
    """Return the file of class names: `class_list`, or else `root`/classes.txt, or None if neither exists."""
    default = Path(root) / "classes.txt"
    return class_list or (default if default.is_file() else None)


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read class names, one per line, in the order of their ids.

    Empty lines are ignored, and so is "background" as the first name.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or names a class twice.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name = normalize_class_name(line)
        if not name or (name.casefold() == BACKGROUND and not lines):
            continue
        if name in lines:
            raise DataError(f"{path}, line {number} repeats {shorten(name)!r} of line {lines[name]}; remove one.")
        lines[name] = number
    if not lines:
        raise DataError(f"{path} names no class; write one class name per line.")
    return tuple(lines)


def class_ids(names: Iterable[str], classes: Sequence[str], *, with_hint: bool = True) -> tuple[int, ...]:
    """Return the ids (1-based) of class names, ascending.

    Args:
        names: the names.
        classes: all class names.
        with_hint: whether the error suggests a similar class, which takes a few milliseconds.

    Raises:
        DataError: a name is not one of the classes.
    """
    ids = set()
    for name in names:
        if name not in classes:
            hint = did_you_mean(name, classes) if with_hint else ""
            raise DataError(
                f"the tag {shorten(name)!r} is not one of the classes; correct it or add it to the class list{hint}"
            )
        ids.add(classes.index(name) + 1)
    return tuple(sorted(ids))
