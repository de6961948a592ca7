"""The compiled loops of permutohedral.py and of the mean field: all work of which there is much, and no decisions.

A row is one point's or one vertex's values [L], L a multiple of `LANES`. Splatting *gathers* each vertex's points in
ascending order: no races, and the same bits for any number of threads.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (numba finds the kernels' types)

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

LANES = 4
_TILE = 64  # rows that stay in the cache between the passes of a softmax
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


# nogil kernels under Python threads, not prange: safe after fork, from several threads, with any threading layer.
# Indices are unsigned or start at 0: no test for negative ones, so that the loops vectorise.
def jit(function: Callable[..., Any]) -> Any:
    try:
        return njit(function, cache=True, nogil=True, fastmath={"contract"})
    except RuntimeError:  # neither the package's nor the user's folder can be written: compile in each process
        return njit(function, nogil=True, fastmath={"contract"})


@jit
def simplices(features, scale, low, stride, keys, weights):
    """Keys and barycentric weights of the d + 1 vertices around each point.

    Among the vertices of one remainder, a vertex is known by its first d coordinates' quotients q on division by
    d + 1: key = sum_i (q_i - low_i) stride_i.
    """
    d = len(scale)
    down = np.float32(1.0 / (d + 1))
    elevated = np.empty(d + 1, np.float32)
    cell = np.empty(d + 1, np.int32)
    rank = np.empty(d + 1, np.int32)
    by_rank = np.empty(d + 1, np.int32)
    barycentric = np.empty(d + 2, np.float32)
    for p in range(len(features)):
        tail = np.float32(0)
        for j in range(d, 0, -1):
            c = features[p, j - 1] * scale[j - 1]
            elevated[j] = tail - np.float32(j) * c
            tail += c
        elevated[0] = tail
        # the nearest point of remainder 0, which may lie off the plane by `off`
        off = np.int32(0)
        for j in range(d + 1):
            cell[j] = np.int32(math.ceil(elevated[j] * down - np.float32(0.5)))
            off += cell[j]
            elevated[j] -= np.float32(cell[j] * (d + 1))
            rank[j] = 0
        for i in range(d):
            for j in range(i + 1, d + 1):
                smaller = np.int32(elevated[i] < elevated[j])
                rank[i] += smaller
                rank[j] += 1 - smaller
        for j in range(d + 2):
            barycentric[j] = 0
        key = np.int64(0)
        for j in range(d + 1):
            # back onto the plane: the coordinates that were rounded furthest move by one cell
            r = rank[j] + off
            move = np.int32(r < 0) - np.int32(r > d)
            r += move * (d + 1)
            by_rank[r] = j
            v = elevated[j] * down - np.float32(move)
            barycentric[d - r] += v
            barycentric[d - r + 1] -= v
            if j < d:
                key += (cell[j] + move - low[j]) * stride[j]
        barycentric[0] += np.float32(1) + barycentric[d + 1]
        for k in range(d + 1):
            keys[p, k] = key
            weights[p, k] = barycentric[k]
            key -= stride[by_rank[d - k]]


@jit
def _slot(table, key):
    """Where `key` is in the open-addressing table of (key, number), or the empty slot where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = ((np.uint64(key) * _GOLDEN) >> np.uint64(32)) & mask
    while table[slot, 0] != key and table[slot, 0] != -1:
        slot = (slot + np.uint64(1)) & mask
    return slot


@jit
def number(keys, numbers, table, vertex_key, count):
    """Number the vertices `keys` until the keys or the table's room end: the count of vertices, and of keys done."""
    previous = np.int64(-1)
    number = np.int64(0)
    for p in range(len(keys)):
        key = keys[p]
        if key != previous:  # neighbouring pixels often share a vertex
            slot = _slot(table, key)
            if table[slot, 0] == -1:
                if count == len(vertex_key):
                    return count, p
                table[slot, 0] = key
                table[slot, 1] = count
                vertex_key[count] = key
                count += 1
            number = table[slot, 1]
            previous = key
        numbers[p] = number
    return count, len(keys)


@jit
def insert(table, vertex_key):
    for number in range(len(vertex_key)):
        slot = _slot(table, vertex_key[number])
        table[slot, 0] = vertex_key[number]
        table[slot, 1] = number


@jit
def by_vertex(numbers, weight, k, start, point, point_weight):
    """Sort the (point, weight) pairs of remainder k by vertex."""
    n = len(numbers)
    place = np.zeros(len(start) + 1, np.int64)
    for v in numbers:
        place[v + 1] += 1
    for v in range(len(start)):
        place[v + 1] += place[v]
        start[v] = k * n + place[v]
    for p in range(n):
        to = place[numbers[p]]
        point[to] = p
        point_weight[to] = weight[p, k]
        place[numbers[p]] += 1


