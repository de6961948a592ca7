"""The compiled loop of random_walk.py."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from tagmask.refine.jit import jit

_BLOCK = 2048  # cells whose values stay in the fastest cache while the contributions of all neighbors are added


@jit
def walk_inplace(affinity, inverse_sum, shifts, values, scratch, margin, steps):
    """Multiply `values` by the transition matrix T `steps` times. Overwrites `values` and `scratch`; returns one.

    T is symmetric affinities with normalized columns. Its columns sum to 1, so that (x T)_j =
    x_j + inverse_sum_j · sum_n affinity_jn (x_n - x_j). In this form float32 does not drift in hundreds of steps.

    Args:
        affinity: [pairs, cells] affinity of each cell to the cell `shifts[pair]` further on; 0 where there is none.
        inverse_sum: [cells] 1 / the sum of the column of affinities.
        shifts: [pairs] in cells; an even number of them, as a half disc always has.
        values: [K, cells] the maps; the first and last `margin` cells are 0.
        scratch: [K, cells] of zeros.
        margin: number of cells at both ends that no walk reaches, at least the largest shift.
        steps: number of multiplications.

    Returns:
        [K, cells] the maps after the walk, either in `values` or in `scratch`.
    """
    cells = len(inverse_sum)
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
                    scratch[k, i] = values[k, i] + inverse_sum[i] * scratch[k, i]
        values, scratch = scratch, values
    return values
