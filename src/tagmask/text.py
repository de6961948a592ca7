"""Helpers for the wording of messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def shorten(text: str, max_length: int = 80) -> str:
    """Return a text on one line, without control characters and cut to a length, for error messages.

    Example:
        >>> shorten("a\\n b" + "c" * 100, 10)
        'a bcccc...'
    """
    if len(text) <= max_length and text.isprintable() and " ".join(text.split()) == text:
        return text
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * max_length]).split())
    return line if len(line) <= max_length else line[: max_length - 3] + "..."


def join_first_names(names: Sequence[str], limit: int) -> str:
    """Return the first `limit` names as "a, b, ..."."""
    return ", ".join(names[:limit]) + ", ..." * (len(names) > limit)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name.

    It is ": did you mean 'cat'?" if a known name is similar, else ": choose from cat, cow, ...". It is empty if there
    are no known names.
    """
    names = list(known)
    name = name[:200]  # the comparison takes time with the length
    by_lower_case = {known_name.lower(): known_name for known_name in reversed(names)}
    similar = difflib.get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=0.6)
    if similar:
        return f": did you mean {by_lower_case[similar[0]]!r}?"
    return f": choose from {join_first_names(names, 20)}" if names else ""


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun: "1 image", "2 images", "3 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
