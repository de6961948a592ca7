"""The compiled loops of permutohedral.py and of the mean field in dense_crf.py.

A row is the values [L] of one point or one vertex, with L a multiple of `LANES`. When points are splatted, each thread
has remainders of its own, and adds the points in ascending order. So threads never write to the same row, and the
result is the same for any number of threads. Output arrays are arguments, because they are parts of larger arrays.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (numba infers the types of the kernels)

import math
from pathlib import Path

import numpy as np

from tagmask.refine.jit import jit

LANES = 4  # float32 values in one SIMD register
_TILE = 64  # rows that stay in the cache between the passes of a softmax
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


@jit
def find_simplices(features, scale, low, stride, keys, weights):
    """Compute the keys and barycentric weights of the d + 1 vertices around each point.

    The quotients q of its first d coordinates on division by d + 1 identify a vertex among those of one remainder:
    key = sum_i (q_i - low_i) stride_i.

    Args:
        features: [N, d] the points.
        scale: [d] factors of the features.
        low: [d] smallest quotient of each coordinate.
        stride: [d + 1] stride of each coordinate in the key.
        keys: [N, d + 1] int64, output.
        weights: [N, d + 1] float32, output.
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
        # the nearest point of remainder 0; its coordinates sum to (d + 1) times `off` instead of 0
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
            # back onto the plane: the coordinates with the largest rounding errors move by one cell
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
    """Return the slot of `key` in a hash table of (key, number) with open addressing, or the free slot for it."""
    mask = np.uint64(len(table) - 1)
    slot = ((np.uint64(key) * _GOLDEN) >> np.uint64(32)) & mask
    while table[slot, 0] != key and table[slot, 0] != -1:
        slot = (slot + np.uint64(1)) & mask
    return slot


@jit
def number_vertices(keys, numbers, table, vertex_key, count):
    """Number the vertices of `keys` in the order of their first appearance, until `vertex_key` is full.

    Args:
        keys: [N] int64.
        numbers: [N] output: the number of the vertex of each key.
        table: hash table of (key, number); new vertices are added.
        vertex_key: key of each vertex by its number; new vertices are added.
        count: number of vertices before.

    Returns:
        The number of vertices, and the number of keys that were processed.
    """
    previous = np.int64(-1)
    number = np.int64(0)
    for p in range(len(keys)):
        key = keys[p]
        if key != previous:  # neighboring pixels often share a vertex
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
def fill_table(table, vertex_key):
    """Add all vertices to an empty hash table of (key, number)."""
    for number in range(len(vertex_key)):
        slot = _slot(table, vertex_key[number])
        table[slot, 0] = vertex_key[number]
        table[slot, 1] = number


@jit
def find_neighbors(vertex_key, table, stride, k, first, first_ahead, out):
    """Find the vertices one step ahead of those of remainder k.

    A step ahead adds d to one coordinate and subtracts 1 from all others.

    Args:
        vertex_key: keys of the vertices of remainder k.
        table: hash table of the vertices one step ahead.
        stride: [d + 1] stride of each coordinate in the key.
        k: the remainder.
        first: number of the first vertex of remainder k.
        first_ahead: number of the first vertex one step ahead.
        out: [d + 1, M, 2] output: the vertices ahead and behind in each direction.
    """
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
def splat(vertex, weight, source, first, last, values):
    """Add the weighted rows of `source` to the rows of `values` at the vertices of each point.

    Args:
        vertex: [N, d + 1] the vertices around each point, by remainder.
        weight: [N, d + 1] their weights.
        source: [N, L] the values of the points.
        first: the first remainder whose vertices get values.
        last: the remainder after the last one.
        values: [M, L] the values of the vertices.
    """
    for p in range(len(source)):
        row = source[p]
        for k in range(first, last):
            w = weight[p, k]
            out = values[vertex[p, k]]
            if len(row) == LANES:  # in a register
                a = out[0] + w * row[0]
                b = out[1] + w * row[1]
                c = out[2] + w * row[2]
                d = out[3] + w * row[3]
                out[0], out[1], out[2], out[3] = a, b, c, d
            else:
                for i in range(len(out)):
                    out[i] += w * row[i]


@jit
def blur_along_direction(neighbors, all_values, old, new):
    """Write old + half of both neighbors along one direction to `new`; `old` is a part of `all_values`."""
    half = np.float32(0.5)
    for v in range(len(new)):
        out = new[v]
        center = old[v]
        ahead = all_values[neighbors[v, 0]]
        behind = all_values[neighbors[v, 1]]
        if len(out) == LANES:  # in a register
            a = center[0] + half * (ahead[0] + behind[0])
            b = center[1] + half * (ahead[1] + behind[1])
            c = center[2] + half * (ahead[2] + behind[2])
            d = center[3] + half * (ahead[3] + behind[3])
            out[0], out[1], out[2], out[3] = a, b, c, d
        else:
            for i in range(len(out)):
                out[i] = center[i] + half * (ahead[i] + behind[i])


