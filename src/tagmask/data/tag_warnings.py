"""Warnings about tags from which no network can learn the classes well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tagmask.data.samples import Sample, TaggedImages
from tagmask.text import join_first_names, pluralize, shorten

MIN_IMAGES = 50  # of a set: with fewer, masks are a first impression only
MIN_IMAGES_PER_CLASS = 10
MAX_CLASS_FRACTION = 0.9  # a class in more of the images has almost no images without it to be compared with
MIN_OVERLAP = 0.95  # intersection over union of the images of two classes that "always" occur together

_MAX_NAMES = 10


def tag_warnings(images: TaggedImages) -> list[str]:
    """Return warnings about the tags of a set of images, each a sentence that ends with what to do.

    They name classes in (nearly) every image, classes that (nearly) always occur together, classes with few or no
    images, images without tags, and sets with few images. Files are not opened.

    Args:
        images: the training images. Images whose tags are not known are ignored. Images without any tag are an error
            of a run, so they have no warnings.
    """
    tagged = [sample for sample in images.samples if sample.tags is not None]
    if not any(sample.tags for sample in tagged):
        return []  # an error, not a warning
    co_occurrence = count_co_occurrence(tagged, len(images.classes))
    classes = [shorten(name) for name in images.classes]
    counts = dict(zip(classes, co_occurrence.diagonal().tolist(), strict=True))
    return [
        *_warn_frequent_classes(counts, len(tagged)),
        *_warn_inseparable_classes(classes, co_occurrence, len(tagged)),
        *_warn_rare_classes(counts),
        *_warn_untagged(tagged),
        *_warn_few_images(len(images)),
    ]


def count_co_occurrence(samples: Iterable[Sample], num_classes: int) -> np.ndarray:
    """Return the number of images that show both classes, [K, K] int64; the diagonal counts the images of a class."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    for tags, count in Counter(sample.tags for sample in samples).items():
        ids = np.array(tags or (), int) - 1
        counts[np.ix_(ids, ids)] += count
    return counts


def _warn_frequent_classes(counts: dict[str, int], num_images: int) -> Iterator[str]:
    frequent = [name for name, count in counts.items() if count >= MAX_CLASS_FRACTION * num_images]
    if frequent:
        others = "" if len(counts) == 1 else ", or leave it out by naming the other classes with --classes"
        yield (
            f"(nearly) every image shows {_with_counts(frequent, counts, num_images)}: response maps cannot find a "
            f"class if almost no image lacks it, so add images without it{others}."
        )


def _warn_inseparable_classes(classes: Sequence[str], co_occurrence: np.ndarray, num_images: int) -> Iterator[str]:
    counts = co_occurrence.diagonal()
    union = counts[:, None] + counts[None] - co_occurrence
    together = np.triu((co_occurrence >= MIN_OVERLAP * union) & (co_occurrence > 1), 1)
    together &= ~((counts >= MAX_CLASS_FRACTION * num_images)[:, None])  # those have a warning of their own
    pairs = [
        f"{classes[i]} and {classes[j]} (together in {co_occurrence[i, j]:,} of {union[i, j]:,} images)"
        for i, j in np.argwhere(together).tolist()
    ]
    if pairs:
        yield (
            f"classes (nearly) always occur together: {join_first_names(pairs, _MAX_NAMES)}: tags cannot tell them "
            "apart, so add images that show only one of them, or give both the same tag."
        )


def _warn_rare_classes(counts: dict[str, int]) -> Iterator[str]:
    missing = [name for name, count in counts.items() if count == 0]
    if missing:
        yield f"there is no image of {join_first_names(missing, _MAX_NAMES)}: add images of them, or remove the class."
    rare = [name for name, count in counts.items() if 0 < count < MIN_IMAGES_PER_CLASS]
    if rare:
        yield (
            f"there are fewer than {MIN_IMAGES_PER_CLASS} images of {_with_counts(rare, counts)}: add images of them, "
            "or leave them out by naming the other classes with --classes."
        )


def _warn_untagged(tagged: Sequence[Sample]) -> Iterator[str]:
    num_untagged = sum(not sample.tags for sample in tagged)
    if num_untagged:
        count = "1 image has" if num_untagged == 1 else f"{pluralize(num_untagged, 'image')} have"
        yield f"{count} no tag and will be read as background only: add tags if a class is in them."


def _warn_few_images(num_images: int) -> Iterator[str]:
    if num_images < MIN_IMAGES:
        count = "is only 1 image" if num_images == 1 else f"are only {num_images} images"
        yield f"there {count}: expect a first impression, and add images for good masks (several hundred)."


def _with_counts(names: Sequence[str], counts: dict[str, int], total: int | None = None) -> str:
    """Return the first names, each with its number of images: "cat (3), cow (1 of 9 images), ..."."""
    of_total = "" if total is None else f" of {pluralize(total, 'image')}"
    return join_first_names([f"{name} ({counts[name]:,}{of_total})" for name in names], _MAX_NAMES)
