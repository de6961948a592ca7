"""Measure how much a training step slows down beside busy processes, one per core.

Threads that spin while they wait are compared with threads that sleep (tagmask's default), and with a single thread
(--threads 1). Each figure is the median of the steps that fit into --seconds, in a process of its own.

Run: python benchmarks/busy_machine.py [--backbone mobilenetv2_100] [--side 224] [--batch 4] [--seconds 10]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIANTS = {
    "threads spin": {"OMP_WAIT_POLICY": "active"},
    "OpenMP's default": {},
    "threads sleep (tagmask)": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--side", type=int, default=224, help="of the images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(step_seconds(arguments)))
        return
    print(f"{arguments.backbone}, {arguments.batch} images of {arguments.side} pixels, {os.cpu_count()} cores")
    for name, variables in VARIANTS.items():
        alone = measure(variables)
        with busy_processes(os.cpu_count() or 1):
            beside = measure(variables)
        print(
            f"{name:24} alone {alone:6.3f} s a step, beside busy processes {beside:6.3f} s: {beside / alone:4.1f} times"
        )


def measure(variables: dict[str, str]) -> float:
    """Return the median time of a training step in a new process with these environment variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    result = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True)
    return statistics.median(json.loads(result.stdout))


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep as many cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_seconds(arguments: argparse.Namespace) -> list[float]:
    """Return the times of training steps, without the first two."""
    import torch

    from tagmask.models.backbone import Backbone

    torch.manual_seed(0)
    network = Backbone(arguments.backbone, "none", 16).to(memory_format=torch.channels_last)
    images = torch.randn(arguments.batch, 3, arguments.side, arguments.side).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    times: list[float] = []
    while len(times) < 5 or sum(times) < arguments.seconds:
        start = time.perf_counter()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return times[2:]


if __name__ == "__main__":
    main()
