"""Threads for compiled kernels that release the GIL."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise


class Threads:
    """A fixed number of threads that run a kernel over ranges of rows.

    Use it as a context manager, so that the threads end with the block.

    Args:
        count: number of threads, 1 or more; the calling thread is one of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, bounds: list[int], task: Callable[[int, int], None]) -> None:
        """Call `task(begin, end)` for each pair of consecutive bounds in parallel, and wait for all of them.

        Args:
            bounds: `count + 1` ascending row numbers, as `even_bounds` returns them.
            task: the function to call.
        """
        ranges = list(pairwise(bounds))
        others = [self._pool.submit(task, *r) for r in ranges[1:]] if self._pool is not None else []
        try:
            for r in ranges if self._pool is None else ranges[:1]:
                task(*r)
        finally:
            for other in others:
                other.result()

    def even_bounds(self, num_rows: int) -> list[int]:
        """Return the bounds that split `num_rows` rows into one range of equal length per thread."""
        return [num_rows * t // self.count for t in range(self.count + 1)]


def thread_count(threads: int | None) -> int:
    """Return `threads`, or numba's default: the environment variable NUMBA_NUM_THREADS, or the number of cores.

    Raises:
        ValueError: `threads` is below 1.
    """
    if threads is None:
        from numba import config

        return int(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads
