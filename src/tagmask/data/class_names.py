"""Class names: how they are normalized, listed and turned into ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tagmask.data.image_ids import normalize_unicode
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import did_you_mean

BACKGROUND = "background"  # a tag, class folder or first line of a class list with this name means id 0


def normalize_class_name(text: str) -> str:
    """A class name as it is compared: trimmed, in Unicode normal form C."""
    return normalize_unicode(text).strip()


def find_class_list(root: Path | str, given: Path | None) -> Path | None:
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
        name = normalize_class_name(line)
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
