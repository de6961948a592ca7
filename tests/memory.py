"""The memory that a call takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(call: Callable[[], object]) -> int:
    """Call a function and return by how many bytes the memory of this process grew at most, of all libraries.

    The test is skipped where the kernel is not Linux.
    """
    if not CLEAR_REFS.exists():
        pytest.skip("reads the memory of a process from /proc")
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that is free, but not returned, would be used and not counted
    CLEAR_REFS.write_text("5")  # sets VmHWM, the highest use of memory, to the present use
    before = _read("VmRSS")
    call()
    return _read("VmHWM") - before


def _read(name: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
