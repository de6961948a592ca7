"""The log of the changes of the reviewed masks of a run: one JSON line per change, which is never changed again."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tagmask.errors import RunError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ReviewState = Literal["open", "draft", "rejected", "accepted", "corrected"]


class ReviewEvent(BaseModel):
    """One change: a line of the log.

    Attributes:
        time: ISO 8601, in UTC.
        user: the name of the user's account.
        image: id of the image.
        state: "accepted": a person has seen the mask and left it as it was. "corrected": a person has changed it.
            "draft": a person is changing it, and has not said that it is right. "rejected": the mask is wrong; there is
            no reviewed mask. "open": the image is not reviewed any longer, and has no reviewed mask.
        tags: the class names that the image shows, if the person changed them; None: as in the data set.
        source: what made the change, for example "import of corrected.zip (cvat)".
        before: the file in history/ that holds the reviewed mask from before the change; None if there was none.
        pending: the file beside the log to which the new mask is written first; if it still exists, the change was
            interrupted, and the file has to become the mask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str
    user: str
    image: str
    state: ReviewState
    tags: tuple[str, ...] | None = None
    source: str
    before: str | None = None
    pending: str | None = None

    @field_validator("image", "before", "pending")
    @classmethod
    def _stays_in_its_folder(cls, path: str | None) -> str | None:
        if path is None or path.isalnum():  # quick, for logs of many thousand lines
            return path
        if ".." in PurePath(path).parts or PurePath(path).is_absolute():
            raise ValueError(f"{path!r} leads out of the folder")
        return path

    @property
    def has_mask(self) -> bool:
        """Whether the image has a mask in masks/ after this change."""
        return self.state in ("draft", "accepted", "corrected")

    @property
    def is_ground_truth(self) -> bool:
        """Whether a person has said that this mask is right."""
        return self.state in ("accepted", "corrected")


@dataclass(frozen=True)
class ReviewLog:
    """The log of all changes.

    Attributes:
        path: the file. It is created by the first change.
    """

    path: Path

    def read(self) -> Iterator[ReviewEvent]:
        """Read all changes, oldest first. Raises RunError if the log is damaged.

        A line that a power cut has torn is left out.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if (event := self.parse_line(line, number)) is not None:
                    yield event

    def parse_line(self, line: bytes, number: int) -> ReviewEvent | None:
        """Read one line of the log; None if it is not JSON, because a power cut has torn it.

        Args:
            line: the line, with or without its end.
            number: of the line, from 1, for the error.

        Raises:
            RunError: the line is JSON, but not a change.
        """
        try:
            return ReviewEvent.model_validate_json(line.decode(errors="replace"))
        except ValidationError as error:
            [first, *_] = error.errors()
            if first["type"] == "json_invalid":
                return None
            raise RunError(f"{self.path}, line {number} is damaged ({first['msg']}): remove this line.") from error

    @contextmanager
    def shared_lock(self) -> Iterator[None]:
        """Hold a lock on the log that keeps others from changing it (without effect on Windows)."""
        try:
            with self.path.open("rb") as log:
                if fcntl is not None:
                    with suppress(OSError):  # a file system without locks
                        fcntl.flock(log, fcntl.LOCK_SH)
                yield
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}; make it readable.") from error

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Open the log for appending, and hold a lock on it (without effect on Windows)."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as log:
                if fcntl is not None:
                    with suppress(OSError):  # a file system without locks
                        fcntl.flock(log, fcntl.LOCK_EX)
                yield log
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; free space or choose another folder."
            ) from error

    @staticmethod
    def append(log: IO[bytes], event: ReviewEvent) -> None:
        """Append a line, on a line of its own even if a power cut has torn the last one."""
        is_torn = False
        if log.seek(0, os.SEEK_END):
            log.seek(-1, os.SEEK_END)
            is_torn = log.read(1) != b"\n"
        log.write(b"\n" * is_torn + event.model_dump_json(exclude_none=True).encode() + b"\n")
        log.flush()
        os.fsync(log.fileno())


def user_name() -> str:
    """Return the name of the user's account."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name, as in containers
        return "unknown"
