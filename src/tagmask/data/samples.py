"""What every reader gives: `TaggedImages`, a class list and its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np

from tagmask.data.images import read_mask_image
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.text import did_you_mean

MAX_CLASSES = 254  # a label map is 8 bits: 0 is background, 255 unsure


class Mask(Protocol):
    """Where a sample's ground truth comes from."""

    def read(self) -> np.ndarray:
        """Label map [H, W] uint8: 0 background, 1..K classes, 255 unsure. Raises DataError."""
        ...

    def keep(self, new_ids: dict[int, int]) -> Mask:
        """The same mask with class ids mapped old → new; ids not named become background."""
        ...


@dataclass(frozen=True)
class PngMask:
    """An indexed or grey PNG of class ids."""

    path: Path
    new_ids: bytes | None = None  # id in the file → id, 256 of them

    def read(self) -> np.ndarray:
        labels = read_mask_image(self.path)
        return labels if self.new_ids is None else np.frombuffer(self.new_ids, np.uint8)[labels]

    def keep(self, new_ids: dict[int, int]) -> PngMask:
        return replace(self, new_ids=_lookup(tuple(new_ids.items()), self.new_ids or bytes(range(256))))


@lru_cache(maxsize=8)  # the same object for all masks of a set: a million of them weigh nothing
def _lookup(new_ids: tuple[tuple[int, int], ...], before: bytes) -> bytes:
    table = {IGNORE_INDEX: IGNORE_INDEX, **dict(new_ids)}
    return bytes(table.get(old, 0) for old in before)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        id: unique in its set; the relative path of its files in a run folder (no suffix).
        image: a path, or a URL that fsspec opens.
        tags: the class ids present, ascending; empty: background only; None: not known.
        mask: ground truth, if there is any.
        saliency: a grey PNG, 0..255, of class-agnostic saliency, if there is one.
        size: (H, W) in pixels, once the image was looked at (`data.check.verified`).
    """

    id: str
    image: str
    tags: tuple[int, ...] | None
    mask: Mask | None = None
    saliency: Path | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong in one item of the data: where, what, and what to do about it.

    Attributes:
        severity: "error": the item is left out; "warning": it is kept, but worth a look.
    """

    where: str
    what: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    @classmethod
    def of(cls, where: str, error: DataError) -> Self:
        """The problem that an error of one item is; its sentence reads "<file> <what>; <fix>."."""
        what, _, fix = str(error).removesuffix(".").removeprefix(f"{where} ").rpartition("; ")
        return cls(where, what or fix, fix if what else "correct or remove it")

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}" + ("" if self.fix.endswith("?") else ".")


@dataclass(frozen=True)
class TaggedImages:
    """A set of images with tags.

    Attributes:
        classes: class names; class id k (1-based) is classes[k - 1].
        samples: in a fixed order.
        problems: items that the reader had to leave out, or doubts.
        name: where it came from, for messages and reports.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = field(default=())
    name: str = "images"

    def __len__(self) -> int:
        return len(self.samples)

    def restrict(self, names: Iterable[str]) -> TaggedImages:
        """Keep only these classes, in this order: other tags are dropped, other mask pixels are background.

        Raises:
            DataError: a name is not among the classes (the nearest one is named).
        """
        kept = tuple(dict.fromkeys(names))
        for name in kept:
            if name not in self.classes:
                raise DataError(unknown_class(name, self.classes))
        return self.with_classes(kept)

    def with_classes(self, names: Sequence[str]) -> TaggedImages:
        """The same images with another class list: tags and mask pixels of classes it lacks are dropped."""
        new_ids = {self.classes.index(name) + 1: new for new, name in enumerate(names, 1) if name in self.classes}
        samples = tuple(
            replace(
                sample,
                tags=None if sample.tags is None else tuple(sorted(new_ids[t] for t in sample.tags if t in new_ids)),
                mask=sample.mask.keep(new_ids) if sample.mask else None,
            )
            for sample in self.samples
        )
        return replace(self, classes=tuple(names), samples=samples)

    def select(self, keep: Callable[[Sample], bool]) -> TaggedImages:
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))


def unknown_class(name: str, classes: Iterable[str]) -> str:
    """The sentence for a class name that is not in the list."""
    return f"{name!r} is not one of the classes{did_you_mean(name, classes)}"
