"""Gaussian filtering of points in d dimensions on the permutohedral lattice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
The points are lifted onto the hyperplane of R^(d+1) whose coordinates sum to 0, where the simplices of the lattice
tile the space. A value is *splatted* onto the d + 1 vertices of the simplex around its point with barycentric weights,
*blurred* along the d + 1 directions of the lattice with the kernel [1/2, 1, 1/2], and *sliced* back with the same
weights.

`build_lattice` computes everything that depends on the points alone, once for any number of sets of values. Values are
rows [.., L] with L a multiple of `LANES`, so that four labels move in one SIMD register. The compiled loops are in
permutohedral_kernels.py.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tagmask.refine import permutohedral_kernels as kernels
from tagmask.refine.permutohedral_kernels import LANES
from tagmask.refine.threads import Threads

_BLOCK = 1 << 20  # points whose keys are in memory at the same time: 48 MB of keys at d = 5
_MAX_KEY = 1 << 62  # keys are packed into one int64
_MAX_COORDINATE = 1 << 20  # beyond it, float32 is too coarse for the position of a point within its simplex

Floats = NDArray[np.float32]
Indices = NDArray[np.uint32]


class _VertexSet:
    """The vertices of one remainder, numbered in the order of their first appearance, which keeps near ones together.

    Attributes:
        table: [slots, 2] int64, a hash table of (key, number) with open addressing, at most half full.
        keys: int64, the key of each vertex by its number; only the first `count` entries are in use.
        count: number of vertices.
    """

    def __init__(self) -> None:
        self.table = np.full((1 << 12, 2), -1, np.int64)
        self.keys = np.empty(1 << 11, np.int64)
        self.count = 0

    def number_into(self, keys: NDArray[np.int64], numbers: Indices) -> None:
        """Add the vertices with these keys that are new, and write the number of each key into `numbers`."""
        done = 0
        while True:
            self.count, added = kernels.number_vertices(keys[done:], numbers[done:], self.table, self.keys, self.count)
            done += added
            if done == len(keys):
                return
            self.keys = np.concatenate([self.keys, np.empty_like(self.keys)])
            self.table = np.full((2 * len(self.table), 2), -1, np.int64)
            kernels.fill_table(self.table, self.keys[: self.count])


@dataclass(frozen=True)
class Lattice:
    """N points in d dimensions and their M vertices.

    All coordinates of a vertex leave the same remainder on division by d + 1, and every simplex has one vertex of each
    remainder 0 .. d. The vertices are numbered by remainder, from 0 to d.

    Attributes:
        vertex: [N, d + 1] the vertices around each point, by remainder.
        weight: [N, d + 1] barycentric weights of these vertices, divided by the square root of the row sum of each
            point, for splatting and for slicing.
        neighbors: [d + 1, M, 2] the next vertex ahead and behind in each direction; M where there is none.
        scale: factor of the sliced values.
    """

    vertex: Indices
    weight: Floats
    neighbors: Indices
    scale: np.float32

    @property
    def num_vertices(self) -> int:
        """M."""
        return self.neighbors.shape[1]

    def buffers(self, num_values: int) -> tuple[Floats, Floats]:
        """Return two buffers [M + 1, L] for vertex values; the last row stands for missing vertices and stays 0."""
        shape = (self.num_vertices + 1, num_values)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def build_lattice(features: Floats, strength: float, threads: Threads) -> Lattice:
    """Build the lattice of N points in d dimensions that filters with the kernel `strength` · D^-1/2 K D^-1/2.

    K is the Gaussian kernel and D the diagonal matrix of its row sums.

    Args:
        features: [N, d], in units of the standard deviation of the Gaussian.
        strength: factor of the kernel.
        threads: the threads to use.

    Raises:
        ValueError: the features span too many cells to number them, because the standard deviation is far too small.
    """
    n, d = features.shape
    # Adams et al., section 3.1: with this scale the blur has a standard deviation of 1
    scale = tuple(np.float32(math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))) for i in range(d))
    low, stride = _packing(features, scale)
    weight = np.empty((n, d + 1), np.float32)
    numbers, sets = _number_vertices(features, scale, low, stride, weight, threads)
    first = np.cumsum([0] + [s.count for s in sets])
    m = int(first[-1])
    neighbors = np.full((d + 1, m, 2), m, np.uint32)

    def connect(begin: int, end: int) -> None:
        for k in range(begin, end):
            numbers[k] += np.uint32(first[k])
            ahead = (k - 1) % (d + 1)  # a step ahead lowers the remainder by 1
            keys = sets[k].keys[: sets[k].count]
            kernels.find_neighbors(keys, sets[ahead].table, stride, k, first[k], first[ahead], neighbors)

    threads.run(threads.even_bounds(d + 1), connect)
    vertex = np.empty((n, d + 1), np.uint32)

    def interleave(begin: int, end: int) -> None:
        vertex[begin:end] = numbers[:, begin:end].T

    threads.run(threads.even_bounds(n), interleave)
    # Slicing divides by the gain of the blur, which is 1 + 2^-d (Adams et al.).
    gain = np.float32(1 / (1 + 2.0**-d))
    lattice = Lattice(vertex, weight, neighbors, np.float32(strength) * gain)
    _normalize_inplace(lattice, gain, threads)
    return lattice


def _number_vertices(
    features: Floats,
    scale: tuple[np.float32, ...],
    low: tuple[int, ...],
    stride: tuple[int, ...],
    weight: Floats,
    threads: Threads,
) -> tuple[Indices, list[_VertexSet]]:
    """Fill in `weight`; return the vertex numbers [d + 1, N] within the set of their remainder, and these sets."""
    n, d = features.shape
    numbers = np.empty((d + 1, n), np.uint32)
    sets = [_VertexSet() for _ in range(d + 1)]
    keys = np.empty((min(n, _BLOCK), d + 1), np.int64)
    for block in range(0, n, _BLOCK):
        size = min(_BLOCK, n - block)

        def locate(begin: int, end: int, block: int = block) -> None:
            part = slice(block + begin, block + end)
            kernels.find_simplices(features[part], scale, low, stride, keys[begin:end], weight[part])

        def number(begin: int, end: int, block: int = block, size: int = size) -> None:
            for k in range(begin, end):
                sets[k].number_into(keys[:size, k], numbers[k, block : block + size])

        threads.run(threads.even_bounds(size), locate)
        threads.run(threads.even_bounds(d + 1), number)
    return numbers, sets


def splat_and_blur(lattice: Lattice, source: Floats, buffers: tuple[Floats, Floats], threads: Threads) -> Floats:
    """Splat the values of the points onto the vertices and blur them.

    Args:
        lattice: the lattice of the N points.
        source: [N, L] the values.
        buffers: two buffers [M + 1, L] of `Lattice.buffers`; both are overwritten.
        threads: the threads to use.

    Returns:
        [M + 1, L] the values of the vertices, in one of the two buffers.
    """
    old, new = buffers

    def clear(begin: int, end: int) -> None:
        old[begin:end] = 0

    def splat(begin: int, end: int) -> None:
        kernels.splat(lattice.vertex, lattice.weight, source, begin, end, old)

    threads.run(threads.even_bounds(lattice.num_vertices), clear)
    threads.run(threads.even_bounds(lattice.vertex.shape[1]), splat)
    for neighbors in lattice.neighbors:

        def blur(begin: int, end: int, old: Floats = old, new: Floats = new, along: Indices = neighbors) -> None:
            kernels.blur_along_direction(along[begin:end], old, old[begin:end], new[begin:end])

        threads.run(threads.even_bounds(lattice.num_vertices), blur)
        old, new = new, old
    return old


def slice_onto(lattice: Lattice, part: slice, values: Floats, base: Floats, out: Floats) -> None:
    """Write `base` [P, L] plus the values at the points of `part` to `out` [P, L]; `base` and `out` may be one."""
    kernels.slice_onto(lattice.vertex[part], lattice.weight[part], lattice.scale, values, base, out)


def _normalize_inplace(lattice: Lattice, gain: np.float32, threads: Threads) -> None:
    """Divide the weights of each point by the square root of its row sum, in place."""
    n = len(lattice.vertex)
    values = splat_and_blur(lattice, np.ones((n, LANES), np.float32), lattice.buffers(LANES), threads)

    def normalize(begin: int, end: int) -> None:
        kernels.normalize_inplace(lattice.vertex[begin:end], lattice.weight[begin:end], values, gain)

    threads.run(threads.even_bounds(n), normalize)


def _packing(features: Floats, scale: tuple[np.float32, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest cell and the stride of each lattice coordinate; the last coordinate is implied (stride 0)."""
    d = len(scale)
    columns = features.T  # one column at a time, because numpy is slow along the first of two axes
    bounds = np.array([[float(c.min()) for c in columns], [float(c.max()) for c in columns]]) * np.array(scale, float)
    low, stride, size = [], [], 1
    for j in range(d):
        # Coordinate j is the sum of the scaled features from index j on minus j times feature j - 1.
        own = -j * bounds[::-1, j - 1] if j else np.zeros(2)
        span = (bounds[:, j:].sum(1) + own) / (d + 1)
        # A margin of 3 cells: for rounding, for the corners of the simplex, and for the neighbors.
        low.append(math.floor(span[0]) - 3)
        stride.append(size)
        size *= math.ceil(span[1]) + 3 - low[-1] + 1
    if size > _MAX_KEY or np.abs(bounds).max() > _MAX_COORDINATE:
        raise ValueError(
            f"the Gaussian is too narrow: features {list(features.shape)} span {size:.0e} lattice cells, "
            "which cannot be told apart; use larger standard deviations"
        )
    return tuple(low), (*stride, 0)
