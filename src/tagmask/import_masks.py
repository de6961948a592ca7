"""Corrected masks from annotation tools become the reviewed masks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagmask.corrections.archive import Archive
from tagmask.corrections.formats import load_reader
from tagmask.corrections.known_images import KnownImages
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX, present_classes
from tagmask.review_folder import ReviewFolder
from tagmask.review_log import ReviewState
from tagmask.text import join_first_names, pluralize


@dataclass(frozen=True)
class ImportedMasks:
    """What an import has done.

    Attributes:
        accepted: ids of the images whose masks were unchanged.
        corrected: ids of the images whose masks were changed.
        known: ids of the images whose masks equal their reviewed masks; nothing was recorded for them.
        changed_tags: the class names that a corrected mask shows, by id, where they differ from the tags of the data
            set.
        doubtful: ids of the images whose masks were unchanged, but do not show the tags of the image, which stay.
        unknown: names of images in the file that the run does not have.
        num_polygons: the number of masks with polygons, whose outlines are not exact to a pixel.
    """

    accepted: tuple[str, ...]
    corrected: tuple[str, ...]
    known: tuple[str, ...]
    changed_tags: dict[str, tuple[str, ...]]
    doubtful: tuple[str, ...]
    unknown: tuple[str, ...]
    num_polygons: int

    def __str__(self) -> str:
        """Return the result in sentences."""
        sentences = [
            f"{pluralize(len(self.accepted) + len(self.corrected), 'reviewed mask')}: {len(self.corrected)} corrected, "
            f"{len(self.accepted)} accepted without a change."
        ]
        if self.known:
            sentences.append(f"{pluralize(len(self.known), 'mask')} as reviewed before.")
        if self.changed_tags:
            names = join_first_names(list(self.changed_tags), 3)
            sentences.append(f"{pluralize(len(self.changed_tags), 'image')} with other tags than before: {names}.")
        if self.doubtful:
            names = join_first_names(self.doubtful, 3)
            sentences.append(
                f"{pluralize(len(self.doubtful), 'unchanged mask')} without a class that the image is tagged with, or "
                f"with another one: {names}; the tags stay. Were these masks looked at? (See --only-changed.)"
            )
        if self.num_polygons:
            sentences.append(
                f"{pluralize(self.num_polygons, 'mask')} with polygons, whose outlines are not exact to a pixel."
            )
        if self.unknown:
            names = join_first_names(self.unknown, 3)
            sentences.append(f"{pluralize(len(self.unknown), 'image')} left out, which the run does not have: {names}.")
        return " ".join(sentences)


def import_masks(
    review: ReviewFolder,
    path: Path,
    format: str,
    images: KnownImages,
    *,
    only_changed: bool = False,
    advance: Callable[[int], None] = lambda step: None,
) -> ImportedMasks:
    """Read corrected masks, and record them as reviewed masks: "corrected" if a pixel differs from the run's mask.

    A mask that equals the reviewed mask of its image is not recorded again. The tags of an image change only with its
    mask.

    All masks are read before the first is recorded, so that a damaged file changes nothing. Where a format cannot hold
    ignored pixels, pixels that were ignored in the exported mask and that have no class in the file stay ignored.

    Args:
        review: where the masks are recorded.
        path: a zip archive, a folder or a file.
        format: one of `IMPORT_FORMATS`.
        images: the images and masks of the run.
        only_changed: leave out masks without a change since the export, in place of recording them.
        advance: called with 1 after each recorded image.

    Raises:
        DataError: the file is damaged, does not fit the run, or has no mask of an image of the run.
        RunError: a mask of the run is missing, or a file cannot be written.
    """
    read, archive = load_reader(format), Archive(path)
    names: dict[str, str] = {}
    unknown = []
    for mask in read(archive, images):
        if mask.image_id is None:
            unknown.append(mask.name)
        elif mask.image_id in names:
            raise DataError(
                f"{path} has two masks of {mask.image_id!r} ({names[mask.image_id]}, {mask.name}); remove one of them."
            )
        else:
            names[mask.image_id] = mask.name
    if not names:
        others = f", but of {join_first_names(unknown, 3)}" if unknown else ""
        if format == "label-studio" and not unknown:
            raise DataError(
                f"{path} has no submitted annotation; submit them in Label Studio, and export as JSON, not JSON-MIN."
            )
        raise DataError(f"{path} has no mask of an image of this run{others}; choose the run that it belongs to.")
    accepted: list[str] = []
    corrected: list[str] = []
    known: list[str] = []
    doubtful: list[str] = []
    num_polygons = 0
    changed_tags: dict[str, tuple[str, ...]] = {}
    reviewed = review.read_ground_truth()
    for mask in read(archive, images):
        if mask.image_id is None or mask.labels is None:
            continue
        image_id, run_mask = mask.image_id, images.read_run_mask(mask.image_id)
        exported = review.read_mask(image_id) if image_id in reviewed else run_mask
        labels = mask.labels if mask.keeps_ignored else _with_ignored(mask.labels, exported)
        if np.array_equal(labels, exported):
            if image_id in reviewed:
                known.append(image_id)
                continue
            if only_changed:
                continue
        num_polygons += mask.has_polygons
        tags = _changed_tags(labels, image_id, images)
        is_changed = not np.array_equal(labels, run_mask)
        if tags is not None and is_changed:
            changed_tags[image_id] = tags
        elif tags is not None:
            tags = None
            doubtful.append(image_id)
        state: ReviewState = "corrected" if is_changed else "accepted"
        review.record(image_id, state, labels, source=f"import of {path.name} ({format})", tags=tags)
        (corrected if is_changed else accepted).append(image_id)
        advance(1)
    return ImportedMasks(
        tuple(accepted), tuple(corrected), tuple(known), changed_tags, tuple(doubtful), tuple(unknown), num_polygons
    )


def _with_ignored(labels: np.ndarray, exported: np.ndarray) -> np.ndarray:
    """Return a label map in which background is ignored where the exported mask is ignored."""
    return np.where((labels == 0) & (exported == IGNORE_INDEX), np.uint8(IGNORE_INDEX), labels)


def _changed_tags(labels: np.ndarray, image_id: str, images: KnownImages) -> tuple[str, ...] | None:
    """Return the names of the classes in a corrected mask; None if they are the tags of the image.

    A tagged class without a pixel counts as present if there are ignored pixels, because these can belong to it.
    """
    shown = set(present_classes(labels))
    tags = images.by_id[image_id].tags
    if tags is not None and (labels == IGNORE_INDEX).any():
        shown |= set(tags)
    return None if tags is not None and shown == set(tags) else tuple(images.classes[k - 1] for k in sorted(shown))
