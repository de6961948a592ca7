"""What the review page can do with a run, without HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import read_reduced_image
from tagmask.errors import RunError
from tagmask.label_map import present_classes, read_label_map
from tagmask.maps import ResponseMaps
from tagmask.refine.image_threshold import mean_root_num_tags
from tagmask.report.colors import css_color
from tagmask.results import Run
from tagmask.review.changes import Changes
from tagmask.review.cutting import Cutting
from tagmask.review.doubt import Doubt
from tagmask.review.images import ReviewImage, find_images, image_key
from tagmask.review.pictures import encode_photo, photo_etag, read_or_draw_thumbnail
from tagmask.review.superpixels import SuperpixelSize, compute_superpixels, enlarge
from tagmask.review_folder import ReviewEvent, ReviewState, user_name

COLUMNS = (
    "key", "id", "width", "height", "tags", "state", "doubt", "version", "corrected_tags", "has_ground_truth",
)  # fmt: skip
THUMBNAILS = ".thumbnails"  # in the folder of the reviewed masks

_SOURCE = "review page"
_CACHED_IMAGES = 16  # of at most a megapixel
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


class ReviewSession:
    """A run that a person reviews. All methods can be called from several threads.

    Args:
        run: the run.
        stage: the stage whose masks are reviewed; None: `Run.recommended_stage`.

    Attributes:
        images: the images by key.
        doubt: the scores of the images, computed in another process once `doubt.start` is called.

    Raises:
        RunError: the stage makes no masks, or has not made any yet; the log of the review is damaged.
        DataError: the images of the run cannot be listed.
    """

    def __init__(self, run: Run, stage: str | None = None) -> None:
        self.run = run
        self.review = run.review
        self.stage = run.stage_with_masks(stage)
        data = run.images.read()
        self.classes = data.classes
        self.num_images_of_run = len(data)
        self.images = find_images(data.samples, self.stage)
        if not self.images:
            raise RunError(
                f"stage {self.stage.name!r} of {run.folder} has no masks yet: run the original command first, or "
                "choose another --stage."
            )
        self.changes = Changes(self.review)
        self.changes.update()
        self.doubt = Doubt(run.folder, self.stage.name, run.recipe)
        self._typical_num_tags = mean_root_num_tags(sample.tags for sample in data.samples)
        self._cutting = Cutting.of_run(run, self.stage.name)
        self._crf_lock = threading.Lock()
        self._read_image = lru_cache(_CACHED_IMAGES)(lambda path, stamp: read_reduced_image(path))
        self._superpixels = lru_cache(_CACHED_IMAGES)(
            lambda path, stamp, size: compute_superpixels(self._read_image(path, stamp), size)
        )

    @property
    def max_mask_bytes(self) -> int:
        """The size of the largest mask that the page can send."""
        return max((image.num_pixels for image in self.images.values() if not image.is_too_large), default=0)

    # What the page shows

    def describe(self) -> dict[str, Any]:
        """Return what the page has to know about the run."""
        self.changes.update()
        states = Counter(self._state(image) for image in self.images.values())
        colors = [css_color(class_id) for class_id in range(len(self.classes) + 1)]
        return {
            "name": self.run.folder.resolve().name,
            "stage": self.stage.name,
            "classes": [{"id": k, "name": name, "color": colors[k]} for k, name in enumerate(self.classes, 1)],
            "threshold": self._cutting.threshold and self._cutting.threshold.threshold,
            "has_maps": self._cutting.maps is not None,
            "num_images": len(self.images),
            "user": user_name(),
            "states": dict(states),
        }

    def list_images(self) -> dict[str, Any]:
        """Return one row per image, in the order of the data set."""
        self.changes.update()
        doubts = {image_id: score["doubt"] for image_id, score in self.doubt.scores.items()}
        rows = []
        for image in self.images.values():
            tags = list(image.sample.tags or ())
            last = self.changes.last(image.id)
            rows.append([
                image.key, image.id, image.size[1], image.size[0], tags, last.state if last else "open",
                doubts.get(image.id), self.changes.version(image.id), self._tag_ids(last),
                image.sample.mask is not None,
            ])  # fmt: skip
        order = "doubt" if doubts else "name"
        return {"order": order, "scoring": self.doubt.progress, "columns": COLUMNS, "images": rows}

    def changes_since(self, number: int) -> dict[str, Any]:
        """Return the changes from a place in the log on; all, if the log has become shorter."""
        self.changes.update()
        events = self.changes.events[:]
        start = number if 0 <= number <= len(events) else 0
        changed = dict.fromkeys(event.image for event in events[start:])
        rows = []
        for image_id in changed:
            if (image := self.images.get(image_key(image_id))) is not None:
                rows.append({"key": image.key, **self._saved(image)._asdict()})
        return {"next": len(events), "changes": rows}

    def describe_image(self, image: ReviewImage) -> dict[str, Any]:
        """Return all that is known about one image, without its pixels."""
        self.changes.update()
        saved, tags = self._saved(image), image.sample.tags or ()
        maps, maps_error = None, None
        if self._cutting.maps is not None and not image.is_too_large:
            try:
                loaded = self.load_maps(image)
                grid = list(loaded.maps.shape[1:])
                maps = {"classes": loaded.classes.tolist(), "grid": grid, "background": loaded.background is not None}
            except RunError as error:
                maps_error = str(error)
        return {
            "id": image.id, "key": image.key, "width": image.size[1], "height": image.size[0], "tags": list(tags),
            "corrected_tags": saved.tags, "version": saved.version, "state": saved.state, "maps": maps,
            "maps_error": maps_error, "score": self.doubt.scores.get(image.id),
            "threshold": self._cutting.expected_threshold(len(tags), self._typical_num_tags),
            "too_large": image.is_too_large, "has_ground_truth": image.sample.mask is not None,
        }  # fmt: skip

    def read_mask(self, image: ReviewImage, of: str = "current") -> tuple[int, np.ndarray]:
        """Read the mask of an image.

        Args:
            image: the image.
            of: "run": the run's mask. "current": the draft or the reviewed mask, if there is one, else the run's.

        Returns:
            The version of the image, and [H, W] uint8.

        Raises:
            RunError: the mask is missing or damaged.
        """
        self.changes.update()
        version, last = self.changes.version(image.id), self.changes.last(image.id)
        is_reviewed = of == "current" and last is not None and last.has_mask
        path = (self.review if is_reviewed else self.stage).mask_path(image.id)
        try:
            return version, read_label_map(path, size=image.size, num_classes=len(self.classes))
        except RunError as error:
            if not is_reviewed:
                raise
            reason = str(error).rpartition(": ")[0]
            raise RunError(f"{reason}: reopen the image, or restore an earlier state of it.") from error

    def load_maps(self, image: ReviewImage) -> ResponseMaps:
        """Read the response maps that the mask of an image was cut from. Raises RunError if there are none."""
        if self._cutting.maps is None:
            raise RunError(f"the run {self.run.folder} has no response maps: add a stage that makes them.")
        path = self._cutting.maps.maps_path(image.id)
        return ResponseMaps.load(path, size=image.size, num_classes=len(self.classes))

    def read_photo(self, image: ReviewImage) -> tuple[bytes, str]:
        """Return the photograph as a file, and its media type. Raises DataError if it cannot be read."""
        return encode_photo(image.sample.image)

    def photo_etag(self, image: ReviewImage) -> str | None:
        """Return a text that changes when the photograph changes; None if that cannot be said."""
        return photo_etag(image.sample.image)

    def read_thumbnail(self, image: ReviewImage) -> bytes:
        """Return the photograph with the newest mask, as a small WebP file. Raises DataError or RunError."""
        self.changes.update()
        last = self.changes.last(image.id)
        folder = self.review if last is not None and last.has_mask else self.stage
        return read_or_draw_thumbnail(
            self.review.path / THUMBNAILS, image.key, image.sample.image, folder.mask_path(image.id),
            lambda: self.read_mask(image)[1],
        )  # fmt: skip

    # What the page computes

    def cut(self, image: ReviewImage, thresholds: Mapping[int, float], crf: bool) -> np.ndarray:
        """Cut the response maps of an image at one threshold per class.

        Args:
            image: the image.
            thresholds: activation, 0..1, by class id, of all classes of the maps.
            crf: refine the mask with the dense CRF.

        Returns:
            [H, W] uint8.

        Raises:
            ValueError: a class of the maps has no threshold.
            RunError, DataError: the maps or the image cannot be read.
        """
        maps = self.load_maps(image)
        if missing := [class_id for class_id in maps.classes.tolist() if class_id not in thresholds]:
            raise ValueError(f"there is no threshold for class {missing[0]}")
        values = [thresholds[class_id] for class_id in maps.classes.tolist()]
        if not crf:
            return maps.label_map(values)
        pixels = self._image(image)
        with self._crf_lock:  # it uses all cores
            return self._cutting.cut(pixels, maps, values)

    def superpixels(self, image: ReviewImage, size: SuperpixelSize) -> np.ndarray:
        """Return the superpixels of an image, [H, W] uint16; of a large one, those of the reduced image."""
        path = image.sample.image
        return enlarge(self._superpixels(path, file_stamp(path), size), image.size)

    def _image(self, image: ReviewImage) -> np.ndarray:
        """Read an image, a large one at its reduced size: [h, w, 3] uint8."""
        path = image.sample.image
        pixels: np.ndarray = self._read_image(path, file_stamp(path))
        return pixels

    # What the page changes

    def save_mask(
        self, image: ReviewImage, labels: np.ndarray, base: int, *, accept: bool, tags: Sequence[int] | None = None
    ) -> Saved:
        """Record a mask that a person has drawn.

        Args:
            image: the image.
            labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
            base: the version of the image that the person has seen.
            accept: the mask is right: the image becomes "accepted" or "corrected". Otherwise it becomes a draft.
            tags: the class ids that the image shows; None: unchanged. Classes of an accepted mask are added to them.

        Raises:
            Conflict: the image has another version by now; nothing is recorded.
            RunError: a file cannot be written.
        """
        if not accept:
            return self._record(image, base, "draft", labels, self._changed_tags(image, tags))
        shown = set(self._tags_of(image) if tags is None else tags) | set(present_classes(labels))
        state: ReviewState = "accepted" if self._is_run_mask(image, labels) else "corrected"
        return self._record(image, base, state, labels, self._changed_tags(image, sorted(shown)))

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
            return self.save_mask(image, self.read_mask(image)[1], base, accept=True, tags=tags)
        changed = self._changed_tags(image, tags)
        if action in _STATE_OF_ACTION:
            return self._record(image, base, _STATE_OF_ACTION[action], None, changed)
        last = self.changes.last(image.id)
        labels = self.read_mask(image)[1] if last is not None and last.has_mask else None
        return self._record(image, base, self._state(image), labels, changed)

    def history(self, image: ReviewImage) -> list[dict[str, Any]]:
        """Return all changes of an image, oldest first."""
        return [
            {"number": number, "time": event.time, "user": event.user, "state": event.state, "source": event.source,
             "tags": self._tag_ids(event)}
            for number, event in enumerate(self.review.history(image.id))
        ]  # fmt: skip

    def restore(self, image: ReviewImage, number: int, base: int) -> Saved:
        """Return an image to its state after one of its changes; −1: the state before the first one.

        Raises:
            Conflict: the image has another version by now; nothing is recorded.
            IndexError: there is no such change.
            RunError: the earlier mask is damaged, or a file cannot be written.
        """
        self.review.restore(image.id, number, source=f"{_SOURCE}: undo", check=self._expect(image, base))
        return self._saved_now(image)

    def _record(
        self, image: ReviewImage, base: int, state: ReviewState, labels: np.ndarray | None, tags: tuple[str, ...] | None
    ) -> Saved:
        self.review.record(image.id, state, labels, source=_SOURCE, tags=tags, check=self._expect(image, base))
        return self._saved_now(image)

    def _expect(self, image: ReviewImage, base: int) -> Callable[[], None]:
        """Return a function that raises Conflict if the version of an image is another one."""

        def check() -> None:
            self.changes.update()
            if (version := self.changes.version(image.id)) != base:
                raise Conflict(version)

        return check

    def _saved_now(self, image: ReviewImage) -> Saved:
        self.changes.update()
        return self._saved(image)

    def _saved(self, image: ReviewImage) -> Saved:
        last = self.changes.last(image.id)
        return Saved(self.changes.version(image.id), self._state(image), self._tag_ids(last))

    def _state(self, image: ReviewImage) -> ReviewState:
        last = self.changes.last(image.id)
        return last.state if last else "open"

    def _is_run_mask(self, image: ReviewImage, labels: np.ndarray) -> bool:
        try:
            return np.array_equal(labels, self.read_mask(image, "run")[1])
        except RunError:  # it is damaged, so the person has drawn another one
            return False

    def _tags_of(self, image: ReviewImage) -> Sequence[int]:
        """Return the tags of an image as the person has corrected them."""
        corrected = self._tag_ids(self.changes.last(image.id))
        return (image.sample.tags or ()) if corrected is None else corrected

    def _changed_tags(self, image: ReviewImage, tags: Sequence[int] | None) -> tuple[str, ...] | None:
        """Return the class names of tags; None if they are those of the data set."""
        if tags is None:
            last = self.changes.last(image.id)
            return last.tags if last else None
        if tuple(sorted(tags)) == image.sample.tags:
            return None
        return tuple(self.classes[class_id - 1] for class_id in sorted(tags))

    def _tag_ids(self, event: ReviewEvent | None) -> list[int] | None:
        """Return the class ids of corrected tags; names that the run does not have are left out."""
        if event is None or event.tags is None:
            return None
        return [class_id for class_id, name in enumerate(self.classes, 1) if name in event.tags]