@jit
def slice_onto(vertex, weight, scale, values, base, out):
    """Write base[p] + `scale` times the weighted sum of the rows of `values` at the vertices of p to out[p].

    `base` and `out` may be one.
    """
    for p in range(len(out)):
        target = out[p]
        start = base[p]
        if len(target) == LANES:  # in registers
            a, b, c, d = start[0], start[1], start[2], start[3]
            for k in range(vertex.shape[1]):
                w = scale * weight[p, k]
                row = values[vertex[p, k]]
                a += w * row[0]
                b += w * row[1]
                c += w * row[2]
                d += w * row[3]
            target[0], target[1], target[2], target[3] = a, b, c, d
        else:
            for i in range(len(target)):
                target[i] = start[i]
            for k in range(vertex.shape[1]):
                w = scale * weight[p, k]
                row = values[vertex[p, k]]
                for i in range(len(target)):
                    target[i] += w * row[i]


@jit
def normalize_inplace(vertex, weight, values, gain):
    """Scale the weights of each point by (K 1)_p^(-1/2) in place.

    Args:
        vertex: [N, d + 1] the vertices around each point.
        weight: [N, d + 1] their weights.
        values: [M + 1, LANES] the value 1 of every point, splatted and blurred.
        gain: 1 / the gain of the blur.
    """
    for p in range(len(weight)):
        total = np.float32(0)
        for k in range(vertex.shape[1]):
            total += weight[p, k] * values[vertex[p, k], 0]
        norm = np.float32(1) / math.sqrt(total * gain + np.float32(1e-20))
        for k in range(vertex.shape[1]):
            weight[p, k] *= np.float32(norm)


@jit
def _exp(x):
    """Compute e^x for x <= 0 with a relative error of 2e-7, in few enough steps to vectorize.

    At -60 and below the result is exactly 0, because products of smaller marginals with weights would be denormal
    numbers, which are slow.
    """
    x = max(x, np.float32(-60))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln 2 in two parts
    # Taylor series for |r| <= ln(2) / 2
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
def softmax_inplace(logits, num_sets, size):
    """Replace the first `num_sets` times `size` values of each row by the softmax of each set of `size` values.

    Args:
        logits: [N, L]; the values after the sets are far below 0, and become 0.
        num_sets: the number of sets.
        size: the number of values of a set.
    """
    for begin in range(0, len(logits), _TILE):
        tile = logits[begin : begin + _TILE]
        for p in range(len(tile)):
            for s in range(num_sets):
                row = tile[p, s * size : (s + 1) * size]
                largest = row[0]
                for i in range(1, len(row)):
                    largest = max(largest, row[i])
                for i in range(len(row)):
                    row[i] -= largest
        flat = tile.reshape(-1)
        for i in range(len(flat)):
            flat[i] = _exp(flat[i])
        for p in range(len(tile)):
            for s in range(num_sets):
                row = tile[p, s * size : (s + 1) * size]
                total = np.float32(0)
                for i in range(len(row)):
                    total += row[i]
                scale = np.float32(1) / total
                for i in range(len(row)):
                    row[i] *= scale


@jit
def softmax_of_selected_inplace(logits, unary, share, num_labels, least_log_sum):
    """Replace each row of `logits` [N, L] by its softmax, with one label that stands for all labels left out.

    Label `num_labels` is the sum of the labels left out: its message is scaled. The next one, if there is room for it,
    is an upper bound of each of them: it does not count in the sum of the softmax.

    Args:
        logits: [N, L] logits plus messages; output.
        unary: [N, L] the logits alone.
        share: [N] factor of the message of the sum.
        num_labels: the number of selected labels; the labels after the bound only fill a SIMD register.
        least_log_sum: [N] a lower bound of log Σ exp in all calls but the first; NaN before the first one. Output.
    """
    rest, bound = num_labels, num_labels + 1
    largest_of_tile = np.empty(_TILE, np.float32)
    for begin in range(0, len(logits), _TILE):
        tile = logits[begin : begin + _TILE]
        for p in range(len(tile)):
            row = tile[p]
            base = unary[begin + p, rest]
            row[rest] = base + share[begin + p] * (row[rest] - base)
            largest = row[0]
            for i in range(1, bound):
                largest = max(largest, row[i])
            largest_of_tile[p] = largest
            for i in range(len(row)):
                row[i] -= largest
            if bound < len(row):
                row[bound] = min(row[bound], np.float32(0))
        flat = tile.reshape(-1)
        for i in range(len(flat)):
            flat[i] = _exp(flat[i])
        for p in range(len(tile)):
            row = tile[p]
            total = np.float32(0)
            for i in range(bound):
                total += row[i]
            scale = np.float32(1) / total
            # log t ≥ 2 (t − 1) / (t + 1) for t ≥ 1, which is much faster to compute than the logarithm
            log_sum = largest_of_tile[p] + np.float32(2) * (total - np.float32(1)) / (total + np.float32(1))
            least = least_log_sum[begin + p]
            least_log_sum[begin + p] = np.float32(np.inf) if math.isnan(least) else min(least, log_sum)
            reached = bound < len(row) and row[bound] >= np.float32(
                1
            )  # as large as the largest marginal: no bound below 1 is known
            for i in range(len(row)):
                row[i] *= scale
            if reached:
                row[bound] = np.float32(1)


def needs_compiling() -> bool:
    """Return whether the next filter will first compile the kernels, because this machine has no compiled ones yet."""
    last = slice_onto  # all other kernels of the CRF are compiled before it
    if last.signatures or last.stats.cache_path is None:
        return not last.signatures
    source = Path(__file__)
    cached = Path(last.stats.cache_path).glob(f"{source.stem}.{last.__name__}-*.nbi")
    return not any(index.stat().st_mtime >= source.stat().st_mtime for index in cached)
