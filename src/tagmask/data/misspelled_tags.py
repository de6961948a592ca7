"""Tags that may be misspellings of other tags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

_MIN_RATIO = 10  # a misspelling is at least this many times rarer than the correct name,
_MIN_COUNT = 3  # or it occurs once, and the correct name in at least this many images
_MIN_SIMILARITY = 0.8  # difflib's ratio: one letter in five differs, or two letters are swapped
_MAX_NAMES = 300  # that are compared with as many others: all names of a set that a run accepts (254 classes)
_MIN_LENGTH = 4  # letters; shorter names such as "cat" and "cow" are similar to many others
_MAX_LENGTH = 100


@dataclass(frozen=True)
class MisspelledTag:
    """A tag that may be a misspelling of another tag.

    Attributes:
        name: the tag.
        count: the number of images that have it.
        suggestion: the tag that is probably meant.
        suggestion_count: the number of images that have the latter.
    """

    name: str
    count: int
    suggestion: str
    suggestion_count: int


def find_misspelled_tags(counts: Mapping[str, int]) -> tuple[MisspelledTag, ...]:
    """Find tags that differ from a more frequent tag only in case, plural or separators, or that are rare and similar.

    Args:
        counts: the number of images of each tag.
    """
    names = sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))
    misspelled = []
    num_compared = 0
    first_name_of_form: dict[str, str] = {}
    for name in names:
        suggestion = first_name_of_form.setdefault(_normal_form(name), name)
        if suggestion == name and _MIN_LENGTH <= len(name) <= _MAX_LENGTH:
            min_count = _MIN_COUNT if counts[name] == 1 else _MIN_RATIO * counts[name]
            frequent = [other for other in names[:_MAX_NAMES] if counts[other] >= min_count]
            num_compared += bool(frequent)
            if num_compared > _MAX_NAMES:
                break
            suggestion = next(iter(difflib.get_close_matches(name, frequent, n=1, cutoff=_MIN_SIMILARITY)), name)
        if suggestion != name:
            misspelled.append(MisspelledTag(name, counts[name], suggestion, counts[suggestion]))
    return tuple(misspelled)


def _normal_form(name: str) -> str:
    """Return the name in lower case, with spaces as separators and without a plural "s"."""
    return re.sub(r"[\s_-]+", " ", name.casefold()).removesuffix("s")
