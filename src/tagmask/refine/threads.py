"""Work on several threads, for compiled kernels that let go of Python's interpreter lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise


class Threads:
    """Runs a kernel over ranges [begin, end) on a fixed number of threads, the calling one among them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def over(self, bounds: list[int], task: Callable[[int, int], None]) -> None:
        """Call `work(begin, end)` for each pair of neighbouring bounds, all at once, and wait."""
        ranges = list(pairwise(bounds))
        others = [self._pool.submit(task, *r) for r in ranges[1:]] if self._pool is not None else []
        try:
            for r in ranges if self._pool is None else ranges[:1]:
                task(*r)
        finally:
            for other in others:
                other.result()

    def even(self, n: int) -> list[int]:
        """Bounds that cut n items into one equal range a thread."""
        return [n * t // self.count for t in range(self.count + 1)]


def thread_count(threads: int | None) -> int:
    """`threads`, or what numba takes: the environment's NUMBA_NUM_THREADS, or one thread a core."""
    if threads is None:
        from numba import config

        return int(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads
