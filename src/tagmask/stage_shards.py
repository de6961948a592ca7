"""The files of a stage in parquet shards: each shard holds those of 1,000 images, in the order of the run's images."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from tagmask.artifacts import MAX_JSON_BYTES, RUN_AGAIN, digest, read_bytes
from tagmask.data.shard_file import OpenShard, read_indexes
from tagmask.data.shard_format import IMAGES_PER_SHARD, Kind, ShardIndex, ShardName, is_safe_id
from tagmask.data.shard_row import ShardRow
from tagmask.data.storage import StoredFile, find_file, list_files
from tagmask.errors import DataError, RunError, message_of
from tagmask.label_map import MAX_BYTES, decode_label_map, present_classes
from tagmask.text import shorten

if TYPE_CHECKING:
    from tagmask.data.samples import TaggedImages

FileKind = Literal["maps", "masks", "seeds", "saliency", "instances"]
"""What a stage writes for each image. Response maps and masks are artifacts, the others are what methods make on the
way: seeds (label maps to learn from), saliency (completed by activation) and instances (COCO annotations)."""

FILE_SUFFIXES: Mapping[FileKind, str] = {
    "maps": ".safetensors", "masks": ".png", "seeds": ".png", "saliency": ".png", "instances": ".json",
}  # fmt: skip
FILE_NAMES: Mapping[FileKind, str] = {
    "maps": "response maps", "masks": "masks", "seeds": "seeds", "saliency": "saliency maps", "instances": "instances",
}  # fmt: skip

MAX_FILE_BYTES = max(MAX_BYTES, MAX_JSON_BYTES)
_LABEL_MAPS = ("masks", "seeds", "saliency")
_ID_DIGEST = "S16"  # the dtype of the digests of ids
_INDEXES_AT_ONCE = 64  # shards, so that not the ids of all images are in memory

T = TypeVar("T")


class StageShard(NamedTuple):
    """One shard of a kind of files of a stage.

    Attributes:
        kind: what it holds.
        number: of the shard, beginning with 0.
        total: the number of shards.
    """

    kind: FileKind
    number: int
    total: int

    def path(self, stage: Path) -> Path:
        """Return where it is in the folder of a stage."""
        return stage / self.kind / str(ShardName(self.kind, self.number, self.total))

    def part_of(self, items: Sequence[T]) -> Sequence[T]:
        """Return those of the run's images, or of other items of which each image has one, that are in this shard."""
        return items[self.number * IMAGES_PER_SHARD : (self.number + 1) * IMAGES_PER_SHARD]


def stage_shards(kind: FileKind, num_images: int) -> list[StageShard]:
    """Return the shards of one kind of files.

    Args:
        kind: the kind.
        num_images: the number of images of the run.

    Example:
        >>> [shard.number for shard in stage_shards("maps", num_images=2500)]
        [0, 1, 2]
    """
    total = -(-num_images // IMAGES_PER_SHARD)
    return [StageShard(kind, number, total) for number in range(total)]


def check_ids(images: TaggedImages) -> None:
    """Check the ids of images before shards are made. Raises DataError if a shard cannot hold one of them."""
    for sample in images.samples:
        if not is_safe_id(sample.id):
            raise DataError(
                f"{shorten(ascii(sample.image))} has a name that shards cannot hold: rename it (no line breaks or "
                "unusual spaces), or keep single files with --storage files."
            )


def pack_files(paths: Mapping[str, Path], shard: StageShard, stage: Path, classes: tuple[str, ...], key: str) -> None:
    """Write files to a shard; it exists when it is complete.

    Args:
        paths: the file of each image, by the id of the image.
        shard: the shard.
        stage: the folder of the stage.
        classes: the class names.
        key: a digest of all inputs and settings of the files.

    Raises:
        RunError: a file cannot be read or is damaged, or the shard cannot be written.
    """
    from tagmask.data.shard_writer import write_shard  # here, because the writer needs the readers of all formats

    tags: list[tuple[int, ...] | None] = []

    def rows() -> Iterator[Mapping[str, Any]]:
        for image_id, path in paths.items():
            content = read_bytes(path, MAX_FILE_BYTES)
            file = {"bytes": content, "path": image_id + FILE_SUFFIXES[shard.kind]}
            if shard.kind not in _LABEL_MAPS:
                tags.append(None)
                yield {"id": image_id, "file": file}
            else:
                tags.append(tuple(present_classes(decode_label_map(content, str(path)))))
                yield {"id": image_id, "mask": file, "classes": [classes[k - 1] for k in tags[-1] or ()]}

    kind = _shard_kind(shard.kind)

    def index() -> ShardIndex:
        has_mask = ("1" if kind == "masks" else "0") * len(paths)
        return ShardIndex(
            kind=kind, key=key, classes=classes, ids=tuple(paths), suffixes=("",) * len(paths), tags=tuple(tags),
            has_mask=has_mask,
        )  # fmt: skip

    write_shard(str(shard.path(stage)), kind, classes, rows(), index)


def unpack_files(shard: StageShard, stage: Path, target: Path) -> None:
    """Write the files of a shard to the folder `target`, each named after its image.

    Raises:
        RunError: the shard is damaged, or a file cannot be written.
    """
    try:
        for image_id, content in _read_files(shard, stage):
            path = target / f"{image_id}{FILE_SUFFIXES[shard.kind]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}; set TMPDIR to a folder with more space.") from error


