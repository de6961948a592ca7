"""The folder `review/` of a run: masks that a person has accepted or corrected, and the log of all changes.

run/review/
    log.jsonl                       one line per change, oldest first; nothing is ever removed from it
    masks/<id>.png                  the reviewed mask of an image
    history/<id>/<number>.png       earlier reviewed masks of an image, to which the log refers
    used/<digest>.png               copies of the masks that a run learns from, which no change of a mask touches

The log is the only record: the state of an image is that of its last line. A mask is written before its line.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from types import ModuleType
from typing import IO, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tagmask.artifacts import atomic_write, read_bytes
from tagmask.errors import RunError
from tagmask.label_map import MAX_BYTES, read_label_map, write_label_map

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
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str
    user: str
    image: str
    state: ReviewState
    tags: tuple[str, ...] | None = None
    source: str
    before: str | None = None

    @field_validator("image", "before")
    @classmethod
    def _stays_in_its_folder(cls, path: str | None) -> str | None:
        if path is not None and (".." in PurePath(path).parts or PurePath(path).is_absolute()):
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
class ReviewedImage:
    """What a run takes from the review of one image.

    Attributes:
        mask: the copy of the accepted or corrected mask; None: the person has rejected the mask.
        tags: the class names that the image shows, if the person changed them; None: as in the data set.
    """

    mask: Path | None
    tags: tuple[str, ...] | None


@dataclass(frozen=True)
class ReviewFolder:
    """The folder of the reviewed masks of a run.

    Attributes:
        path: RUN/review. It is created by the first change.

    Example:
        >>> import numpy as np, tempfile
        >>> review = ReviewFolder(Path(tempfile.mkdtemp()) / "review")
        >>> _ = review.record("beach/001", "corrected", np.ones((4, 6), np.uint8), source="by hand")
        >>> review.read_states()["beach/001"].state, int(review.read_mask("beach/001").sum())
        ('corrected', 24)
    """

    path: Path

    @property
    def log_path(self) -> Path:
        """The path of the log."""
        return self.path / "log.jsonl"

    def mask_path(self, image_id: str) -> Path:
        """Return the path of the reviewed mask of an image."""
        return self.path / "masks" / f"{image_id}.png"

    def read_mask(self, image_id: str) -> np.ndarray:
        """Read the reviewed mask of an image, [H, W] uint8. Raises RunError if there is none."""
        path = self.mask_path(image_id)
        if not path.exists():
            raise RunError(f"the image {image_id!r} has no reviewed mask in {self.path}: review it first.")
        return read_label_map(path)

    def read_states(self) -> dict[str, ReviewEvent]:
        """Read the last change of each image whose state is not "open". Raises RunError if the log is damaged."""
        last = {event.image: event for event in self.read_log()}
        return {image_id: event for image_id, event in last.items() if event.state != "open"}

    def read_ground_truth(self) -> dict[str, ReviewEvent]:
        """Read the last change of each image that is accepted or corrected. Raises RunError if the log is damaged."""
        return {image_id: event for image_id, event in self.read_states().items() if event.is_ground_truth}

    def read_reviews(self, *, copy: bool = True) -> dict[str, ReviewedImage]:
        """Read the images that are accepted, corrected or rejected, by id.

        Args:
            copy: copy the masks to used/, so that they stay as they are while a run learns from them. A copy is named
                after its content, so that a mask that was copied before is not copied again.

        Raises:
            RunError: the log is damaged, a mask is missing, or a file cannot be written.
        """
        if not self.log_path.exists():
            return {}
        with self._shared_lock():  # so that each mask is the one that the log speaks of
            states = {image_id: event for image_id, event in self.read_states().items() if event.state != "draft"}
            path = self._copy_mask if copy else self.mask_path
            return {
                image_id: ReviewedImage(path(image_id) if event.is_ground_truth else None, event.tags)
                for image_id, event in states.items()
            }

    def _copy_mask(self, image_id: str) -> Path:
        """Copy the reviewed mask of an image to used/, unless it is there; return the copy."""
        content = read_bytes(self.mask_path(image_id), MAX_BYTES)
        path = self._used_path / f"{hashlib.blake2b(content, digest_size=12).hexdigest()}.png"
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        return path

    def remove_unused_copies(self, used: Collection[Path]) -> None:
        """Remove the copies of masks that a run does not use any longer, and what a killed process left there.

        Args:
            used: the copies that `read_reviews` has returned for the run.
        """
        if self._used_path.is_dir():
            for path in set(self._used_path.iterdir()) - set(used):
                path.unlink(missing_ok=True)

    @property
    def _used_path(self) -> Path:
        return self.path / "used"

    def read_log(self) -> Iterator[ReviewEvent]:
        """Read all changes, oldest first. Raises RunError if the log is damaged.

        A line that a power cut has torn is left out.
        """
        if not self.log_path.exists():
            return
        with self.log_path.open("rb") as file:
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
            raise RunError(f"{self.log_path}, line {number} is damaged ({first['msg']}): remove this line.") from error

    def record(
        self,
        image_id: str,
        state: ReviewState,
        labels: np.ndarray | None,
        *,
        source: str,
        tags: tuple[str, ...] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> ReviewEvent:
        """Write the reviewed mask of an image and a line of the log. The mask from before goes to history/.

        Several processes can do this at the same time.

        Args:
            image_id: id of an image of the run. It becomes a path: check that the run has such an image.
            state: the new state.
            labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored; None if the state is "open" or "rejected".
            source: what makes the change.
            tags: see `ReviewEvent`.
            check: called before anything is written, while no other process can record a change. What it raises keeps
                the change from being recorded.

        Raises:
            ValueError: there is a mask although the state has none, or none although it has one.
            RunError: a file cannot be written.
        """
        event = ReviewEvent(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"), user=user_name(), image=image_id, state=state,
            tags=tags, source=source,
        )  # fmt: skip
        if event.has_mask != (labels is not None):
            raise ValueError(f"the state is {state!r}, and the mask is {'missing' if labels is None else 'given'}")
        with self._locked_log() as log:
            check()
            path = self.mask_path(image_id)
            event = event.model_copy(update={"before": self._keep_in_history(image_id)})
            if labels is None:
                path.unlink(missing_ok=True)
            else:
                write_label_map(path, labels)
            self._append(log, event)
        return event

    def history(self, image_id: str) -> list[ReviewEvent]:
        """Return all changes of an image, oldest first."""
        return [event for event in self.read_log() if event.image == image_id]

    def restore(
        self, image_id: str, number: int, *, source: str = "undo", check: Callable[[], None] = lambda: None
    ) -> ReviewEvent:
        """Return an image to its state after one of its changes; this is a change of its own.

        Args:
            image_id: id of the image.
            number: index in `history`; -1: the state before the first change.
            source: what makes the change.
            check: see `record`.

        Raises:
            IndexError: there is no such change.
            RunError: the earlier mask is missing, or a file cannot be written.
        """
        events = self.history(image_id)
        if not -1 <= number < len(events):
            raise IndexError(f"{image_id!r} has {len(events)} changes, so there is no change {number}")
        state: ReviewState = "open"
        tags: tuple[str, ...] | None = None
        labels: np.ndarray | None = None
        if number >= 0:
            state, tags = events[number].state, events[number].tags
            if events[number].has_mask:
                is_last = number == len(events) - 1
                kept = None if is_last else events[number + 1].before
                path = self.mask_path(image_id) if kept is None else self.path / "history" / kept
                labels = read_label_map(path)
        return self.record(image_id, state, labels, source=source, tags=tags, check=check)

    def _keep_in_history(self, image_id: str) -> str | None:
        """Copy the reviewed mask of an image to history/; return the file there."""
        try:
            content = self.mask_path(image_id).read_bytes()
        except FileNotFoundError:
            return None
        name = f"{image_id}/{uuid.uuid4().hex[:12]}.png"
        with atomic_write(self.path / "history" / name) as temporary:
            temporary.write_bytes(content)
        return name

    @contextmanager
    def _shared_lock(self) -> Iterator[None]:
        """Hold a lock on the log that keeps others from changing it (without effect on Windows)."""
        try:
            with self.log_path.open("rb") as log:
                if fcntl is not None:
                    with suppress(OSError):  # a file system without locks
                        fcntl.flock(log, fcntl.LOCK_SH)
                yield
        except OSError as error:
            raise RunError(f"cannot read {self.log_path}: {error.strerror}; make it readable.") from error

    @contextmanager
    def _locked_log(self) -> Iterator[IO[bytes]]:
        """Open the log for appending, and hold a lock on it (without effect on Windows)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("a+b") as log:
                if fcntl is not None:
                    with suppress(OSError):  # a file system without locks
                        fcntl.flock(log, fcntl.LOCK_EX)
                yield log
        except OSError as error:
            raise RunError(
                f"cannot write {self.log_path}: {error.strerror}; free space or choose another folder."
            ) from error

    @staticmethod
    def _append(log: IO[bytes], event: ReviewEvent) -> None:
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
