"""Packing a data set into parquet shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagmask.artifacts import digest
from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import image_suffix, read_bytes
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.shard_file import read_indexes
from tagmask.data.shard_format import (
    IMAGES_PER_SHARD,
    INDEX_ENTRY,
    SHARD_SUFFIX,
    Kind,
    ShardIndex,
    ShardName,
    is_safe_id,
    require_pyarrow,
    shard_schema,
)
from tagmask.data.storage import check_writable, find_file, join_url, list_files, write_file
from tagmask.data.verify import summarize_errors
from tagmask.errors import DataError, StorageError
from tagmask.label_map import encode_label_map
from tagmask.progress import Progress
from tagmask.text import shorten

DEFAULT_SPLIT = "data"

_GROUP_ROWS = 50  # so that one image can be read without the others of its shard
_GROUP_BYTES = 2**24

ShardRows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class PackedShards:
    """What `pack_shards` has made.

    Attributes:
        urls: the shards, those that existed before included.
        num_kept: the number of shards that existed before.
        num_images: the number of images in all shards.
        num_bytes: the size of all shards.
        problems: images that were left out, and warnings.
    """

    urls: tuple[str, ...]
    num_kept: int
    num_images: int
    num_bytes: int
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "shards": list(self.urls), "kept": self.num_kept, "images": self.num_images, "bytes": self.num_bytes,
            "problems": list(self.problems),
        }  # fmt: skip


def split_name(split: str | None) -> str:
    """Return what the names of the shards of a split begin with; a list file gives its name."""
    if split is None:
        return DEFAULT_SPLIT
    return re.sub(r"[^\w.-]", "_", Path(split).name.removesuffix(".txt")) or DEFAULT_SPLIT


def pack_shards(
    images: TaggedImages,
    out: str,
    *,
    split: str | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
    skip_bad: bool = False,
    workers: int = 1,
    progress: Progress,
) -> PackedShards:
    """Write images with their tags and ground-truth masks to parquet shards.

    The image files are copied as they are, and not decoded. Shards that exist are kept, so that the same call again
    resumes.

    Args:
        images: the images as the reader returned them.
        out: a folder, or a URL of object storage. It may hold the shards of other splits.
        split: the split of these images; None: the names of the shards begin with "data".
        images_per_shard: the number of images per shard; the last one may have fewer.
        skip_bad: leave out images that cannot be read instead of raising.
        workers: the number of threads that read files.
        progress: reports each image.

    Raises:
        DataError: an image or a mask cannot be read, or `out` holds shards of other data or cannot be written.
        RunError: a local file cannot be written.
    """
    require_pyarrow()
    check_writable(out)
    errors = [problem for problem in images.problems if problem.severity == "error"]
    if errors and not skip_bad:
        total = len(images) + len(errors)
        raise DataError(summarize_errors(errors, f"{len(errors):,} of {total:,} images of {images.name}"))
    parts = [images.samples[i : i + images_per_shard] for i in range(0, len(images), images_per_shard)]
    prefix = split_name(split)
    names = [str(ShardName(prefix, number, len(parts))) for number in range(len(parts))]
    indexes = dict(zip(names, (_index_without_rows(images.classes, split, part) for part in parts), strict=True))
    kept = _check_existing(out, prefix, indexes, images.classes)
    num_images, left_out = 0, [str(problem) for problem in images.problems]
    with ThreadPoolExecutor(max(1, workers)) as pool, progress("write shards", len(images)) as advance:
        for name, part in zip(names, parts, strict=True):
            index = kept.get(name)
            if index is None:
                index = _write_images(join_url(out, name), indexes[name], part, skip_bad, pool, advance)
            else:
                advance(len(part))
            num_images += len(index.ids)
            left_out += index.left_out
    sizes = [file.size for name in names if (file := find_file(join_url(out, name)))]
    return PackedShards(
        tuple(join_url(out, name) for name in names), len(kept), num_images, sum(sizes), tuple(left_out)
    )


def write_shard(
    url: str, kind: Kind, classes: tuple[str, ...], rows: ShardRows, make_index: Callable[[], ShardIndex]
) -> None:
    """Write a shard; it exists when it is complete.

    Args:
        url: the path or URL.
        kind: what it holds.
        classes: the class names.
        rows: the values of the columns of each row.
        make_index: returns the index when all rows have been written.

    Raises:
        DataError, RunError: the shard cannot be written.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = shard_schema(kind, classes)
    with write_file(url) as temporary:
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(temporary, schema, write_page_checksum=True, **options) as writer:
            for group in _groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
            writer.add_key_value_metadata({INDEX_ENTRY: make_index().encode()})


