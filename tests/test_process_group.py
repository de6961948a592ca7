"""Processes as Lightning sees them."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from tagmask.compute import Compute


def test_a_process_that_sees_only_its_own_gpu_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --ntasks-per-node=4 --gpus-per-task=1: local rank 3, and the only GPU is cuda:0."""
    variables = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "night", "SLURM_PROCID": "3",
                 "SLURM_LOCALID": "3", "SLURM_NODEID": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for path in ("lightning.fabric.accelerators.cuda.num_cuda_devices", "torch.cuda.device_count"):
        monkeypatch.setattr(path, lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *arguments: (8, 0))
    compute = Compute(torch.device("cuda", 0), "float32", rank=3, world_size=4)
    arguments = compute.trainer_arguments(nn.Conv2d(3, 3, 1))
    trainer = L.Trainer(plugins=compute.trainer_plugins(), logger=False, **arguments)
    assert trainer.strategy.root_device == torch.device("cuda", 0)
    assert (trainer.global_rank, trainer.world_size, trainer.local_rank) == (3, 4, 0)
