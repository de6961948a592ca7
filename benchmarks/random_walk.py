"""Measure the time of the random walk against dense repeated squaring in the same run.

    python benchmarks/random_walk.py

IRN's code squares the dense float32 [N, N] transition matrix eight times. Its time here is that of the eight matrix
products alone, with torch. The time of tagmask is that of the whole call. Both use two threads.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from tagmask.refine.random_walk import propagate


def example(height: int, width: int, num_maps: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return random maps [K, h, w] and a random boundary [h, w], both float32."""
    random = np.random.default_rng(0)
    maps = random.random((num_maps, height, width)).astype(np.float32)
    return maps, (random.random((height, width)) ** 3).astype(np.float32)


def best_time(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several run times in seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def square_repeatedly(n: int, times: int = 8) -> None:
    """Square an [n, n] matrix repeatedly, as IRN's code does with the transition matrix."""
    matrix = torch.full((n, n), 1 / n)  # the values do not matter for the time
    for _ in range(times):
        matrix = matrix @ matrix


def main() -> None:
    torch.set_num_threads(2)
    maps, boundary = example(47, 63)
    propagate(maps, boundary, threads=2)  # compiles the kernel
    ours = best_time(lambda: propagate(maps, boundary, threads=2), 60)
    dense = best_time(lambda: square_repeatedly(47 * 63), 2)
    print(
        f"47×63, 2 maps, 256 steps: {ours * 1e3:.1f} ms; dense squaring {dense:.2f} s: {dense / ours:.0f} times as fast"
    )
    maps, boundary = example(94, 125)
    print(f"94×125, 2 maps: {best_time(lambda: propagate(maps, boundary, threads=2), 5) * 1e3:.0f} ms")
    maps, boundary = example(750, 1000)
    seconds = best_time(lambda: propagate(maps, boundary, threads=2), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"750×1,000 (4,000×3,000 pixels at stride 4), 2 maps: {seconds:.1f} s; peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
