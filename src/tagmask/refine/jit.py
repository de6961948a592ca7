"""Compilation of kernels with numba.

Kernels that release the GIL run in Python threads (`Threads`). Unlike numba's prange, this is safe after a fork, from
several threads, and with any threading layer. Indices in kernels are unsigned or start at 0, so that numba needs no
test for negative ones and the loops vectorize.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Any:
    """Compile a kernel that releases the GIL, and keep it on disk."""
    try:
        return njit(function, cache=True, nogil=True, fastmath={"contract"})
    except RuntimeError:  # no cache folder can be written: compile in each process
        return njit(function, nogil=True, fastmath={"contract"})
