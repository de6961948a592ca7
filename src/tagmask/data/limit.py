"""A few images of a set, for a quick try."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError
from tagmask.text import pluralize


def limit_images(images: TaggedImages, limit: int) -> TaggedImages:
    """Return a fixed random choice of images in which every class occurs that has an image.

    Args:
        images: the set.
        limit: the number of images to choose; sets that have no more are not changed.

    Raises:
        DataError: more images are needed so that every class occurs.
    """
    if len(images) <= limit:
        return images
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    tags = [images.samples[i].tags or () for i in range(len(images))]
    counts = Counter(tag for sample_tags in tags for tag in sample_tags)
    covered: set[int] = set()
    chosen: dict[int, None] = {}
    for class_id in sorted(counts, key=lambda tag: (counts[tag], tag)):  # images of rare classes show others, too
        if class_id not in covered:
            index = next(i for i in order if class_id in tags[i])
            chosen[index] = None
            covered.update(tags[index])
    if len(chosen) > limit:
        raise DataError(
            f"a limit of {pluralize(limit, 'image')} leaves out classes of {images.name}: raise it to {len(chosen)} or "
            "more, or select classes."
        )
    for index in order:
        if len(chosen) == limit:
            break
        chosen[index] = None
    return replace(images, samples=tuple(images.samples[i] for i in sorted(chosen)))
