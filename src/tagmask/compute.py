"""Device, precision, data-loading workers and distributed rank.

PyTorch and Lightning are imported where they are used, so that commands that compute nothing start quickly.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from tagmask.errors import RecipeError, RunError, TagmaskError

if TYPE_CHECKING:
    import torch
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]
Engine = Literal["local", "ray"]
T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=12)  # the other processes wait while rank 0 does what only one process can do
PARENT_CHECK_SECONDS = 1.0
CPU_BATCH_PIXELS = 2**17  # a batch should fit into the cache of a CPU (measured by benchmarks/maps.py)
GPU_BATCH_PIXELS = 2**22


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that share the work of a command.

    Attributes:
        workers: processes that load images and run CRFs.
        rank: the distributed rank of this process (torchrun, SLURM).
        world_size: the number of processes.
        engine: who does the work on single images that can be divided: these processes, or actors of a Ray cluster.
        actors: with Ray, the number of actors; None: as many as there is room for.
    """

    workers: int = 0
    rank: int = 0
    world_size: int = 1
    engine: Engine = "local"
    actors: int | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which prints messages and writes the files that exist once per run."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the items; the parts of all processes together are all items."""
        return items[self.rank :: self.world_size]

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def from_main_process(self, make: Callable[[], T]) -> T:
        """Return, in every process, what a function returns in the main process.

        Args:
            make: called in the main process only; its result must be picklable.

        Raises:
            TagmaskError: `make` has raised it; every process raises it.
        """
        if self.world_size == 1:
            return make()
        import torch
        import torch.distributed as dist

        result: list[Any] = [None]
        if self.is_main_process:
            try:
                result = [make()]
            except TagmaskError as error:
                result = [error]
        dist.broadcast_object_list(result, src=0, device=torch.device("cpu"))
        if isinstance(result[0], TagmaskError):
            raise result[0]
        return cast(T, result[0])

    def gather(self, own: list[T]) -> list[T]:
        """Return, in every process, the items of all processes in the order of which `shard` gave each its part.

        Args:
            own: one picklable result for each item of this process's shard.
        """
        if self.world_size == 1:
            return own
        import torch.distributed as dist

        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, own)
        return [lists[i % self.world_size][i // self.world_size] for i in range(sum(map(len, lists)))]


@dataclass(frozen=True)
class Compute(Processes):
    """Where and how to compute with PyTorch; also the attributes of `Processes`.

    Attributes:
        device: the torch device, e.g. "cpu", "cuda:1" or "mps".
        precision: the dtype of networks; "auto" is bfloat16 where it is faster, else float32.
    """

    device: torch.device = field(default_factory=_cpu)
    precision: Precision = "auto"

    @classmethod
    def detect(cls, device: str = "auto", precision: Precision = "auto", workers: int | None = None) -> Compute:
        """Choose the device, and initialize the process group if torchrun or SLURM started several processes.

        Args:
            device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:N" or "mps".
            precision: see `Compute`.
            workers: None: one worker per core, divided by the number of processes on this machine.

        Raises:
            RecipeError: this machine does not have the device.
        """
        let_threads_sleep()
        import torch
        import torch.distributed as dist

        environment = _torchrun_or_slurm_environment()
        world_size = environment.world_size() if environment else 1
        local_rank = environment.local_rank() if environment and world_size > 1 else 0
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = _existing_device(device)
        if chosen.type == "cuda":
            # for deterministic matrix products; cuBLAS reads it once, so it must not depend on whether a network is
            # trained in this process
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
                timeout=COLLECTIVE_TIMEOUT,
            )
        if workers is None:
            workers = default_workers(_local_world_size() if world_size > 1 else 1)
        rank = environment.global_rank() if environment and world_size > 1 else 0
        return cls(chosen, precision, workers=workers, rank=rank, world_size=world_size)

    @property
    def batch_pixels(self) -> int:
        """The largest number of image pixels that go through a network in one batch."""
        return CPU_BATCH_PIXELS if self.device.type == "cpu" else GPU_BATCH_PIXELS

    def autocast_dtype(self, network: nn.Module) -> torch.dtype:
        """Return the dtype in which a network computes.

        With precision "auto" this is bfloat16 on GPUs that support it, and on CPUs with bfloat16 instructions (AMX,
        AVX-512 BF16) for networks without depthwise convolutions, which gain nothing from it (benchmarks/maps.py).
        """
        import torch
        from torch import nn

        if self.precision != "auto":
            return torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        if self.device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        if self.device.type != "cpu" or not _cpu_supports_bfloat16():
            return torch.float32
        has_depthwise = any(
            isinstance(m, nn.Conv2d) and m.groups > 1 and m.groups == m.in_channels for m in network.modules()
        )
        return torch.float32 if has_depthwise else torch.bfloat16

    @contextmanager
    def autocast(self, network: nn.Module) -> Iterator[None]:
        """Enable autocast with `autocast_dtype(network)`."""
        import torch

        dtype = self.autocast_dtype(network)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            yield

    def trainer_arguments(self, network: nn.Module) -> dict[str, Any]:
        """Return the arguments of Lightning's Trainer for this device, precision and number of processes."""
        import torch

        bfloat16 = self.autocast_dtype(network) == torch.bfloat16
        arguments: dict[str, Any] = {"precision": "bf16-mixed" if bfloat16 else "32-true"}
        arguments["accelerator"] = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        arguments["devices"] = [self.device.index or 0] if self.device.type == "cuda" else 1
        if self.world_size > 1:
            arguments |= {"strategy": "ddp", "num_nodes": self.world_size}  # see `trainer_plugins`
        return arguments

    def trainer_plugins(self) -> list[ClusterEnvironment]:
        """Return the plugins of Lightning's Trainer: a cluster environment, if there are several processes.

        It describes each process as a node with one device, because a scheduler may show a process only its own GPU.
        """
        if self.world_size == 1:
            return []
        from tagmask.process_group import OneDevicePerNode

        return [OneDevicePerNode(self.rank, self.world_size)]


@contextmanager
def explain_out_of_memory(subject: str, device: torch.device, advice: str) -> Iterator[None]:
    """Raise a RunError with advice where a computation does not fit into memory.

    Args:
        subject: what does not fit, the beginning of the sentence.
        device: where it runs.
        advice: what to do, the end of the sentence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch has a class of its own only for the memory of a GPU
        is_gpu = type(error).__name__ == "OutOfMemoryError"
        if not (is_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
            raise
        raise RunError(f"{subject} does not fit into the memory of {device}: {advice}.") from error


def is_main_process() -> bool:
    """Whether this process has rank 0, or is the only one; known before the process group is initialized."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def may_have_several_processes() -> bool:
    """Whether torchrun or SLURM has started this process; known before the process group is initialized."""
    return bool({"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & set(os.environ))  # importing Lightning takes seconds


def let_threads_sleep() -> None:
    """Let idle threads of networks and CRFs sleep instead of spin, unless the user has chosen otherwise.

    A thread that spins takes a core from the thread that it waits for: beside other processes, a training step was ten
    times slower (benchmarks/busy_machine.py). OpenMP reads the variable once, when PyTorch or numba loads it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def set_threads(count: int) -> None:
    """Set the number of threads of networks and CRFs, for this process and its worker processes.

    Call it before the first CRF of the process: numba reads its number of threads once.

    Args:
        count: the number of threads, 1 or more.
    """
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:  # otherwise it reads the environment
        import torch

        torch.set_num_threads(count)


def exit_with_parent(parent: int) -> None:
    """End this worker process soon after its parent process has ended, even if that was killed.

    Args:
        parent: the id of the parent process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="exit_with_parent", daemon=True).start()


def default_workers(processes: int = 1) -> int:
    """Return the number of workers per process if the user gives none: one per core."""
    return max(1, _available_cores() // processes)


def _torchrun_or_slurm_environment() -> ClusterEnvironment | None:
    if not may_have_several_processes():
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise RecipeError(f"this SLURM job cannot be used: {' '.join(str(error).split())}") from error
    return None


def _existing_device(name: str) -> torch.device:
    """Return the device. Raises RecipeError if this machine does not have it."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"{name!r} is not a device: give cpu, cuda, cuda:N, mps or auto.") from error
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    num_devices = {"cpu": 1, "cuda": num_gpus, "mps": int(torch.backends.mps.is_available())}
    if device.type not in num_devices:
        raise RecipeError(f"{name!r} is not a device: give cpu, cuda, cuda:N, mps or auto.")
    if (device.index or 0) >= num_devices[device.type]:
        raise RecipeError(f"device {name!r} does not exist on this machine: give --device cpu.")
    return device


def _local_world_size() -> int:
    """The number of processes of this job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def _available_cores() -> int:
    """The cores that this process may use; a container or taskset may restrict them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_supports_bfloat16() -> bool:
    import torch

    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
