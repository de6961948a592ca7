"""Where the work is done: device, number format, data-loading workers, and this process's place among many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import nn

from tagmask.errors import RecipeError

Precision = Literal["auto", "float32", "bfloat16"]
T = TypeVar("T")


@dataclass(frozen=True)
class Compute:
    """How and where to compute.

    Attributes:
        device: "cpu", "cuda", "cuda:1", "mps".
        precision: what networks compute in; "auto" is bfloat16 where it is measured to help, else float32.
        workers: processes that load images (and, for the CRF, that compute).
        rank, world: this process's number and how many there are (torchrun, SLURM).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "auto"
    workers: int = 0
    rank: int = 0
    world_size: int = 1

    @classmethod
    def detect(cls, device: str = "auto", precision: Precision = "auto", workers: int | None = None) -> Compute:
        """Choose the device and join the other processes, if torchrun or SLURM started several.

        Raises RecipeError for a device that this machine does not have.
        """
        environment = _cluster()
        world_size = environment.world_size() if environment else 1
        local_rank = environment.local_rank() if environment and world_size > 1 else 0
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = _existing_device(device)
        if chosen.type == "cuda":
            if chosen.index is None:
                chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
            torch.cuda.set_device(chosen)
        if environment and world_size > 1 and not dist.is_initialized():
            os.environ.setdefault("MASTER_ADDR", environment.main_address)
            os.environ.setdefault("MASTER_PORT", str(environment.main_port))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
                rank=environment.global_rank(),
                world_size=world_size,
                timeout=timedelta(hours=12),  # the others wait while rank 0 does what only one can do
            )
        if workers is None:
            workers = max(1, _cores() // (_processes_here() if world_size > 1 else 1))
        rank = environment.global_rank() if environment and world_size > 1 else 0
        return cls(chosen, precision, workers, rank, world_size)

    @property
    def batch_pixels(self) -> int:
        """Pixels of the images that go through a network together, at most.

        A GPU's memory takes many; what a CPU works on is best kept in its cache (benchmarks/maps.py).
        """
        return 2**17 if self.device.type == "cpu" else 2**22

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that speaks and writes what there is one of."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items; all parts together are the whole."""
        return items[self.rank :: self.world_size]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def autocast_dtype(self, network: nn.Module) -> torch.dtype:
        """The dtype that `network` computes in: the one asked for, or for "auto" the faster one.

        bfloat16 is faster on GPUs, and on CPUs with bfloat16 instructions (AMX, AVX-512 BF16) for networks of
        dense convolutions or attention; depthwise convolutions gain nothing from it there (benchmarks/maps.py).
        """
        if self.precision != "auto":
            return torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        if self.device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        if self.device.type != "cpu" or not _cpu_has_bfloat16():
            return torch.float32
        depthwise = any(
            isinstance(m, nn.Conv2d) and m.groups > 1 and m.groups == m.in_channels for m in network.modules()
        )
        return torch.float32 if depthwise else torch.bfloat16

    @contextmanager
    def autocast(self, network: nn.Module) -> Iterator[None]:
        dtype = self.autocast_dtype(network)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            yield

    def trainer_arguments(self, network: nn.Module) -> dict[str, Any]:
        """Lightning Trainer's arguments for this place."""
        bfloat16 = self.autocast_dtype(network) == torch.bfloat16
        arguments: dict[str, Any] = {"precision": "bf16-mixed" if bfloat16 else "32-true"}
        arguments["accelerator"] = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        environment = _cluster()
        if self.world_size > 1 and environment:
            local = _processes_here()
            arguments |= {"strategy": "ddp", "devices": local, "num_nodes": self.world_size // local}
        else:
            index = self.device.index or 0
            arguments["devices"] = [index] if self.device.type == "cuda" else 1
        return arguments

    def trainer_plugins(self) -> list[ClusterEnvironment]:
        """Lightning Trainer's plugins for this place."""
        environment = _cluster()
        return [environment] if self.world_size > 1 and environment else []


def is_main_process() -> bool:
    """Whether this is the process that speaks, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _cluster() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise RecipeError(f"this SLURM job cannot be used: {' '.join(str(error).split())}") from error
    return None


def _existing_device(name: str) -> torch.device:
    """Raises RecipeError for a device that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"{name!r} is not a device: give cpu, cuda, cuda:N, mps or auto.") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}
    if device.type not in number:
        raise RecipeError(f"{name!r} is not a device: give cpu, cuda, cuda:N, mps or auto.")
    if (device.index or 0) >= number[device.type]:
        raise RecipeError(f"device {name!r} was asked for, but this machine has no such device: give --device cpu.")
    return device


def _processes_here() -> int:
    """How many of the processes of this job run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def _cores() -> int:
    """Cores that this process may use; a container or taskset may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_has_bfloat16() -> bool:
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
