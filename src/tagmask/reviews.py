"""What people have said about the training images: its effect on the images, and on the stages of a run.

Reviewed masks and corrected tags have entries of their own in the key of a stage. If nothing else has changed, the
stage is made again without --redo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagmask.artifacts import digest
from tagmask.data.samples import PngMask, ReviewedMask, Sample, TaggedImages
from tagmask.review_folder import ReviewedImage
from tagmask.stage_folder import MASKS_ENTRY, TAGS_ENTRY
from tagmask.text import pluralize

_NOUNS = {
    MASKS_ENTRY: (("masks", "reviewed mask"), ("rejected", "rejected mask")),
    TAGS_ENTRY: (("images", "tag correction"),),
}
"""What the numbers in the entries of a key count."""


def with_reviews(images: TaggedImages, reviews: Mapping[str, ReviewedImage]) -> TaggedImages:
    """Return the images with their reviewed masks and corrected tags.

    Args:
        images: the training images; the reviews replace reviewed masks that they have.
        reviews: the reviews by image id; those of other images have no effect.
    """
    if not reviews:
        return images
    class_ids = {name: class_id for class_id, name in enumerate(images.classes, 1)}

    def review(sample: Sample) -> Sample:
        if (reviewed := reviews.get(sample.id)) is None:
            return sample
        if reviewed.mask or reviewed.is_rejected:
            sample = replace(sample, reviewed=ReviewedMask(PngMask(reviewed.mask) if reviewed.mask else None))
        if reviewed.tags is None:
            return sample
        tags = tuple(sorted(class_ids[name] for name in reviewed.tags if name in class_ids))
        uncorrected_tags = sample.tags if tags != sample.tags else None
        return replace(sample, tags=tags, uncorrected_tags=uncorrected_tags)

    return replace(images, samples=tuple(review(sample) for sample in images.samples))


def reviewed_mask_paths(images: TaggedImages) -> set[Path]:
    """Return the paths of the reviewed masks of all images."""
    return {sample.reviewed_mask.path for sample in images.samples if sample.reviewed_mask}


def count_reviewed_masks(images: TaggedImages) -> int:
    """Return the number of images with a reviewed mask."""
    return sum(sample.reviewed_mask is not None for sample in images.samples)


def reviewed_masks_entry(images: TaggedImages) -> dict[str, Any] | None:
    """Return the entry of the reviewed masks in the key of a stage, or None if there are none."""
    reviewed = [(sample.id, sample.reviewed.digest) for sample in images.samples if sample.reviewed]
    if not reviewed:
        return None
    num_masks = count_reviewed_masks(images)
    return {"masks": num_masks, "rejected": len(reviewed) - num_masks, "digest": digest(reviewed)}


def corrected_tags_entry(images: TaggedImages) -> dict[str, Any] | None:
    """Return the entry of the corrected tags in the key of a stage, or None if there are none."""
    corrected = [(sample.id, sample.tags) for sample in images.samples if sample.uncorrected_tags is not None]
    return {"images": len(corrected), "digest": digest(corrected)} if corrected else None


def reviews_fingerprint(images: TaggedImages) -> str | None:
    """Return a digest of all reviewed masks and corrected tags, or None if there are none."""
    entries = [reviewed_masks_entry(images), corrected_tags_entry(images)]
    return digest(entries) if any(entries) else None


def describe_changed_reviews(changes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Describe what has changed in the reviews, e.g. "3 more reviewed masks".

    Args:
        changes: the recorded key and the new key of each stage that is made again.
    """
    parts = []
    for entry, nouns in _NOUNS.items():
        changed = [(old.get(entry), new.get(entry)) for old, new in changes if old.get(entry) != new.get(entry)]
        if changed:
            before, now = changed[0]
            described = [_describe_difference(_count(before, name), _count(now, name), noun) for name, noun in nouns]
            parts += list(filter(None, described)) or [f"changed {nouns[0][1]}s"]
    return " and ".join(parts)


def _describe_difference(before: int, now: int, noun: str) -> str:
    """Return e.g. "3 more reviewed masks"; empty if there are as many as before."""
    if before == now:
        return ""
    comparative = "" if not before else "more " if now > before else "fewer "
    return pluralize(abs(now - before), comparative + noun)


def _count(entry: Any, name: str) -> int:
    """Return a number of an entry of a key; 0 if there is no entry, or another program has changed it."""
    count = entry.get(name) if isinstance(entry, dict) else None
    return count if isinstance(count, int) else 0