def _groups(rows: ShardRows) -> Iterator[list[Mapping[str, Any]]]:
    """Divide rows into row groups."""
    group: list[Mapping[str, Any]] = []
    num_bytes = 0
    for row in rows:
        size = sum(len(row[name]["bytes"]) for name in ("image", "mask", "file") if row.get(name))
        if group and (len(group) == _GROUP_ROWS or num_bytes + size > _GROUP_BYTES):
            yield group
            group, num_bytes = [], 0
        group.append(row)
        num_bytes += size
    if group:
        yield group


def _index_without_rows(classes: tuple[str, ...], split: str | None, samples: Sequence[Sample]) -> ShardIndex:
    """Return the index of a shard before its images are read; the key says what it will be made from."""
    content = [
        (s.id, s.tags, file_stamp(s.image) or s.image, s.mask and (s.mask.fingerprint() or str(s.mask)))
        for s in samples
    ]
    return ShardIndex(kind="images", key=digest([classes, split, content]), classes=classes, split=split)


def _check_existing(
    out: str, prefix: str, indexes: Mapping[str, ShardIndex], classes: tuple[str, ...]
) -> dict[str, ShardIndex]:
    """Return the indexes of the shards that exist already.

    Raises:
        DataError: there are shards of other data.
    """
    own, other_splits = [], {}
    for file in list_files(out, SHARD_SUFFIX):
        name = ShardName.parse(file.name)
        if file.name in indexes:
            own.append(file)
        elif name is None or name.split == prefix:
            raise DataError(
                f"{out} holds {shorten(file.name)}, which is not a part of this data; choose another --out."
            )
        else:
            other_splits[name.split] = file
    existing = read_indexes([*own, *other_splits.values()], "images")
    for url, index in existing.items():
        if isinstance(index, DataError):
            raise index
        expected = indexes.get(url.replace("\\", "/").rpartition("/")[2])
        if index.classes != classes or (expected and index.key != expected.key):
            raise DataError(f"{url} was made from other images, tags, masks or classes; choose another --out.")
    return {file.name: index for file in own if isinstance(index := existing[file.url], ShardIndex)}


def _write_images(
    url: str,
    empty: ShardIndex,
    samples: Sequence[Sample],
    skip_bad: bool,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> ShardIndex:
    """Write one shard, and return its index."""
    written: list[Sample] = []
    left_out: list[str] = []

    def rows() -> ShardRows:
        for start in range(0, len(samples), _GROUP_ROWS):
            part = samples[start : start + _GROUP_ROWS]
            for sample, row in zip(part, pool.map(lambda s: _read_row(s, empty), part), strict=True):
                advance(1)
                if isinstance(row, Problem):
                    if not skip_bad:
                        raise DataError(f"{str(row).removesuffix('.')}, or leave it out with --skip-bad.")
                    left_out.append(str(row))
                    continue
                written.append(sample)
                yield row

    def make_index() -> ShardIndex:
        return ShardIndex(
            kind="images", key=empty.key, classes=empty.classes, split=empty.split,
            ids=tuple(s.id for s in written), suffixes=tuple(image_suffix(s.image).lower() for s in written),
            tags=tuple(s.tags for s in written), has_mask="".join("1" if s.mask else "0" for s in written),
            left_out=tuple(left_out),
        )  # fmt: skip

    write_shard(url, "images", empty.classes, rows(), make_index)
    return make_index()


def _read_row(sample: Sample, index: ShardIndex) -> Mapping[str, Any] | Problem:
    """Read the image and the mask of one row; a problem if they cannot be read."""
    where = sample.image
    try:
        if not is_safe_id(sample.id):
            raise DataError(f"{where} has a name that shards cannot hold ({sample.id!a}); rename it.")
        image = {"bytes": read_bytes(sample.image), "path": _file_name(sample.id, image_suffix(sample.image))}
        mask = None
        if sample.mask:
            where = f"the mask of {sample.image}"
            mask = {"bytes": encode_label_map(sample.mask.read()), "path": f"{sample.id}.png"}
    except StorageError:
        raise
    except DataError as error:
        return Problem.from_error(where, error)
    tags = None if sample.tags is None else [index.classes[tag - 1] for tag in sample.tags]
    return {"id": sample.id, "image": image, "tags": tags, "split": index.split, "mask": mask}


def _file_name(image_id: str, suffix: str) -> str:
    return image_id if suffix and image_id.endswith(suffix) else image_id + suffix
