"""The data structure that all readers return: `TaggedImages`, a class list and its samples."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar, cast

import numpy as np

from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import read_image, read_image_window, read_mask_image, read_reduced_image
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.large_images import Window, reduced_size, resize_labels
from tagmask.text import did_you_mean, shorten

T = TypeVar("T", bound=Hashable)


class Mask(Protocol):
    """The ground-truth mask of one image."""

    def read(self) -> np.ndarray:
        """Read the label map, [H, W] uint8: 0 background, 1..K classes, 255 ignored pixels.

        Raises:
            DataError: the mask cannot be read.
        """
        ...

    def remap(self, new_ids: dict[int, int]) -> Mask:
        """Return the same mask with other class ids.

        Args:
            new_ids: old id → new id. Ids that are not in it become background.
        """
        ...

    def fingerprint(self) -> str | None:
        """Return a text that changes when the mask changes, without opening a file; None if a file is missing."""
        ...


@dataclass(frozen=True, slots=True)
class PngMask:
    """A mask in an indexed or 8-bit grey PNG of class ids.

    Attributes:
        path: the file.
        new_ids: 256 bytes, the class id for each id in the file; None: the ids in the file are the class ids.
    """

    path: Path
    new_ids: bytes | None = None

    def read(self) -> np.ndarray:
        """Read the label map, [H, W] uint8. Raises DataError if the file cannot be read or is not a mask."""
        return _read_class_ids(self.path, self.new_ids)

    def remap(self, new_ids: dict[int, int]) -> PngMask:
        """Return the same mask with other class ids."""
        return replace(self, new_ids=_lookup_table(tuple(new_ids.items()), self.new_ids or bytes(range(256))))

    def fingerprint(self) -> str | None:
        """Return a text that changes when the file or the class ids change; None if the file does not exist."""
        return _fingerprint(self.path, self.new_ids)


@dataclass(frozen=True, slots=True)
class ShardMask:
    """A mask in a parquet shard, as an indexed PNG of class ids.

    Attributes:
        address: the shard and the row, see `tagmask.data.shard_row.ShardRow`.
        new_ids: as in `PngMask`.
    """

    address: str
    new_ids: bytes | None = None

    def read(self) -> np.ndarray:
        """Read the label map, [H, W] uint8. Raises DataError if the shard cannot be read."""
        return _read_class_ids(self.address, self.new_ids)

    def remap(self, new_ids: dict[int, int]) -> ShardMask:
        """Return the same mask with other class ids."""
        return replace(self, new_ids=_lookup_table(tuple(new_ids.items()), self.new_ids or bytes(range(256))))

    def fingerprint(self) -> str | None:
        """Return a text that changes when the shard or the class ids change; None if the shard does not exist."""
        return _fingerprint(self.address, self.new_ids)


def _read_class_ids(file: str | Path, new_ids: bytes | None) -> np.ndarray:
    labels = read_mask_image(file)
    return labels if new_ids is None else np.frombuffer(new_ids, np.uint8)[labels]


def _fingerprint(file: str | Path, new_ids: bytes | None) -> str | None:
    stamp = file_stamp(file)
    return stamp and f"{stamp}|{zlib.crc32(new_ids or b'')}"


def share(value: T) -> T:
    """Return an equal value, the same object for equal arguments: so a million samples hold few tags and sizes."""
    return cast("T", _share(value))


@lru_cache(maxsize=4096)
def _share(value: Hashable) -> Hashable:
    return value


@lru_cache(maxsize=8)  # all masks of a set share one table, so that a million masks need little memory
def _lookup_table(new_ids: tuple[tuple[int, int], ...], old_table: bytes) -> bytes:
    table = {IGNORE_INDEX: IGNORE_INDEX, **dict(new_ids)}
    return bytes(table.get(old, 0) for old in old_table)


@dataclass(frozen=True, slots=True)
class ReviewedMask:
    """What a person has said about the pixels of a training image. It is ground truth for what is learned.

    Attributes:
        mask: the accepted or corrected label map; None: the person has rejected the mask of the run, so that nothing is
            known about the pixels, and nothing is learned from them.
        digest: of the bytes of the mask file; None until `verify_images` has filled it in, or if the mask is None.
    """

    mask: PngMask | None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, and what is known about it.

    Attributes:
        id: unique within its set; the relative path, without suffix, of its files in a run folder.
        image: a path, a URL that fsspec opens, or an image in a shard (`tagmask.data.shard_row.ShardRow`).
        tags: the ids of the classes that the image shows, ascending. Empty: background only. None: not known.
        mask: the ground-truth mask, if there is one.
        saliency: a grey PNG of class-agnostic saliency, 0..255, if there is one.
        size: (H, W) in pixels; None until `verify_images` has filled it in.
        digest: of the bytes of the image file; None until `verify_images` has filled it in, and for images at URLs.
        saliency_crc: CRC-32 of the bytes of the saliency file; None until `verify_images` has filled it in.
        reviewed: what a person has said about the pixels; None: nothing.
        uncorrected_tags: the tags of the data set, if a person has corrected them; None: they are `tags`.
    """

    id: str
    image: str
    tags: tuple[int, ...] | None
    mask: Mask | None = None
    saliency: Path | None = None
    size: tuple[int, int] | None = None
    digest: str | None = None
    saliency_crc: int | None = None
    reviewed: ReviewedMask | None = None
    uncorrected_tags: tuple[int, ...] | None = None

    @property
    def reviewed_mask(self) -> PngMask | None:
        """The mask that a person has accepted or corrected, if there is one."""
        return self.reviewed.mask if self.reviewed else None

    @property
    def data_tags(self) -> tuple[int, ...] | None:
        """The tags of the data set, whether or not a person has corrected them."""
        return self.tags if self.uncorrected_tags is None else self.uncorrected_tags

    def read_reviewed_labels(self, size: tuple[int, int]) -> np.ndarray | None:
        """Read what is known about the pixels by review, [H, W] uint8.

        Args:
            size: (H, W) of the result: that of the image, or its reduced size (`tagmask.large_images`).

        Returns:
            The reviewed mask; all pixels ignored if the mask was rejected; None if the image was not reviewed.

        Raises:
            DataError: the mask cannot be read.
        """
        if self.reviewed is None:
            return None
        if self.reviewed.mask is None:
            return np.full(size, IGNORE_INDEX, np.uint8)
        return resize_labels(self.reviewed.mask.read(), size)

    def read_image(self) -> np.ndarray:
        """Read the image, [H, W, 3] uint8.

        Raises:
            DataError: the file cannot be read, or its size is not that of the verification any more.
        """
        return self._check_size(read_image(self.image), self.size)

    def read_reduced_image(self) -> np.ndarray:
        """Read the image, a large one at its reduced size (`tagmask.large_images`); otherwise as `read_image`."""
        return self._check_size(read_reduced_image(self.image), self.size and reduced_size(self.size))

    def read_window(self, window: Window) -> np.ndarray:
        """Read a part of the image, [h, w, 3] uint8; otherwise as `read_image`."""
        rows, columns = window
        part = read_image_window(self.image, window)
        return self._check_size(part, (rows.stop - rows.start, columns.stop - columns.start))

    def _check_size(self, image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """Return the image if it has this size."""
        if size is not None and image.shape[:2] != size:
            (height, width), (h, w) = size, image.shape[:2]
            raise DataError(
                f"{self.image} has changed while it was used (from {width}×{height} to {w}×{h} pixels): run the same "
                "command again."
            )
        return image


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with one item of a data set.

    Attributes:
        where: the file, line or image.
        message: what is wrong, as the end of a sentence that begins with `where`.
        fix: what to do about it.
        severity: "error": the item is left out. "warning": the item is kept, but should be checked.
    """

    where: str
    message: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    @classmethod
    def from_error(cls, where: str, error: DataError) -> Self:
        """Convert an error about one item; its text has the form "<where> <message>; <fix>."."""
        message, _, fix = str(error).removesuffix(".").removeprefix(f"{where} ").rpartition("; ")
        return cls(where, message or fix, fix if message else "correct or remove it")

    def __str__(self) -> str:
        return f"{self.where}: {self.message}; {self.fix}" + ("" if self.fix.endswith("?") else ".")


@dataclass(frozen=True)
class TaggedImages:
    """A set of images with tags.

    Attributes:
        classes: the class names. Class id k (1-based) has the name classes[k - 1].
        samples: the images, in a fixed order.
        problems: items that the reader left out, and warnings.
        name: the name of the set in messages and reports.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = field(default=())
    name: str = "images"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def restrict(self, class_names: Iterable[str]) -> TaggedImages:
        """Return the same images with these classes only, in this order.

        Tags of other classes are dropped, and their mask pixels become background.

        Raises:
            DataError: a name is not one of the classes. The error suggests the most similar class.
        """
        names = tuple(dict.fromkeys(class_names))
        for name in names:
            if name not in self.classes:
                raise DataError(f"{shorten(name)!r} is not one of the classes{did_you_mean(name, self.classes)}")
        return self.with_classes(names)

    def with_classes(self, class_names: Sequence[str]) -> TaggedImages:
        """Return the same images with another class list, which may hold classes that no image shows.

        Tags of classes that are not in the list are dropped, and their mask pixels become background.
        """
        new_ids = {
            self.classes.index(name) + 1: new_id for new_id, name in enumerate(class_names, 1) if name in self.classes
        }

        def new_tags(tags: tuple[int, ...] | None) -> tuple[int, ...] | None:
            return None if tags is None else tuple(sorted(new_ids[t] for t in tags if t in new_ids))

        samples = tuple(
            replace(
                sample,
                tags=new_tags(sample.tags),
                mask=sample.mask.remap(new_ids) if sample.mask else None,
                reviewed=_remap_reviewed(sample.reviewed, new_ids),
                uncorrected_tags=new_tags(sample.uncorrected_tags),
            )
            for sample in self.samples
        )
        return replace(self, classes=tuple(class_names), samples=samples)

    def without_reviewed_masks(self) -> TaggedImages:
        """Return the same images, of whose pixels nothing is known; `self` if that is so already."""
        if not any(sample.reviewed for sample in self.samples):
            return self
        return replace(self, samples=tuple(replace(sample, reviewed=None) for sample in self.samples))

    def select(self, keep: Callable[[Sample], bool]) -> TaggedImages:
        """Return the images for which `keep` returns True."""
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))


def evenly_spaced(samples: Sequence[Sample], n: int) -> list[Sample]:
    """Return at most n samples, evenly spaced in their order, the first one included."""
    count = min(n, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _remap_reviewed(reviewed: ReviewedMask | None, new_ids: dict[int, int]) -> ReviewedMask | None:
    if reviewed is None or reviewed.mask is None:
        return reviewed
    return replace(reviewed, mask=reviewed.mask.remap(new_ids))