@jit
def neighbours(vertex_key, table, stride, k, first, first_ahead, out):
    """Find the vertices one step ahead of those of remainder k: d more in one coordinate, 1 less in all others."""
    for axis in range(len(stride)):
        step = stride[axis]
        if k == 0:
            for s in stride:
                step -= s
        for v in range(len(vertex_key)):
            slot = _slot(table, vertex_key[v] + step)
            if table[slot, 0] != -1:
                ahead = first_ahead + table[slot, 1]
                out[axis, first + v, 0] = ahead
                out[axis, ahead, 1] = first + v


@jit
def splat(start, point, weight, source, values):
    """values[v] = the weighted sum of the rows of `source` [N, L] at v's points."""
    for v in range(len(values)):
        out = values[v]
        if len(out) == LANES:  # in registers
            a = b = c = d = np.float32(0)
            for e in range(start[v], start[v + 1]):
                w = weight[e]
                row = source[point[e]]
                a += w * row[0]
                b += w * row[1]
                c += w * row[2]
                d += w * row[3]
            out[0], out[1], out[2], out[3] = a, b, c, d
        else:
            for i in range(len(out)):
                out[i] = 0
            for e in range(start[v], start[v + 1]):
                w = weight[e]
                row = source[point[e]]
                for i in range(len(out)):
                    out[i] += w * row[i]


@jit
def blur(neighbours, everywhere, old, new):
    """new = old + half of both neighbours, along one direction; `old` is a part of `everywhere`."""
    half = np.float32(0.5)
    for v in range(len(new)):
        out = new[v]
        centre = old[v]
        ahead = everywhere[neighbours[v, 0]]
        behind = everywhere[neighbours[v, 1]]
        for i in range(len(out)):
            out[i] = centre[i] + half * (ahead[i] + behind[i])


@jit
def slice_onto(vertex, weight, values, base, out):
    """out[p] = base[p] + the weighted sum of the rows of `values` at p's vertices; `base` may be `out`."""
    for p in range(len(out)):
        to = out[p]
        since = base[p]
        if len(to) == LANES:  # in registers
            a, b, c, d = since[0], since[1], since[2], since[3]
            for k in range(vertex.shape[1]):
                w = weight[p, k]
                row = values[vertex[p, k]]
                a += w * row[0]
                b += w * row[1]
                c += w * row[2]
                d += w * row[3]
            to[0], to[1], to[2], to[3] = a, b, c, d
        else:
            for i in range(len(to)):
                to[i] = since[i]
            for k in range(vertex.shape[1]):
                w = weight[p, k]
                row = values[vertex[p, k]]
                for i in range(len(to)):
                    to[i] += w * row[i]


@jit
def normalise(vertex, weight, values, gain, strength, norms):
    """norms[p] = (K 1)_p^(-1/2), and the weights scaled for slicing."""
    for p in range(len(norms)):
        total = np.float32(0)
        for k in range(vertex.shape[1]):
            total += weight[p, k] * values[vertex[p, k], 0]
        norm = np.float32(1) / math.sqrt(total * gain + np.float32(1e-20))
        norms[p, 0] = norm
        for k in range(vertex.shape[1]):
            weight[p, k] *= gain * strength * norm


@jit
def scale_entries(point, point_weight, norms):
    for e in range(len(point)):
        point_weight[e] *= norms[point[e], 0]


@jit
def _exp(x):
    """e^x for x <= 0, to 2e-7 and in few enough steps to vectorise; exactly 0 at -60 and below, or products of
    marginals with weights would be denormal numbers, which are slow."""
    x = max(x, np.float32(-60))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln 2 in two parts
    # Taylor's series, |r| <= ln(2) / 2
    e = np.float32(1 / 720)
    e = e * r + np.float32(1 / 120)
    e = e * r + np.float32(1 / 24)
    e = e * r + np.float32(1 / 6)
    e = e * r + np.float32(1 / 2)
    e = e * r + np.float32(1)
    e = e * r + np.float32(1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return e * power if x > np.float32(-60) else np.float32(0)


@jit
def softmax(logits):
    """Softmax of each row of `logits` [N, L], in place."""
    for begin in range(0, len(logits), _TILE):
        tile = logits[begin : begin + _TILE]
        for p in range(len(tile)):
            row = tile[p]
            largest = row[0]
            for i in range(1, len(row)):
                largest = max(largest, row[i])
            for i in range(len(row)):
                row[i] -= largest
        flat = tile.reshape(-1)
        for i in range(len(flat)):
            flat[i] = _exp(flat[i])
        for p in range(len(tile)):
            row = tile[p]
            total = np.float32(0)
            for i in range(len(row)):
                total += row[i]
            scale = np.float32(1) / total
            for i in range(len(row)):
                row[i] *= scale


def needs_compiling() -> bool:
    """Whether the next filter will first have to compile the kernels: this machine has no cache of them yet."""
    last = slice_onto  # every other kernel that a CRF needs is compiled before it
    if last.signatures or last.stats.cache_path is None:
        return not last.signatures
    source = Path(__file__)
    cached = Path(last.stats.cache_path).glob(f"{source.stem}.{last.__name__}-*.nbi")
    return not any(index.stat().st_mtime >= source.stat().st_mtime for index in cached)
