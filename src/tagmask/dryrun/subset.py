"""A few images that stand for many, so that what is done with the many can be tried out and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from tagmask.data.samples import Sample, TaggedImages

MAX_IMAGES = 64
PLACES = 4  # in the order of the images' sizes, from which they are taken


@dataclass(frozen=True)
class ImageSubset(TaggedImages):
    """A few images in the place of many.

    `len` is the number of the many, so that steps and epochs are as many as theirs, and an index beyond the few begins
    again at the first. Whoever goes through the `samples` meets the few alone.

    Attributes:
        many: how many they stand for.
        pixels: the mean number of pixels of the many, as a factor of the few's.
    """

    many: int = 0
    pixels: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", _Endless(self.samples))

    def __len__(self) -> int:
        return self.many

    def select(self, keep: Callable[[Sample], bool]) -> Self:
        kept = tuple(sample for sample in self.samples if keep(sample))
        return replace(self, samples=kept, many=round(self.many * len(kept) / max(1, len(self.samples))))

    @classmethod
    def of(cls, images: TaggedImages, pixels: float) -> Self:
        """Choose images that have about so many pixels together: at least one, at most 64.

        They are neighbours in the order of size, so that some can go through a network together as among the many,
        from evenly spaced places of that order; the largest is among them.

        Args:
            images: verified (their sizes known).
        """
        sizes = np.array([sample.size for sample in images.samples])
        area = sizes.prod(1)
        n = int(np.clip(pixels // area.mean(), 1, min(MAX_IMAGES, len(images))))
        places = min(PLACES, n)
        shuffled = np.random.default_rng(0).permutation(len(images))  # else those of one size may be of one class
        order = np.lexsort((shuffled, sizes[:, 0], area))
        together = -(-n // places)
        ends = np.linspace(len(images), together, places).round().astype(int)
        chosen = np.unique(np.concatenate([order[end - together : end] for end in ends]))
        samples = tuple(images.samples[i] for i in chosen)
        if not any(sample.tags for sample in samples):  # there is then nothing to be done with them
            samples = (*samples[1:], next((sample for sample in images.samples if sample.tags), samples[0]))
        return cls(
            images.classes, samples, name=images.name, many=len(images), pixels=float(area.mean() / area[chosen].mean())
        )


class _Endless(tuple[Sample, ...]):
    """Samples whose indices go round."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index if isinstance(index, slice) else index % len(self))
