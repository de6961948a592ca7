"""The compiled loop of random_walk.py."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from tagmask.refine.permutohedral_kernels import jit

_BLOCK = 2048  # cells whose values stay in the fastest cache while all neighbours are added


@jit
def walk(affinity, share, shifts, values, scratch, margin, steps):
    """`steps` times x T, for the column-normalised T of symmetric affinities.

    Columns sum to 1, so that (x T)_j = x_j + share_j sum_n affinity_jn (x_n - x_j) with share = 1 / the column's sum:
    float32 that does not drift in hundreds of steps.

    Args:
        affinity: [pairs, cells] of a cell to the one `shifts[pair]` further on; 0 where that is none.
        share: [cells].
        shifts: [pairs] in cells, an even number of them: a disc has 4 neighbours or a multiple.
        values, scratch: [K, cells]; both are overwritten.
        margin: of 0 at both ends, as wide as any shift.
    """
    cells = len(share)
    for _ in range(steps):
        for first in range(margin, cells - margin, _BLOCK):
            last = min(first + _BLOCK, cells - margin)
            scratch[:, first:last] = np.float32(0)
            for n in range(0, len(shifts), 2):
                s, t = shifts[n], shifts[n + 1]
                to_s, from_s = affinity[n, first:last], affinity[n, first - s : last - s]
                to_t, from_t = affinity[n + 1, first:last], affinity[n + 1, first - t : last - t]
                for k in range(len(values)):
                    total = scratch[k, first:last]
                    own = values[k, first:last]
                    next_s, last_s = values[k, first + s : last + s], values[k, first - s : last - s]
                    next_t, last_t = values[k, first + t : last + t], values[k, first - t : last - t]
                    for i in range(len(total)):
                        v = own[i]
                        along_s = to_s[i] * (next_s[i] - v) + from_s[i] * (last_s[i] - v)
                        along_t = to_t[i] * (next_t[i] - v) + from_t[i] * (last_t[i] - v)
                        total[i] += along_s + along_t
            for k in range(len(values)):
                for i in range(first, last):
                    scratch[k, i] = values[k, i] + share[i] * scratch[k, i]
        values, scratch = scratch, values
    return values
