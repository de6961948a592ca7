"""A few images with which a dry run estimates the cost of all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tagmask.data.samples import TaggedImages

MAX_IMAGES = 64
NUM_GROUPS = 4  # groups of images of similar size


@dataclass(frozen=True)
class ImageSubset:
    """A few images of a larger set.

    Attributes:
        images: the images of the subset.
        num_images: the number of images of the full set.
        pixel_factor: the mean number of pixels per image of the full set, divided by that of the subset.
    """

    images: TaggedImages
    num_images: int
    pixel_factor: float = 1.0

    @property
    def image_factor(self) -> float:
        """The number of images of the full set, divided by that of the subset."""
        return self.num_images / len(self.images)


def choose_subset(images: TaggedImages, num_pixels: float) -> ImageSubset:
    """Choose at most 64 images, at least one of them with a tag.

    The images, sorted by size, are taken from evenly spaced positions, and the largest image is among them. At each
    position several neighbors are taken, because images of equal size go through a network in one batch.

    Args:
        images: the full set, verified (the sizes are known).
        num_pixels: the approximate number of pixels of all chosen images together.
    """
    sizes = np.array([sample.size for sample in images.samples])
    area = sizes.prod(1)
    count = int(np.clip(num_pixels // area.mean(), 1, min(MAX_IMAGES, len(images))))
    num_groups = min(NUM_GROUPS, count)
    group_size = -(-count // num_groups)
    shuffled = np.random.default_rng(0).permutation(len(images))  # neighbors of equal size could all be of one class
    order = np.lexsort((shuffled, sizes[:, 0], area))
    ends = np.linspace(len(images), group_size, num_groups).round().astype(int)
    chosen = np.unique(np.concatenate([order[end - group_size : end] for end in ends]))
    samples = tuple(images.samples[i] for i in chosen)
    if not any(sample.tags for sample in samples):  # nothing could be learned from them
        samples = (*samples[1:], next((sample for sample in images.samples if sample.tags), samples[0]))
    pixel_factor = float(area.mean() / area[chosen].mean())
    return ImageSubset(replace(images, samples=samples), len(images), pixel_factor)
