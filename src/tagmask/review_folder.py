"""The folder `review/` of a run: masks that a person has accepted or corrected, and the log of all changes.

run/review/
    log.jsonl                       one line per change, oldest first; nothing is ever removed from it
    masks/<id>.png                  the reviewed mask of an image
    history/<id>/<number>.png       earlier reviewed masks of an image, to which the log refers
    used/<digest>.png               copies of the masks that a run learns from, which no change of a mask touches

The log is the only record: the state of an image is that of its last line. A new mask is first written beside the log
(pending-*.png), then its line, and then the file becomes the mask. If a process is killed in between, the next one
finishes the change if it has its line, and drops it if not.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tagmask.artifacts import atomic_write, read_bytes
from tagmask.errors import RunError
from tagmask.label_map import MAX_BYTES, read_label_map, write_label_map
from tagmask.review_log import ReviewEvent, ReviewLog, ReviewState, user_name


@dataclass(frozen=True)
class ReviewedImage:
    """What a run takes from the review of one image.

    Attributes:
        mask: the accepted or corrected mask, if there is one.
        is_rejected: whether the person has rejected the mask of the run.
        tags: the class names that the image shows, if the person changed them; None: as in the data set.
    """

    mask: Path | None = None
    is_rejected: bool = False
    tags: tuple[str, ...] | None = None


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
    def log(self) -> ReviewLog:
        """The log of all changes."""
        return ReviewLog(self.log_path)

    @property
    def log_path(self) -> Path:
        """The path of the log."""
        return self.path / "log.jsonl"

    def mask_path(self, image_id: str) -> Path:
        """Return the path of the reviewed mask of an image."""
        return self.path / "masks" / f"{image_id}.png"

    def read_mask(self, image_id: str) -> np.ndarray:
        """Read the reviewed mask of an image, [H, W] uint8. Raises RunError if there is none."""
        self.finish_interrupted()
        path = self.mask_path(image_id)
        if not path.exists():
            raise RunError(f"the image {image_id!r} has no reviewed mask in {self.path}: review it first.")
        return read_label_map(path)

    def read_states(self) -> dict[str, ReviewEvent]:
        """Read the last change of each image whose state is not "open". Raises RunError if the log is damaged."""
        self.finish_interrupted()
        last = {event.image: event for event in self.log.read()}
        return {image_id: event for image_id, event in last.items() if event.state != "open"}

    def read_ground_truth(self) -> dict[str, ReviewEvent]:
        """Read the last change of each image that is accepted or corrected. Raises RunError if the log is damaged."""
        return {image_id: event for image_id, event in self.read_states().items() if event.is_ground_truth}

    def read_reviews(self, *, copy: bool = True) -> dict[str, ReviewedImage]:
        """Read the images that are accepted, corrected or rejected, or whose tags are corrected, by id.

        A draft has no effect: the tags are those from before it.

        Args:
            copy: copy the masks to used/, so that they stay as they are while a run learns from them. A copy is named
                after its content, so that a mask that was copied before is not copied again.

        Raises:
            RunError: the log is damaged, a mask is missing, or a file cannot be written.
        """
        if not self.log.path.exists():
            return {}
        self.finish_interrupted()
        with self.log.shared_lock():  # so that each mask is the one that the log speaks of
            last: dict[str, ReviewEvent] = {}
            tags: dict[str, tuple[str, ...] | None] = {}
            for event in self.log.read():
                last[event.image] = event
                if event.state != "draft":
                    tags[event.image] = event.tags
            path = self._copy_mask if copy else self.mask_path
            reviews = {
                image_id: ReviewedImage(
                    path(image_id) if event.is_ground_truth else None, event.state == "rejected", tags.get(image_id)
                )
                for image_id, event in last.items()
            }
        return {image_id: review for image_id, review in reviews.items() if review != ReviewedImage()}

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
        with self.log.locked() as log:
            self._finish_interrupted()
            check()
            pending = None if labels is None else self._write_pending(labels)
            event = event.model_copy(update={"before": self._keep_in_history(image_id), "pending": pending})
            self.log.append(log, event)
            if pending is None:
                self.mask_path(image_id).unlink(missing_ok=True)
            else:
                self._replace_mask(self.path / pending, image_id)
        return event

    def finish_interrupted(self) -> None:
        """Finish a change whose process was killed after it wrote the line of the log. Raises RunError if it cannot."""
        if any(self._pending_files()):
            with self.log.locked():
                self._finish_interrupted()

    def _finish_interrupted(self) -> None:
        for path in self._pending_files():
            images = [event.image for event in self.log.read() if event.pending == path.name]
            self._replace_mask(path, images[-1]) if images else path.unlink(missing_ok=True)

    def _pending_files(self) -> list[Path]:
        return [*self.path.glob("pending-*.png")]

    def _write_pending(self, labels: np.ndarray) -> str:
        """Write a mask beside the log, surely to disk; return its name."""
        path = self.path / f"pending-{uuid.uuid4().hex[:12]}.png"
        write_label_map(path, labels)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return path.name

    def _replace_mask(self, pending: Path, image_id: str) -> None:
        path = self.mask_path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(pending, path)

    def history(self, image_id: str) -> list[ReviewEvent]:
        """Return all changes of an image, oldest first."""
        return [event for event in self.log.read() if event.image == image_id]

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
        self.finish_interrupted()
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
