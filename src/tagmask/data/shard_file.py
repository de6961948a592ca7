"""Reading shards: the index, and single images and masks through a cache of row groups."""

from __future__ import annotations

import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tagmask.data.shard_format import MAKE_AGAIN, Kind, ShardIndex, require_pyarrow, shard_schema
from tagmask.data.shard_row import Column, ShardRow
from tagmask.data.storage import StoredFile, find_file, local_path, read_range
from tagmask.errors import DataError, StorageError
from tagmask.text import shorten

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

K = TypeVar("K")
T = TypeVar("T")
GroupKey = tuple[StoredFile, int, Column]
"""A row group of one column: the shard, the number of the group, and the column."""

_TAIL_BYTES = 2**18  # read at once from the end of a file; most footers are smaller
_MAX_OPEN = 64  # footers that are kept, per process


@dataclass(frozen=True)
class OpenShard:
    """A shard whose footer has been read. It holds no open file, so that threads and forked processes can share it.

    Attributes:
        file: the file.
        metadata: the footer.
        ends: for each row group, the number of rows up to its end.
    """

    file: StoredFile
    metadata: pq.FileMetaData
    ends: tuple[int, ...]

    @classmethod
    def open(cls, file: StoredFile) -> OpenShard:
        """Read the footer of a parquet file. Raises DataError if it cannot be read or is damaged."""
        require_pyarrow()
        import pyarrow.parquet as pq

        def read() -> OpenShard:
            metadata = pq.read_metadata(_RangeReader(file))
            groups = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            return cls(file, metadata, tuple(accumulate(groups)))

        return _refuse_damage(file.url, read)

    def read_index(self, kind: Kind) -> ShardIndex:
        """Read the index.

        Raises:
            DataError: there is none, it is damaged, or it does not fit the columns and rows.
        """
        url = self.file.url
        index = _refuse_damage(url, lambda: ShardIndex.decode(url, self.metadata.metadata))
        if index.kind != kind:
            raise DataError(f"{url} holds {index.kind}, not {kind}; give the shards of the {kind}.")
        schema = _refuse_damage(url, self.metadata.schema.to_arrow_schema)
        if not schema.remove_metadata().equals(shard_schema(kind).remove_metadata()):
            raise DataError(f"{url} has other columns than a shard of {kind}; {MAKE_AGAIN}.")
        if not len(index.ids) == self.metadata.num_rows == (self.ends[-1] if self.ends else 0):
            raise DataError(f"{url} is damaged (the index has another number of rows); {MAKE_AGAIN}.")
        return index

    def read_group(self, group: int, column: Column) -> pa.Array:
        """Read the files of one column in one row group. Raises DataError if they cannot be read or are damaged."""
        import pyarrow.parquet as pq

        def read() -> pa.Array:
            file = pq.ParquetFile(_RangeReader(self.file), metadata=self.metadata, page_checksum_verification=True)
            table = file.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)
            table.validate(full=True)
            (content,) = table.column(column).combine_chunks().flatten()
            return content

        return _refuse_damage(self.file.url, read)

    def locate(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and the place of the row in it. Raises DataError if there is no such row."""
        group = bisect_right(self.ends, row)
        if group == len(self.ends):
            raise DataError(f"{self.file.url} has no row {row}; {MAKE_AGAIN}.")
        return group, row - (self.ends[group - 1] if group else 0)


class _RangeReader(io.RawIOBase):
    """A file for pyarrow. Each read is one request, apart from those at the end of the file, which is read once."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file, self._position, self._tail = file, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self._file.size)[whence]
        if position < 0:
            raise ValueError("a negative position in the file")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        start, full = self._position, self._file.size
        end = full if size is None or size < 0 else min(full, start + size)
        if start >= end:
            return b""
        self._position = end
        tail_start = max(0, full - _TAIL_BYTES)
        if start < tail_start:
            return read_range(self._file.url, start, end)
        if not self._tail:
            self._tail = read_range(self._file.url, tail_start, full)
        return self._tail[start - tail_start : end - tail_start]


def _refuse_damage(url: str, read: Callable[[], Any]) -> Any:
    """Return the result of a function that reads a parquet file; every exception becomes a DataError."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # pyarrow raises exceptions of many kinds for damaged files
        cause = error.__cause__ or error.__context__
        if isinstance(cause, DataError):
            raise cause from error
        raise DataError(f"{url} is damaged ({shorten(str(error))}); {MAKE_AGAIN}.") from error


class ShardCache:
    """The footers and row groups that this process has read last, so that neighboring rows are read together.

    Threads can share it: what two of them need at the same time is read once.

    Attributes:
        max_bytes: the size of the row groups that are kept; the newest one is always kept.
    """

    max_bytes = 2**26

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, StoredFile] = {}
        self._open: OrderedDict[StoredFile, Future[OpenShard]] = OrderedDict()
        self._groups: OrderedDict[GroupKey, Future[pa.Array]] = OrderedDict()
        self._sizes: dict[GroupKey, int] = {}  # in bytes, of the row groups that have been read
        self._num_bytes = 0  # their sum

    def remember_files(self, files: Iterable[StoredFile]) -> None:
        """Remember the sizes and versions of shards in object storage, so that not every one is asked for again."""
        with self._lock:
            self._known.update({file.url: file for file in files})

    def file(self, url: str) -> StoredFile:
        """Describe a shard; a local one as it is now. Raises DataError if it does not exist."""
        file = self._known.get(url) if local_path(url) is None else None
        file = file or find_file(url)
        if file is None:
            raise DataError(f"{url} does not exist; {MAKE_AGAIN}.")
        if local_path(url) is None:
            self.remember_files([file])
        return file

    def read(self, row: ShardRow) -> bytes | None:
        """Read an image or a mask; None if the row has none. Raises DataError if it cannot be read."""
        file = self.file(row.shard)
        shard = self._once(self._open, file, lambda: OpenShard.open(file))
        group, place = shard.locate(row.row)
        key = (file, group, row.column)
        content = self._once(self._groups, key, lambda: self._read_group(shard, key))
        if place >= len(content):
            raise DataError(f"{row.shard} is damaged (a row group is too short); {MAKE_AGAIN}.")
        return cast("bytes | None", content[place].as_py())

    def _read_group(self, shard: OpenShard, key: GroupKey) -> pa.Array:
        _, group, column = key
        content = shard.read_group(group, column)
        with self._lock:
            self._sizes[key] = content.nbytes
            self._num_bytes += content.nbytes
        return content

    def _once(self, results: OrderedDict[K, Future[T]], key: K, make: Callable[[], T]) -> T:
        """Return the result of a function that only one thread calls; the others wait. A failure is not kept."""
        with self._lock:
            future = results.get(key)
            is_new = future is None
            if future is None:
                future = results[key] = Future()
            results.move_to_end(key)
        if is_new:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    results.pop(key, None)
                future.set_exception(error)
            self._remove_old()
        return future.result()

    def _remove_old(self) -> None:
        with self._lock:
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
            while self._num_bytes > self.max_bytes and len(self._sizes) > 1:
                oldest = next(key for key in self._groups if key in self._sizes)
                self._num_bytes -= self._sizes.pop(oldest)
                del self._groups[oldest]


_caches: dict[int, ShardCache] = {}  # by process id: a lock that another thread held during a fork would never be free


def shard_cache() -> ShardCache:
    """Return the cache of this process."""
    cache = _caches.get(os.getpid())
    if cache is None:
        _caches.clear()
        cache = _caches.setdefault(os.getpid(), ShardCache())
    return cache


def read_shard_row(row: ShardRow) -> bytes:
    """Read the bytes of an image or mask in a shard. Raises DataError, whose sentence begins with the row."""
    try:
        content = shard_cache().read(row)
    except DataError as error:
        raise type(error)(f"{row} cannot be read: {error}") from error
    if content is None:
        raise DataError(f"{row} is missing in the shard; {MAKE_AGAIN}.")
    return content


def shard_row_stamp(row: ShardRow) -> str | None:
    """Return a text that changes when the shard of a row is replaced; None if it does not exist or cannot be read."""
    try:
        file = shard_cache().file(row.shard)
    except StorageError:
        raise
    except DataError:
        return None
    path = local_path(file.url)
    address = file.url if path is None else os.path.abspath(path)
    return f"{address}#{row.row}:{row.column}|{file.size}|{file.version}"


def read_indexes(files: Iterable[StoredFile], kind: Kind, workers: int = 32) -> Mapping[str, ShardIndex | DataError]:
    """Read the indexes of shards in several threads.

    Returns:
        For each URL the index, or the error if the shard cannot be used.

    Raises:
        StorageError: object storage cannot be reached.
    """
    from concurrent.futures import ThreadPoolExecutor

    def read(file: StoredFile) -> ShardIndex | DataError:
        try:
            return OpenShard.open(file).read_index(kind)
        except StorageError:
            raise
        except DataError as error:
            return error

    listed = list(files)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip((file.url for file in listed), pool.map(read, listed), strict=True))
