"""Time work that is divided among processes, for the benchmarks of parts and of shards."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier

Part = tuple[int, int]


def seconds_of_parts(make_part: Callable[[Part], object], num_processes: int) -> float:
    """Return the time in seconds from when all processes have started until all have ended.

    Args:
        make_part: makes the part (i, n) of the work, with i from 1 to n.
        num_processes: n, one process for each part. They are forked, so the libraries are loaded already.

    Raises:
        SystemExit: a process has failed.
    """
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(num_processes + 1)
    parts = [(i + 1, num_processes) for i in range(num_processes)]
    processes = [context.Process(target=_make_when_ready, args=(make_part, part, ready)) for part in parts]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process has failed")
    return time.perf_counter() - start


def _make_when_ready(make_part: Callable[[Part], object], part: Part, ready: Barrier) -> None:
    ready.wait()
    make_part(part)
