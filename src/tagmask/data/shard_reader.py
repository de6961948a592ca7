"""Reader for parquet shards that `tagmask shard` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tagmask.artifacts import digest
from tagmask.data.image_files import attach_masks
from tagmask.data.images import image_suffix
from tagmask.data.samples import Problem, Sample, ShardMask, TaggedImages, share
from tagmask.data.shard_file import OpenShard, read_indexes, shard_cache
from tagmask.data.shard_format import SHARD_SUFFIX, Kind, ShardIndex, ShardName, require_pyarrow
from tagmask.data.shard_row import ShardRow
from tagmask.data.shard_writer import split_name
from tagmask.data.storage import StoredFile, is_object_storage, list_files, local_path
from tagmask.errors import DataError
from tagmask.text import did_you_mean, join_first_names, shorten


def list_shards(root: str, split: str | None = None) -> list[StoredFile]:
    """List the shards in a folder or under a URL, sorted by name.

    Args:
        root: the folder or URL.
        split: only those of this split; None: all.

    Raises:
        DataError: the folder cannot be listed, or does not have the split.
    """
    names = {file: name for file in list_files(root, SHARD_SUFFIX) if (name := ShardName.parse(file.name))}
    files = [file for file, name in names.items() if split is None or name.split == split_name(split)]
    if names and not files:
        splits = sorted({name.split for name in names.values()})
        raise DataError(
            f"{root} has no shards of the split {shorten(split or '')!r}{did_you_mean(split or '', splits)}"
        )
    return files


def may_hold_shards(path: str) -> bool:
    """Return whether this is a folder, or a URL that is not that of an image and can be listed."""
    if local_path(path) is not None:
        return os.path.isdir(path)
    return is_object_storage(path) and not image_suffix(path)


def holds_shards(root: str) -> bool:
    """Return whether there are shards in a folder or under a URL. Raises DataError if it cannot be listed."""
    return bool(list_shards(root))


def read_shards(
    root: str, *, split: str | None = None, masks: Path | None = None, saliency: Path | None = None
) -> TaggedImages:
    """Read which images are in the shards of a folder or URL; the images themselves are read when they are needed.

    Args:
        root: the folder or URL.
        split: read only this split; None: all.
        masks, saliency: local folders of PNGs named `<id>.png`. Masks replace those in the shards.

    Raises:
        DataError: there are no shards, they belong to different data sets, or none of them can be read. Single shards
            that are damaged or missing are in `problems` instead.
    """
    require_pyarrow()
    files = list_shards(root, split)
    if not files:
        raise DataError(f"{root} holds no shards; make them with `tagmask shard`, or correct the address.")
    problems = list(missing_shards(root, files))
    shard_cache().remember_files(files)
    read: list[tuple[str, ShardIndex]] = []
    for url, index in read_indexes(files, "images").items():
        if isinstance(index, DataError):
            problems.append(Problem.from_error(url, index))
        else:
            read.append((url, index))
            problems += [
                Problem(url, f"lacks an image ({text[:-1]})", "correct it", "warning") for text in index.left_out
            ]
    if not read:
        raise DataError(f"no shard in {root} can be used ({problems[0]})")
    classes = read[0][1].classes
    for url, index in read:
        if index.classes != classes:
            raise DataError(f"{url} has other classes than {read[0][0]}; keep the shards of one data set in a folder.")
    samples = [sample for url, index in read for sample in shard_samples(url, index)]
    _refuse_duplicates(samples)
    samples, warnings = attach_masks(samples, [masks] if masks else [], [saliency] if saliency else [])
    name = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *warnings), name)


def read_shard(file: StoredFile, kind: Kind = "images") -> ShardIndex:
    """Read the index of one shard. Raises DataError if it cannot be used."""
    return OpenShard.open(file).read_index(kind)


def shard_samples(url: str, index: ShardIndex) -> Iterator[Sample]:
    """Yield the images of a shard."""
    rows = zip(index.ids, index.suffixes, index.tags, index.has_mask, strict=True)
    for row, (image_id, suffix, tags, has_mask) in enumerate(rows):
        mask = ShardMask(str(ShardRow(url, row, "mask"))) if has_mask == "1" else None
        yield Sample(image_id, str(ShardRow(url, row, suffix=suffix)), share(tags), mask)


@dataclass(frozen=True)
class ShardedMasks:
    """The masks in the shards of a folder or URL. It is small to send to another process.

    Attributes:
        root: the folder or URL.
        version: a digest of the list of shards.
        classes: the class names; class id k is `classes[k - 1]`.
    """

    root: str
    version: str
    classes: tuple[str, ...]

    @classmethod
    def open_if_any(cls, root: str) -> ShardedMasks | None:
        """List the shards in a folder or under a URL; None if there are none. Raises DataError if one is missing."""
        files = list_shards(root) if may_hold_shards(root) else []
        if not files:
            return None
        problems = list(missing_shards(root, files))
        if problems:
            raise DataError(str(problems[0]))
        shard_cache().remember_files(files)
        return cls(root, digest(files), read_shard(files[0], "masks").classes)

    def read(self, image_id: str) -> np.ndarray:
        """Read the label map of an image, [H, W] uint8. Raises DataError if there is none, or it is damaged."""
        address = _rows_of_masks(self).get(image_id)
        if address is None:
            raise DataError(f"there is no mask in {self.root} for image {image_id}; make it, or evaluate other images.")
        return ShardMask(address).read()


@lru_cache(maxsize=1)
def _rows_of_masks(masks: ShardedMasks) -> dict[str, str]:
    """Return the address of each image's mask."""
    rows: dict[str, str] = {}
    for url, index in read_indexes(list_shards(masks.root), "masks").items():
        if isinstance(index, DataError):
            raise index
        if index.classes != masks.classes:
            raise DataError(f"{url} has other classes than the first shard; make it again with the same network.")
        rows |= {image_id: str(ShardRow(url, row, "mask")) for row, image_id in enumerate(index.ids)}
    return rows


def missing_shards(root: str, files: Sequence[StoredFile]) -> Iterator[Problem]:
    """Yield a problem for the shards that each split lacks. Raises DataError if a split was made twice."""
    by_split: dict[str, list[ShardName]] = {}
    for file in files:
        if name := ShardName.parse(file.name):
            by_split.setdefault(name.split, []).append(name)
    for names in by_split.values():
        total, others = names[0].total, [name for name in names if name.total != names[0].total]
        if others:
            raise DataError(f"{root} holds {names[0]} and {others[0]}, of two data sets; remove the old shards.")
        numbers = {name.number for name in names}
        if len(numbers) < total:
            missing = [str(names[0]._replace(number=n)) for n in range(total) if n not in numbers]
            yield Problem(root, f"lacks {join_first_names(missing, 3)}", "run the command again that made them")


def _refuse_duplicates(samples: Sequence[Sample]) -> None:
    """Raise DataError if two images have the same id."""
    if len({sample.id for sample in samples}) == len(samples):
        return
    first: dict[str, str] = {}
    for sample in samples:
        if sample.id in first:
            raise DataError(
                f"{first[sample.id]} and {sample.image} have the same id {shorten(sample.id)!r}; name the split of one "
                "of them."
            )
        first[sample.id] = sample.image
