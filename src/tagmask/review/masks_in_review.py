"""The masks that a person reviews: reading the newest ones, and recording changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tagmask.errors import RunError
from tagmask.label_map import present_classes, read_label_map
from tagmask.review.changes import Changes
from tagmask.review.edits import Edits, read_edits_if_any, write_edits
from tagmask.review.images import ReviewImage, image_key
from tagmask.review_folder import ReviewFolder
from tagmask.review_log import ReviewEvent, ReviewState
from tagmask.stage_folder import StageFolder

_SOURCE = "review page"
_EDITS = ".edits"  # in the folder of the reviewed masks
_STATE_OF_ACTION: dict[str, ReviewState] = {"reject": "rejected", "open": "open"}


class Conflict(Exception):
    """An image has changed since the page read it.

    Attributes:
        version: its version now.
    """

    def __init__(self, version: int) -> None:
        super().__init__("the image has been changed in another tab or by another program: load it again.")
        self.version = version


class Saved(NamedTuple):
    """The state of an image after a change; `tags` are class ids, None: as in the data set."""

    version: int
    state: ReviewState
    tags: list[int] | None


class MasksInReview:
    """The masks that a person reviews: those of the run, and in their place the drafts and the reviewed masks.

    All methods can be called from several threads, while other programs change the same folder.

    Args:
        review: where the changes are recorded.
        stage: the stage whose masks are reviewed.
        images: the images by key.
        classes: names of the classes.

    Raises:
        RunError: the log of the review is damaged.
    """

    def __init__(
        self, review: ReviewFolder, stage: StageFolder, images: Mapping[str, ReviewImage], classes: Sequence[str]
    ) -> None:
        self._review, self._stage, self._images, self._classes = review, stage, images, classes
        review.finish_interrupted()
        self._changes = Changes(review.log)
        self._changes.update()

    def update(self) -> None:
        """Read what was recorded since the last call. Raises RunError if the log is damaged."""
        self._changes.update()

    def saved(self, image: ReviewImage) -> Saved:
        """Return the state of an image, as of the last `update`."""
        last = self._changes.last(image.id)
        return Saved(self._changes.version(image.id), last.state if last else "open", self._tag_ids(last))

    def address(self, image: ReviewImage) -> str:
        """Return the path of the newest mask of an image, or its place in a shard, as of the last `update`."""
        if self._has_own_mask(image):
            return str(self._review.mask_path(image.id))
        return self._stage.file_address("masks", image.id)

    def _has_own_mask(self, image: ReviewImage) -> bool:
        last = self._changes.last(image.id)
        return last is not None and last.has_mask

    def changed_since(self, number: int) -> dict[str, Any]:
        """Return the changes from a place in the log on; all, if the log has become shorter."""
        self._changes.update()
        events = self._changes.events[:]
        start = number if 0 <= number <= len(events) else 0
        changed = dict.fromkeys(event.image for event in events[start:])
        rows = []
        for image_id in changed:
            if (image := self._images.get(image_key(image_id))) is not None:
                rows.append({"key": image.key, **self.saved(image)._asdict()})
        return {"next": len(events), "changes": rows}

    def read(self, image: ReviewImage, of: str = "current") -> tuple[int, np.ndarray]:
        """Read the mask of an image.

        Args:
            image: the image.
            of: "run": the run's mask. "current": the draft or the reviewed mask, if there is one, else the run's.

        Returns:
            The version of the image, and [H, W] uint8.

        Raises:
            RunError: the mask is missing or damaged.
        """
        self._changes.update()
        version, is_reviewed = self._changes.version(image.id), of == "current" and self._has_own_mask(image)
        try:
            if not is_reviewed:
                return version, self._stage.read_mask(image.id, size=image.size, num_classes=len(self._classes))
            path = self._review.mask_path(image.id)
            return version, read_label_map(path, size=image.size, num_classes=len(self._classes))
        except RunError as error:
            if not is_reviewed:
                raise
            self._changes.update()
            if self._changes.version(image.id) != version:  # it has just been rejected, for example
                return self.read(image, of)
            reason = str(error).rpartition(": ")[0]
            raise RunError(f"{reason}: reopen the image, or restore an earlier state of it.") from error

    def read_edits_if_any(self, image: ReviewImage) -> Edits | None:
        """Read what a person has done to the newest mask of an image; None if that is not known."""
        path = self._edits_path(image)
        if not path.exists():
            return None
        try:
            return read_edits_if_any(path, self.read(image)[1])
        except RunError:  # the mask is damaged, which the page finds out when it reads it
            return None

    def _edits_path(self, image: ReviewImage) -> Path:
        return self._review.path / _EDITS / f"{image.key}.png"

    def save_mask(
        self,
        image: ReviewImage,
        labels: np.ndarray,
        base: int,
        *,
        accept: bool,
        tags: Sequence[int] | None = None,
        edits: Edits | None = None,
    ) -> Saved:
        """Record a mask that a person has drawn.

        Args:
            image: the image.
            labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
            base: the version of the image that the person has seen.
            accept: the mask is right: the image becomes "accepted" or "corrected". Otherwise it becomes a draft.
            tags: the class ids that the image shows; None: unchanged. Classes of an accepted mask are added to them.
            edits: what the person has done, for the next time; None: not known.

        Raises:
            Conflict: the image has another version by now; nothing is recorded.
            RunError: a file cannot be written.
        """
        state: ReviewState = "draft"
        if accept:
            tags = sorted({*(self._tags_of(image) if tags is None else tags), *present_classes(labels)})
            state = "accepted" if self._is_run_mask(image, labels) else "corrected"
        saved = self._record(image, base, state, labels, self._changed_tags(image, tags))
        if edits is not None:
            write_edits(self._edits_path(image), labels, edits)
        return saved

    def change_state(self, image: ReviewImage, action: str, base: int, tags: Sequence[int] | None = None) -> Saved:
        """Change the state of an image without a new mask.

        Args:
            image: the image.
            action: "accept": the newest mask is right. "reject": it is wrong. "open": nobody has reviewed the image.
                "tags": only the tags change.
            base: the version of the image that the person has seen.
            tags: the class ids that the image shows; None: unchanged.

        Raises:
            Conflict: the image has another version by now; nothing is recorded.
            RunError: the mask cannot be read, or a file cannot be written.
        """
        if action == "accept":
            return self.save_mask(image, self.read(image)[1], base, accept=True, tags=tags)
        changed = self._changed_tags(image, tags)
        if action in _STATE_OF_ACTION:
            return self._record(image, base, _STATE_OF_ACTION[action], None, changed)
        labels = self.read(image)[1] if self._has_own_mask(image) else None
        return self._record(image, base, self.saved(image).state, labels, changed)

    def history(self, image: ReviewImage) -> list[dict[str, Any]]:
        """Return all changes of an image, oldest first."""
        self._changes.update()
        return [
            {"number": number, "time": event.time, "user": event.user, "state": event.state, "source": event.source,
             "tags": self._tag_ids(event)}
            for number, event in enumerate(event for event in self._changes.events if event.image == image.id)
        ]  # fmt: skip

    def restore(self, image: ReviewImage, number: int, base: int) -> Saved:
        """Return an image to its state after one of its changes; −1: the state before the first one.

        Raises:
            Conflict: the image has another version by now; nothing is recorded.
            IndexError: there is no such change.
            RunError: the earlier mask is damaged, or a file cannot be written.
        """
        self._review.restore(image.id, number, source=f"{_SOURCE}: undo", check=self._expect(image, base))
        return self._saved_now(image)

    def _record(
        self, image: ReviewImage, base: int, state: ReviewState, labels: np.ndarray | None, tags: tuple[str, ...] | None
    ) -> Saved:
        """Record a change, unless it changes nothing."""
        check = self._expect(image, base)
        if self._is_recorded(image, state, labels, tags):
            check()
        else:
            self._review.record(image.id, state, labels, source=_SOURCE, tags=tags, check=check)
        return self._saved_now(image)

    def _is_recorded(
        self, image: ReviewImage, state: ReviewState, labels: np.ndarray | None, tags: tuple[str, ...] | None
    ) -> bool:
        last = self._changes.last(image.id)
        if state != (last.state if last else "open") or tags != (last.tags if last else None):
            return False
        try:
            return labels is None or np.array_equal(labels, self.read(image)[1])
        except RunError:  # the reviewed mask is damaged
            return False

    def _expect(self, image: ReviewImage, base: int) -> Callable[[], None]:
        """Return a function that raises Conflict if the version of an image is another one."""

        def check() -> None:
            self._changes.update()
            if (version := self._changes.version(image.id)) != base:
                raise Conflict(version)

        return check

    def _saved_now(self, image: ReviewImage) -> Saved:
        self._changes.update()
        return self.saved(image)

    def _is_run_mask(self, image: ReviewImage, labels: np.ndarray) -> bool:
        try:
            return np.array_equal(labels, self.read(image, "run")[1])
        except RunError:  # it is damaged, so the person has drawn another one
            return False

    def _tags_of(self, image: ReviewImage) -> Sequence[int]:
        """Return the tags of an image as the person has corrected them."""
        corrected = self._tag_ids(self._changes.last(image.id))
        return (image.sample.tags or ()) if corrected is None else corrected

    def _changed_tags(self, image: ReviewImage, tags: Sequence[int] | None) -> tuple[str, ...] | None:
        """Return the class names of tags; None if they are those of the data set."""
        if tags is None:
            last = self._changes.last(image.id)
            return last.tags if last else None
        if tuple(sorted(tags)) == image.sample.tags:
            return None
        return tuple(self._classes[class_id - 1] for class_id in sorted(tags))

    def _tag_ids(self, event: ReviewEvent | None) -> list[int] | None:
        """Return the class ids of corrected tags; names that the run does not have are left out."""
        if event is None or event.tags is None:
            return None
        return [class_id for class_id, name in enumerate(self._classes, 1) if name in event.tags]
