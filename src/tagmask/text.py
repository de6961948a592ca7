"""Small helpers for messages to the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def join_names(names: Sequence[str], limit: int) -> str:
    """The first names, "a, b, ..."."""
    return ", ".join(names[:limit]) + ", ..." * (len(names) > limit)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The ending ": did you mean 'cat'?" or, where nothing is near, ": known are cat, cow, ..."."""
    names = list(known)
    lowered = {n.lower(): n for n in reversed(names)}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f": did you mean {lowered[near[0]]!r}?"
    return f": known are {join_names(names, 20)}" if names else ""
