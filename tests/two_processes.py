"""Functions that run in two processes, as torchrun would start them, without importing PyTorch again."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from tests.command_processes import CONTEXT

TIMEOUT = 120  # seconds


def run_in_two(function: Callable[..., None], *arguments: Any, workers: int = 0) -> list[int | None]:
    """Call `function(compute, *arguments)` in two processes; return their exit statuses.

    Args:
        function: of a module, so that it can be pickled; its first argument is a `Compute` in float32 on the CPU.
        arguments: further arguments, which can be pickled.
        workers: of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [CONTEXT.Process(target=_call, args=(rank, port, workers, function, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
        process.kill()
    return [process.exitcode for process in processes]


def _call(rank: int, port: int, workers: int, function: Callable[..., None], *arguments: Any) -> None:
    os.environ |= {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load images
    import torch

    from tagmask.compute import Compute

    torch.set_num_threads(1)
    function(Compute.detect("cpu", "float32", workers), *arguments)
