"""Tag names that may be slips of the pen for other tags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

_RARER = 10  # a slip is at least this many times rarer than the name that was meant,
_OFTEN = 3  # or it is made once, and the name that was meant is in this many images
_LIKENESS = 0.8  # of difflib: one letter in five, or two swapped
_SHORTEST = 4  # letters; "cat" and "cow" are too near to everything


@dataclass(frozen=True)
class MisspelledTag:
    """A tag that may mean another one, and in how many images each is."""

    name: str
    count: int
    meant: str
    meant_count: int


def misspelled_tags(counts: Mapping[str, int]) -> tuple[MisspelledTag, ...]:
    """Names that differ from a more frequent one in case, plural or separators, or are rare and misspelt like one.

    Args:
        counts: images per tag.
    """
    used = sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))
    found = []
    by_form: dict[str, str] = {}
    for name in used:
        meant = by_form.setdefault(_form(name), name)
        if meant == name and len(name) >= _SHORTEST:
            enough = _OFTEN if counts[name] == 1 else _RARER * counts[name]
            frequent = [other for other in used if counts[other] >= enough]
            meant = next(iter(difflib.get_close_matches(name, frequent, n=1, cutoff=_LIKENESS)), name)
        if meant != name:
            found.append(MisspelledTag(name, counts[name], meant, counts[meant]))
    return tuple(found)


def _form(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).removesuffix("s")
