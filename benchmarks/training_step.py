"""Measure what the memory of a training step costs on a CPU.

A DeepLabV3+ is trained on random crops as the recipe `small` does, with PyTorch's deterministic algorithms. Three
variants: PyTorch fills each new tensor (its default with these algorithms); tensors are not filled; tensors are not
filled, and the memory of freed ones stays in the process (tagmask). Each figure is the median of the steps after the
first two, in a process of its own; the variants take turns, and the ratios are those of the shortest medians.

Run: python benchmarks/training_step.py [--backbone mobilenetv2_100] [--side 224] [--batch 16] [--steps 10] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

VARIANTS = ("filled", "not filled", "kept (tagmask)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--side", type=int, default=224, help="of the crops in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    environment = {"THP_MEM_ALLOC_ENABLE": "1", "OMP_WAIT_POLICY": "passive", **os.environ}  # as the command tagmask
    rounds = []
    for _ in range(arguments.rounds):
        commands = [[sys.executable, __file__, *sys.argv[1:], "--child", variant] for variant in VARIANTS]
        outputs = [subprocess.check_output(command, env=environment, text=True) for command in commands]
        rounds.append([json.loads(output) for output in outputs])
    seconds, memory = ([min(each[i][k] for each in rounds) for i in range(len(VARIANTS))] for k in (0, 1))
    print(f"{arguments.backbone}, {arguments.batch} crops of {arguments.side} pixels, {os.cpu_count()} cores")
    for name, step, size in zip(VARIANTS, seconds, memory, strict=True):
        print(f"{name:16} {step:6.3f} s a step ({seconds[0] / step:.2f} times as fast), at most {size:5.2f} GB")


def measure(arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the median time of a training step in seconds, and the largest memory of the process in GB."""
    import torch
    import torch.nn.functional as F

    from tagmask.models.segmenter import Segmenter
    from tagmask.training_environment import deterministic_algorithms, keep_freed_memory

    torch.manual_seed(0)
    network = Segmenter("DeepLabV3Plus", arguments.backbone, ("a", "b", "c", "d", "e", "f")).train()
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    images = torch.randn(arguments.batch, 3, arguments.side, arguments.side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 7, (arguments.batch, arguments.side, arguments.side))
    seconds = []
    with deterministic_algorithms(True), keep_freed_memory() if arguments.child == VARIANTS[2] else nullcontext():
        torch.utils.deterministic.fill_uninitialized_memory = arguments.child == VARIANTS[0]  # type: ignore[attr-defined]
        for _ in range(2 + arguments.steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(F.interpolate(network(images), labels.shape[1:], mode="bilinear"), labels).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