def shard_key(stage_key: Mapping[str, Any] | None, shard: StageShard) -> str:
    """Return a digest of all inputs and settings of a shard; `stage_key` is the key in the record of the stage."""
    return digest([stage_key, shard])


def check_shard(shard: StageShard, stage: Path, ids: Iterable[str], key: str) -> None:
    """Read a whole shard.

    Raises:
        RunError: it is missing or damaged, does not hold the files of these images, or has another key.
    """
    if [image_id for image_id, _ in _read_files(shard, stage, key)] != list(ids):
        raise RunError(f"{shard.path(stage)} holds the files of other images: {RUN_AGAIN}.")


def _read_files(shard: StageShard, stage: Path, key: str | None = None) -> Iterator[tuple[str, bytes]]:
    path = shard.path(stage)
    try:
        file = find_file(str(path))
        if file is None:
            raise RunError(f"{path} does not exist: {RUN_AGAIN}.")
        opened = OpenShard.open(file)
        index = opened.read_index(_shard_kind(shard.kind))
        if key is not None and index.key != key:
            raise RunError(f"{path} was made with other settings or from other images: {RUN_AGAIN}.")
        ids = iter(index.ids)
        for group in range(len(opened.ends)):
            for content in opened.read_group(group, "mask" if shard.kind in _LABEL_MAPS else "file"):
                if (value := content.as_py()) is None:
                    raise RunError(f"{path} is damaged (it lacks a file): {RUN_AGAIN}.")
                yield next(ids), value
    except DataError as error:
        raise RunError(message_of(error)) from error


def find_row(stage: Path, kind: FileKind, image_id: str) -> ShardRow | None:
    """Return where the file of an image is in the shards of a stage; None if it is in none of them.

    Raises:
        RunError: a shard is damaged.
    """
    folder = stage / kind
    try:
        version = os.stat(folder).st_mtime_ns
    except OSError:
        return None
    with _lock():
        rows = _rows(folder, kind, version)
    return rows.find(image_id)


class _Rows:
    """The shard and the row of each image, in 24 bytes per image: each process that reads files has all of them."""

    def __init__(self, kind: FileKind, files: Sequence[StoredFile]) -> None:
        self._urls = [file.url for file in files]
        self._column: Literal["mask", "file"] = "mask" if kind in _LABEL_MAPS else "file"
        ids, places = [np.empty(0, _ID_DIGEST)], [np.empty(0, np.int64)]
        for start in range(0, len(files), _INDEXES_AT_ONCE):
            indexes = read_indexes(files[start : start + _INDEXES_AT_ONCE], _shard_kind(kind))
            for number, index in enumerate(indexes.values(), start):
                if isinstance(index, DataError):
                    raise RunError(message_of(index)) from index
                ids.append(np.array([_id_digest(image_id) for image_id in index.ids], _ID_DIGEST))
                places.append(number * IMAGES_PER_SHARD + np.arange(len(index.ids)))
        unsorted = np.concatenate(ids)
        order = unsorted.argsort()
        self._ids, self._places = unsorted[order], np.concatenate(places)[order]

    def find(self, image_id: str) -> ShardRow | None:
        digest = np.array(_id_digest(image_id), _ID_DIGEST)
        index = int(self._ids.searchsorted(digest))
        if index == len(self._ids) or self._ids[index] != digest:
            return None
        number, row = divmod(int(self._places[index]), IMAGES_PER_SHARD)
        return ShardRow(self._urls[number], row, self._column)


def _id_digest(image_id: str) -> bytes:
    return hashlib.blake2b(image_id.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@lru_cache(maxsize=8)
def _rows(folder: Path, kind: FileKind, version: int) -> _Rows:
    """Return the rows of all shards in a folder; `version` changes when a shard is added or removed."""
    files = list_files(str(folder), ".parquet")
    return _Rows(kind, [file for file in files if (name := ShardName.parse(file.name)) and name.split == kind])


_locks: dict[int, threading.Lock] = {}  # by process id, like the caches of `tagmask.data.shard_file`


def _lock() -> threading.Lock:
    """Return the lock of this process under which one thread reads the rows, and the others wait for them."""
    return _locks.setdefault(os.getpid(), threading.Lock())


def _shard_kind(kind: FileKind) -> Kind:
    return "masks" if kind in _LABEL_MAPS else "files"
