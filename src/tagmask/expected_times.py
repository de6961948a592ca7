"""The times of the stages that a dry run has estimated, kept for the run of the same recipe on the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tagmask.artifacts import read_json, write_json
from tagmask.errors import RunError
from tagmask.formatting import format_duration

_FOLDER = "tagmask/expected-times"  # in the user's cache folder
_SECONDS = TypeAdapter(dict[str, float])


def save_expected_times(key: str, seconds: Mapping[str, float]) -> None:
    """Write the estimated time of each stage and of each other part of a run. Nothing happens if it cannot be written.

    Args:
        key: a digest of all inputs and settings of the run.
        seconds: by stage, in order.
    """
    with suppress(RunError):
        write_json(_path(key), dict(seconds))


def load_expected_times(key: str) -> dict[str, float]:
    """Read the estimated times of a run; empty if there was no dry run of it."""
    try:
        return _SECONDS.validate_python(read_json(_path(key)))
    except (RunError, ValidationError):
        return {}


class TimeLeft:
    """Tells the time left of a run from the estimates of its parts.

    The estimates are corrected by the time that the finished parts have taken, because a dry run is too short to be
    exact, and may have run beside other work.

    Args:
        expected: the estimated seconds of each part of the run, in order; empty if there is no estimate.

    Example:
        >>> left = TimeLeft({"cam": 60, "amn": 600, "the report": 30})
        >>> left.describe("cam")
        ' (about 1 min 0 s; the whole rest of the run about 11 min 30 s)'
        >>> left.finish("cam", 120)
        >>> left.describe("amn")
        ' (about 20 min 0 s; the whole rest of the run about 21 min 0 s)'
        >>> TimeLeft({}).describe("cam")
        ''
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._left = dict(expected)
        self._estimated, self._taken = 0.0, 0.0

    def describe(self, part: str) -> str:
        """Return the time of a part and of the rest of the run, in brackets; empty without an estimate."""
        if part not in self._left:
            return ""
        factor = self._taken / self._estimated if self._estimated else 1.0
        this, rest = (factor * seconds for seconds in (self._left[part], sum(self._left.values())))
        return f" (about {format_duration(this)}; the whole rest of the run about {format_duration(rest)})"

    def skip(self, part: str) -> None:
        """Leave out a part that is done already."""
        self._left.pop(part, None)

    def finish(self, part: str, seconds: float) -> None:
        """Record the time that a part has taken."""
        if part in self._left:
            self._estimated += self._left.pop(part)
            self._taken += seconds


def _path(key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / _FOLDER / f"{key}.json"
