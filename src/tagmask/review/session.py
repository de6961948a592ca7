"""What the review page can do with a run, without HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import read_reduced_image
from tagmask.errors import RunError
from tagmask.large_images import reduced_size
from tagmask.maps import ResponseMaps
from tagmask.refine.image_threshold import mean_root_num_tags
from tagmask.report.colors import css_color
from tagmask.results import Run
from tagmask.review.cutting import Cutting
from tagmask.review.doubt import Doubt
from tagmask.review.images import ReviewImage, find_images
from tagmask.review.masks_in_review import MasksInReview
from tagmask.review.pictures import check_size, encode_photo, photo_etag, read_or_draw_thumbnail
from tagmask.review.superpixels import SuperpixelSize, compute_superpixels, enlarge
from tagmask.review_log import user_name

COLUMNS = (
    "key", "id", "width", "height", "tags", "state", "doubt", "version", "corrected_tags", "has_ground_truth",
)  # fmt: skip
THUMBNAILS = ".thumbnails"  # in the folder of the reviewed masks

_CACHED_IMAGES = 16  # of at most a megapixel


class ReviewSession:
    """A run that a person reviews. All methods can be called from several threads.

    Args:
        run: the run.
        stage: the stage whose masks are reviewed; None: `Run.recommended_stage`.

    Attributes:
        images: the images by key.
        classes: names of the classes.
        stage: the folder of the stage whose masks are reviewed.
        masks: the masks, and what the person changes.
        doubt: the scores of the images, computed in another process once `doubt.start` is called.

    Raises:
        RunError: the stage makes no masks, or has not made any yet; the log of the review is damaged.
        DataError: the images of the run cannot be listed.
    """

    def __init__(self, run: Run, stage: str | None = None) -> None:
        self._run = run
        self.stage = run.stage_with_masks(stage)
        data = run.images.read()
        self.classes = data.classes
        self.images = find_images(data.samples, self.stage)
        if not self.images:
            raise RunError(
                f"stage {self.stage.name!r} of {run.folder} has no masks yet: run the original command first, or "
                "choose another --stage."
            )
        self.masks = MasksInReview(run.review, self.stage, self.images, self.classes)
        self.doubt = Doubt(run.folder, self.stage.name, run.recipe)
        self._typical_num_tags = mean_root_num_tags(sample.tags for sample in data.samples)
        self._cutting = Cutting.of_run(run, self.stage.name)
        self._crf_lock = threading.Lock()
        self._read_image = lru_cache(_CACHED_IMAGES)(lambda path, stamp: read_reduced_image(path))
        self._superpixels = lru_cache(_CACHED_IMAGES)(
            lambda key, stamp, size: compute_superpixels(self._reduced_image(self.images[key]), size)
        )

    @property
    def max_mask_bytes(self) -> int:
        """The size of the largest mask that the page can send, with the painted pixels."""
        return 2 * max((image.num_pixels for image in self.images.values() if not image.is_too_large), default=0)

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return self._run.folder

    @property
    def num_reviewed(self) -> int:
        """The number of images that are accepted, corrected or rejected."""
        states = Counter(self.masks.saved(image).state for image in self.images.values())
        return states["accepted"] + states["corrected"] + states["rejected"]

    # What the page shows

    def describe(self) -> dict[str, Any]:
        """Return what the page has to know about the run."""
        self.masks.update()
        states = Counter(self.masks.saved(image).state for image in self.images.values())
        colors = [css_color(class_id) for class_id in range(len(self.classes) + 1)]
        return {
            "name": self._run.folder.resolve().name,
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
        self.masks.update()
        doubts = {image_id: score["doubt"] for image_id, score in self.doubt.scores.items()}
        rows = []
        for image in self.images.values():
            version, state, corrected_tags = self.masks.saved(image)
            rows.append([
                image.key, image.id, image.size[1], image.size[0], list(image.sample.tags or ()), state,
                doubts.get(image.id), version, corrected_tags, image.sample.mask is not None,
            ])  # fmt: skip
        return {
            "order": "doubt" if doubts else "name",
            "scoring": self.doubt.progress,
            "scoring_error": self.doubt.error,
            "columns": COLUMNS,
            "images": rows,
        }

    def describe_image(self, image: ReviewImage) -> dict[str, Any]:
        """Return all that is known about one image, without its pixels."""
        self.masks.update()
        saved, tags = self.masks.saved(image), list(image.sample.tags or ())
        edits = None if image.is_too_large else self.masks.read_edits_if_any(image)
        maps, maps_error = None, None
        if self._cutting.maps is not None and not image.is_too_large:
            try:
                loaded = self.load_maps(image)
                grid = list(loaded.maps.shape[1:])
                maps = {"classes": loaded.classes.tolist(), "grid": grid, "background": loaded.background is not None}
            except RunError as error:
                maps_error = str(error)
        return {
            "id": image.id, "key": image.key, "width": image.size[1], "height": image.size[0],
            "tags": tags if saved.tags is None else saved.tags, "data_tags": tags, "version": saved.version,
            "state": saved.state, "maps": maps, "maps_error": maps_error, "score": self.doubt.scores.get(image.id),
            "threshold": self._cutting.expected_threshold(len(tags), self._typical_num_tags),
            "thresholds": edits and edits.thresholds, "too_large": image.is_too_large,
            "has_ground_truth": image.sample.mask is not None,
        }  # fmt: skip

    def load_maps(self, image: ReviewImage) -> ResponseMaps:
        """Read the response maps that the mask of an image was cut from. Raises RunError if there are none."""
        if self._cutting.maps is None:
            raise RunError(f"the run {self._run.folder} has no response maps: add a stage that makes them.")
        return self._cutting.maps.read_maps(image.id, size=image.size, num_classes=len(self.classes))

    def read_photo(self, image: ReviewImage) -> tuple[bytes, str]:
        """Return the photograph as a file, and its media type. Raises DataError if it cannot be read."""
        return encode_photo(image.sample.image, image.size)

    def photo_etag(self, image: ReviewImage) -> str | None:
        """Return a text that changes when the photograph changes; None if that cannot be said."""
        return photo_etag(image.sample.image)

    def read_thumbnail(self, image: ReviewImage) -> bytes:
        """Return the photograph with the newest mask, as a small WebP file. Raises DataError or RunError."""
        self.masks.update()
        return read_or_draw_thumbnail(
            self._run.review.path / THUMBNAILS, image.key, image.sample.image, self.masks.address(image),
            lambda: self.masks.read(image)[1],
        )  # fmt: skip

    # What the page computes

    def cut(self, image: ReviewImage, thresholds: Mapping[int, float], crf: bool) -> np.ndarray:
        """Cut the response maps of an image at one threshold per class.

        Args:
            image: the image.
            thresholds: activation, 0..1, by class id; classes without one do not appear in the mask.
            crf: refine the mask with the dense CRF.

        Returns:
            [H, W] uint8.

        Raises:
            ValueError: there are no maps of a class.
            RunError, DataError: the maps or the image cannot be read.
        """
        maps = self.load_maps(image)
        if unknown := thresholds.keys() - set(maps.classes.tolist()):
            raise ValueError(f"there is no response map of class {min(unknown)}")
        chosen = np.isin(maps.classes, list(thresholds))
        maps = ResponseMaps(maps.classes[chosen], maps.maps[chosen], maps.size)
        values = [thresholds[class_id] for class_id in maps.classes.tolist()]
        if not crf:
            return maps.label_map(values)
        pixels = self._reduced_image(image)
        with self._crf_lock:  # it uses all cores
            return self._cutting.cut(pixels, maps, values)

    def superpixels(self, image: ReviewImage, size: SuperpixelSize) -> np.ndarray:
        """Return the superpixels of an image, [H, W] uint16; of a large one, those of the reduced image."""
        return enlarge(self._superpixels(image.key, file_stamp(image.sample.image), size), image.size)

    def _reduced_image(self, image: ReviewImage) -> np.ndarray:
        """Read an image, a large one at its reduced size: [h, w, 3] uint8."""
        path = image.sample.image
        pixels: np.ndarray = self._read_image(path, file_stamp(path))
        check_size(path, pixels, reduced_size(image.size))
        return pixels
