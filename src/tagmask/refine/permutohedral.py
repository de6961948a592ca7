"""Gaussian filtering of points in d dimensions on the permutohedral lattice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
The points are lifted onto the hyperplane of R^(d+1) whose coordinates sum to 0, where the lattice's simplices tile
space. A value is *splatted* onto the d + 1 vertices of its point's simplex by barycentric weights, *blurred* along
the d + 1 lattice directions with the kernel [1/2, 1, 1/2], and *sliced* back by the same weights.

Everything a filter needs is found once (`build`) and used for any number of value sets. Values are rows [.., L] with
L a multiple of `LANES`, so that four labels move in one SIMD register. The kernels are in
permutohedral_kernels.py.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tagmask.refine import permutohedral_kernels as compiled
from tagmask.refine.permutohedral_kernels import LANES
from tagmask.refine.threads import Threads

_BLOCK = 1 << 20  # points whose keys are held at once: 48 MB of keys at d = 5
_MAX_KEY = 1 << 62  # keys are packed into one int64
_MAX_COORDINATE = 1 << 20  # beyond it, float32 cannot tell where in its simplex a point lies

Floats = NDArray[np.float32]
Numbers = NDArray[np.uint32]


class _VertexSet:
    """Numbers the vertices of one remainder in the order of their first appearance: near ones stay near in memory."""

    def __init__(self) -> None:
        self.table = np.full((1 << 12, 2), -1, np.int64)  # open addressing, (key, number), at most half full
        self.keys = np.empty(1 << 11, np.int64)  # by number
        self.count = 0

    def number(self, keys: NDArray[np.int64], numbers: Numbers) -> None:
        done = 0
        while True:
            self.count, new = compiled.number(keys[done:], numbers[done:], self.table, self.keys, self.count)
            done += new
            if done == len(keys):
                return
            self.keys = np.concatenate([self.keys, np.empty_like(self.keys)])
            self.table = np.full((2 * len(self.table), 2), -1, np.int64)
            compiled.insert(self.table, self.keys[: self.count])


@dataclass(frozen=True)
class Lattice:
    """N points in d dimensions and their M vertices.

    All coordinates of a lattice point leave the same remainder on division by d + 1, and every simplex has one
    vertex of each remainder k = 0 .. d. So the vertices fall into d + 1 sets, which are numbered one after the other.
    """

    vertex: Numbers  # [N, d + 1] the vertices around each point, by remainder
    weight: Floats  # [N, d + 1] barycentric, then scaled by `normalise`
    start: NDArray[np.uint64]  # [M + 1] vertex m's points are entries start[m] : start[m + 1]
    point: Numbers  # [(d + 1) N] by vertex, ascending
    point_weight: Floats  # [(d + 1) N]
    neighbours: Numbers  # [d + 1, M, 2] ahead and behind in each direction; M where the lattice has no vertex
    splat_bounds: list[int]  # vertex ranges with equal numbers of entries, one a thread

    @property
    def n_vertices(self) -> int:
        return len(self.start) - 1

    def buffers(self, n_values: int) -> tuple[Floats, Floats]:
        """Two [M + 1, L] sets of vertex values; the last row stands for missing vertices and stays 0."""
        shape = (self.n_vertices + 1, n_values)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def build(features: Floats, threads: Threads) -> Lattice:
    """The lattice of points `features` [N, d], which are in units of the Gaussian's standard deviation.

    Raises:
        ValueError: the features span too many cells to number them (a standard deviation far too small).
    """
    n, d = features.shape
    # Adams et al., section 3.1: scaled so that the blur's total variance is one standard deviation
    scale = tuple(np.float32(math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))) for i in range(d))
    low, stride = _packing(features, scale)
    weight = np.empty((n, d + 1), np.float32)
    numbers, sets = _number_vertices(features, scale, low, stride, weight, threads)
    first = np.cumsum([0] + [s.count for s in sets])
    m = int(first[-1])
    start = np.full(m + 1, (d + 1) * n, np.uint64)
    point = np.empty((d + 1) * n, np.uint32)
    point_weight = np.empty((d + 1) * n, np.float32)
    neighbours = np.full((d + 1, m, 2), m, np.uint32)

    def connect(begin: int, end: int) -> None:
        for k in range(begin, end):
            entries = slice(k * n, (k + 1) * n)
            own = slice(first[k], first[k + 1])
            compiled.by_vertex(numbers[k], weight, k, start[own], point[entries], point_weight[entries])
            numbers[k] += np.uint32(first[k])
            ahead = (k - 1) % (d + 1)  # a step ahead lowers the remainder by one
            keys = sets[k].keys[: sets[k].count]
            compiled.neighbours(keys, sets[ahead].table, stride, k, first[k], first[ahead], neighbours)

    threads.over(threads.even(d + 1), connect)
    vertex = np.empty((n, d + 1), np.uint32)

    def interleave(begin: int, end: int) -> None:
        vertex[begin:end] = numbers[:, begin:end].T

    threads.over(threads.even(n), interleave)
    bounds = [int(b) for b in np.searchsorted(start, np.linspace(0, start[m], threads.count + 1))]
    bounds[0], bounds[-1] = 0, m
    return Lattice(vertex, weight, start, point, point_weight, neighbours, bounds)


def _number_vertices(
    features: Floats,
    scale: tuple[np.float32, ...],
    low: tuple[int, ...],
    stride: tuple[int, ...],
    weight: Floats,
    threads: Threads,
) -> tuple[Numbers, list[_VertexSet]]:
    """Fill in the barycentric weights; the vertices' numbers [d + 1, N], each within its remainder's set."""
    n, d = features.shape
    numbers = np.empty((d + 1, n), np.uint32)
    sets = [_VertexSet() for _ in range(d + 1)]
    keys = np.empty((min(n, _BLOCK), d + 1), np.int64)
    for block in range(0, n, _BLOCK):
        size = min(_BLOCK, n - block)

        def locate(begin: int, end: int, block: int = block) -> None:
            part = slice(block + begin, block + end)
            compiled.simplices(features[part], scale, low, stride, keys[begin:end], weight[part])

        def number(begin: int, end: int, block: int = block, size: int = size) -> None:
            for k in range(begin, end):
                sets[k].number(keys[:size, k], numbers[k, block : block + size])

        threads.over(threads.even(size), locate)
        threads.over(threads.even(d + 1), number)
    return numbers, sets


def spread(lattice: Lattice, source: Floats, buffers: tuple[Floats, Floats], threads: Threads) -> Floats:
    """Splat the rows of `source` [N, L] and blur them: the vertex values, in one of the two buffers."""
    old, new = buffers

    def splat(begin: int, end: int) -> None:
        compiled.splat(lattice.start[begin : end + 1], lattice.point, lattice.point_weight, source, old[begin:end])

    threads.over(lattice.splat_bounds, splat)
    for neighbours in lattice.neighbours:

        def blur(begin: int, end: int, old: Floats = old, new: Floats = new, along: Numbers = neighbours) -> None:
            compiled.blur(along[begin:end], old, old[begin:end], new[begin:end])

        threads.over(threads.even(lattice.n_vertices), blur)
        old, new = new, old
    return old


def normalise(lattice: Lattice, strength: float, threads: Threads) -> None:
    """Scale the lattice's weights in place to those of `strength` D^-1/2 K D^-1/2, D the row sums of K."""
    n, corners = lattice.vertex.shape
    norms = np.ones((n, LANES), np.float32)
    values = spread(lattice, norms, lattice.buffers(LANES), threads)
    # the blur's gain (Adams et al.: 1 + 2^-d) is taken out on slicing
    gain = np.float32(1 / (1 + 2.0 ** (1 - corners)))

    def scale(begin: int, end: int) -> None:
        part = slice(begin, end)
        compiled.normalise(lattice.vertex[part], lattice.weight[part], values, gain, np.float32(strength), norms[part])

    def scale_entries(begin: int, end: int) -> None:
        compiled.scale_entries(lattice.point[begin:end], lattice.point_weight[begin:end], norms)

    threads.over(threads.even(n), scale)
    threads.over(threads.even(n * corners), scale_entries)


def _packing(features: Floats, scale: tuple[np.float32, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The least cell and the stride of each lattice coordinate (the last one is implied: stride 0)."""
    d = len(scale)
    columns = features.T  # one at a time: numpy is slow along the first of two axes
    bounds = np.array([[float(c.min()) for c in columns], [float(c.max()) for c in columns]]) * np.array(scale, float)
    low, stride, size = [], [], 1
    for j in range(d):
        # coordinate j is the sum of the later features' coordinates minus j times its own
        own = -j * bounds[::-1, j - 1] if j else np.zeros(2)
        span = (bounds[:, j:].sum(1) + own) / (d + 1)
        # 3 cells to spare: rounding, the way to the simplex's corners, and one for neighbours
        low.append(math.floor(span[0]) - 3)
        stride.append(size)
        size *= math.ceil(span[1]) + 3 - low[-1] + 1
    if size > _MAX_KEY or np.abs(bounds).max() > _MAX_COORDINATE:
        raise ValueError(
            f"the Gaussian is too narrow: features {list(features.shape)} span {size:.0e} lattice cells, "
            "which cannot be told apart; use larger standard deviations"
        )
    return tuple(low), (*stride, 0)
