"""A small training with everything random that a training can have, in one process or in two."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagmask.compute import Compute
from tagmask.data.loading import TrainingSet
from tagmask.data.samples import TaggedImages
from tagmask.progress import Reporter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import ParameterGroup, Training, TrainingSettings, fit
from tests.two_processes import run_in_two


class Keys(TrainingSet):
    """Return the key of each item."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"image": torch.zeros(3, 1, 1), "key": torch.tensor(key)}


class RandomImages(TrainingSet):
    """Items of random numbers, which depend on the epoch and the index."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        return {"image": torch.randn(3, 4, 4, generator=generator)}


class Settings(TrainingSettings):
    def run(self, context: StageContext) -> None:
        raise NotImplementedError


class NoisyTraining(Training):
    """A network with dropout and batch norm, trained by an optimizer with a state.

    Args:
        stop_at: the step, or part of a step (from 0, in this process), at which the training is interrupted, if any.
        kill: end the process by SIGKILL instead of raising InterruptedError.
        is_noisy: whether the network has dropout and batch norm.
        settings: of the training.
    """

    def __init__(
        self, stop_at: int | None = None, *, kill: bool = False, is_noisy: bool = True, **settings: Any
    ) -> None:
        torch.manual_seed(0)
        noise = [nn.BatchNorm2d(8), nn.Dropout(0.5)] if is_noisy else []
        network = nn.Sequential(nn.Conv2d(3, 8, 1), *noise, nn.Conv2d(8, 1, 1))
        super().__init__(
            network, [ParameterGroup(network.parameters(), 0.01)], Settings(**{"optimizer": "adam", **settings})
        )
        self.num_steps, self.stop_at, self.kill = 0, stop_at, kill

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.num_steps == self.stop_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError
        self.num_steps += self.training  # `fit` computes the losses once in eval mode
        losses = (self.network(batch["image"] + 1) - 1).square().mean((1, 2, 3))
        return {"loss": self.mean_over_images(losses), "half": losses.mean() / 2}


def train_in_two_processes(
    images: TaggedImages,
    folder: Path,
    stop_at: int | None = None,
    workers: int = 0,
    batch_size: int = 3,
    **settings: Any,
) -> list[int | None]:
    """Run three epochs of `NoisyTraining` in two processes; return the exit statuses.

    Rank 0 writes the final weights to `folder`/weights.pt. Rank 1 is killed at step `stop_at`.
    """
    return run_in_two(_train, images, folder, stop_at, batch_size, settings, workers=workers)


def _train(
    compute: Compute,
    images: TaggedImages,
    folder: Path,
    stop_at: int | None,
    batch_size: int,
    settings: dict[str, Any],
) -> None:
    context = StageContext(StageFolder(folder), images, compute, Reporter(), {}, seed=0)
    module = NoisyTraining(stop_at if compute.rank == 1 else None, kill=True, **settings)
    data = RandomImages(images, lambda item: item, 0)
    fit(module, data, context, epochs=3, batch_size=batch_size)
    if compute.is_main_process:
        torch.save(module.network.state_dict(), folder / "weights.pt")
