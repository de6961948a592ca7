"""Command lines of tagmask in processes of their own, which do not import PyTorch again.

They are forks of a server process, which imports it once and starts no thread: PyTorch cannot train in a fork of a
process that has trained on a machine with GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tagmask.pipeline", "tagmask.report.update", "tagmask.methods.segment"])
TIMEOUT = 300  # seconds


def start_command(arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Start `tagmask ARGUMENTS`, whose output goes to log/stdout.log and log/stderr.log."""
    log.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(arguments, log, environment or {}))
    process.start()
    return process


def run_in_two_processes(arguments: Sequence[str], log: Path) -> int:
    """Run `tagmask ARGUMENTS` as torchrun does: if one process fails, the other one is stopped.

    Args:
        arguments: the command line.
        log: the output of each process goes to log/<rank>/stdout.log and stderr.log.

    Returns:
        The exit status: 0 if that of both processes is 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [start_command(arguments, log / rank["RANK"], {**common, **rank}) for rank in ranks]
    deadline = time.monotonic() + TIMEOUT
    while any(process.exitcode is None for process in processes):
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
        for process in processes:
            process.join(0.05)
    return max(abs(process.exitcode or 0) for process in processes)


def _run(arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **environment}
    for stream in (sys.stdout, sys.stderr):
        name = stream.name.strip("<>")
        stream.flush()
        file = os.open(log / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
        os.close(file)
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load images, as without the server
    import torch

    torch.set_num_threads(1)
    from tagmask.cli import main

    sys.argv = ["tagmask", *arguments]
    main()
