"""What is different in the process while a network is trained, and is restored afterwards."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # parameters of mallopt, from glibc's malloc.h
_ALLOCATION_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let PyTorch use deterministic algorithms where they exist, or leave its settings as they are.

    They are not for inference: on a GPU, resizing would be slower, and a resumed run, which trains nothing in its
    process, would give other bits.

    By default, PyTorch also fills each new tensor with NaN then, in case an operation reads memory that it has not
    written. None of ours do, and filling takes a fifth of the time on a CPU.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if enabled:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False  # it chooses algorithms by their speed in this process
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the memory of tensors that are freed stay in the process for the next ones, and return it in the end.

    Otherwise glibc returns the memory of each large tensor to Linux, and gets it again for the next one. Linux clears
    each page before, which takes a quarter of the time of a training step on a CPU. A training step needs tensors of
    the same sizes again and again, so little more memory is taken than one step needs.

    Nothing happens where the C library is not glibc, or if the user has set an environment variable about its
    allocation (MALLOC_..., GLIBC_TUNABLES, or LD_PRELOAD, which may load another allocator).
    """
    libc = _glibc()
    if libc is None or any(name.startswith(_ALLOCATION_VARIABLES) for name in os.environ):
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # The largest thresholds that glibc itself reaches as a program frees larger and larger blocks. It no longer
        # adapts them once they have been set.
        libc.mallopt(_M_MMAP_MAX, 65536)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a training like any other loop, by KeyboardInterrupt.

    Lightning ends Python instead (at SIGTERM with the exit status of success), and replaces the handler of Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Hide Lightning's warnings about settings that are deliberate here."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        log.setLevel(level)
