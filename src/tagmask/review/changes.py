"""Following the log of the reviewed masks, to which several tabs, servers and imports can append."""

from __future__ import annotations

import threading
from collections import Counter

from tagmask.errors import RunError
from tagmask.review_log import ReviewEvent, ReviewLog


class Changes:
    """All changes in a log, as of the last `update`.

    Args:
        log: the log of a run.

    Attributes:
        events: the changes, oldest first.
    """

    def __init__(self, log: ReviewLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.events: list[ReviewEvent] = []
        self._last: dict[str, ReviewEvent] = {}
        self._versions: Counter[str] = Counter()
        self._inode, self._offset, self._num_lines = 0, 0, 0

    def update(self) -> None:
        """Read what was appended to the log since the last call. Raises RunError if the log is damaged.

        A last line without its end is read if it is complete, and else once it is.
        """
        with self._lock:
            try:
                status = self._log.path.stat()
            except FileNotFoundError:
                self._clear()
                return
            except OSError as error:
                raise RunError(f"{self._log.path} cannot be read ({error.strerror}): make it readable.") from error
            if status.st_ino != self._inode or status.st_size < self._offset:  # someone has edited the file
                self._clear()
                self._inode = status.st_ino
            if status.st_size > self._offset:
                self._read()

    def _read(self) -> None:
        with self._log.path.open("rb") as file:
            file.seek(self._offset)
            *lines, rest = file.read().split(b"\n")
        for line in lines:
            event = self._log.parse_line(line, self._num_lines + 1)
            self._offset += len(line) + 1
            self._num_lines += 1
            if event is not None:
                self._append(event)
        if rest and (event := self._log.parse_line(rest, self._num_lines + 1)) is not None:
            self._offset += len(rest)
            self._append(event)

    def _append(self, event: ReviewEvent) -> None:
        self.events.append(event)
        self._last[event.image] = event
        self._versions[event.image] += 1

    def version(self, image_id: str) -> int:
        """Return the number of changes of an image."""
        return self._versions[image_id]

    def last(self, image_id: str) -> ReviewEvent | None:
        """Return the last change of an image; None if there is none."""
        return self._last.get(image_id)
