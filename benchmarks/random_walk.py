"""Speed of the random walk: the sparse walk against dense repeated squaring, both in this run.

    python benchmarks/random_walk.py

The reference squares the dense float32 [N, N] transition matrix eight times; its time here is that of the eight matrix
products alone (torch). Ours is the whole call. Both use two threads.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from tagmask.refine.random_walk import propagate


def example(height: int, width: int, n_maps: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Maps [K, h, w] and a mostly closed boundary [h, w]."""
    random = np.random.default_rng(0)
    maps = random.random((n_maps, height, width)).astype(np.float32)
    return maps, (random.random((height, width)) ** 3).astype(np.float32)


def best(context: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        context()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def squaring(n: int, doublings: int = 8) -> None:
    """The reference's work on an [n, n] transition matrix."""
    matrix = torch.full((n, n), 1 / n)  # the values do not matter for the time
    for _ in range(doublings):
        matrix = matrix @ matrix


def main() -> None:
    torch.set_num_threads(2)
    maps, boundary = example(47, 63)
    propagate(maps, boundary, threads=2)  # compile
    ours = best(lambda: propagate(maps, boundary, threads=2), 60)
    dense = best(lambda: squaring(47 * 63), 2)
    print(
        f"47×63, 2 maps, 256 steps: {ours * 1e3:.1f} ms; dense squaring {dense:.2f} s: {dense / ours:.0f} times as fast"
    )
    maps, boundary = example(94, 125)
    print(f"94×125, 2 maps: {best(lambda: propagate(maps, boundary, threads=2), 5) * 1e3:.0f} ms")
    maps, boundary = example(750, 1000)
    seconds = best(lambda: propagate(maps, boundary, threads=2), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"750×1,000 (4,000×3,000 pixels at stride 4), 2 maps: {seconds:.1f} s; peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
