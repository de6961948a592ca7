"""The processes of a training as Lightning sees them."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import ClusterEnvironment


class OneDevicePerNode(ClusterEnvironment):
    """A process group, initialized before, in which each process counts as a node of its own with one device.

    Lightning's own environments expect that every process of a machine sees all of its GPUs. A scheduler may show a
    process only one (`srun --gpus-per-task=1`).

    Args:
        rank: of this process.
        world_size: the number of processes.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size

    @staticmethod
    def detect() -> bool:
        """Return False: Lightning never chooses this environment by itself."""
        return False

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._rank
