"""Checkpoints of a training: after each epoch, and within an epoch after some minutes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from tagmask.artifacts import atomic_write
from tagmask.compute import Compute
from tagmask.text import shorten

_POSITION = "tagmask"  # the entry of a checkpoint that holds its position


@dataclass(frozen=True)
class Position:
    """How far a training has come.

    Attributes:
        epochs: the number of complete epochs.
        batches: the number of batches of the next epoch that are done, too.
        curves: of each process, the losses and times of these batches (`TrainingCurves.state`).
    """

    epochs: int = 0
    batches: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)

    def curves_of(self, compute: Compute) -> dict[str, Any] | None:
        """Return the losses and times of this process; their mean if the number of processes has changed."""
        if not self.batches:
            return None
        if len(self.curves) == compute.world_size:
            return self.curves[compute.rank]
        first = self.curves[0]
        names = first["sums"]
        return {**first, "sums": {n: sum(c["sums"][n] for c in self.curves) / len(self.curves) for n in names}}


def read_position(path: Path, on_damage: Callable[[str], None]) -> Position:
    """Return the position of a checkpoint; the beginning if there is none.

    A checkpoint that cannot be read is removed.

    Args:
        path: the file.
        on_damage: called with a message if the file is damaged.
    """
    if not path.exists():
        return Position()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Position(**content[_POSITION])
    except Exception as error:  # torch raises many types for a damaged file
        on_damage(f"{path} is damaged ({shorten(str(error))}): the training starts again")
        path.unlink(missing_ok=True)
        return Position()


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically. Lightning writes to /tmp first, from where a file is copied, not renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch's own file writer hides a full disk behind an error of its own
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class SaveCheckpoints(Callback):
    """Save a checkpoint after each epoch, and within an epoch if the latest one is older than `seconds`.

    All processes save after the same batch: rank 0 decides.

    Args:
        path: the file, which each checkpoint replaces.
        seconds: between two checkpoints within an epoch.
        compute: this process.
        curves: returns the losses and times of this process (`TrainingCurves.state`).
    """

    def __init__(self, path: Path, seconds: float, compute: Compute, curves: Callable[[], dict[str, Any]]) -> None:
        self.path, self.seconds, self.compute, self.curves = path, seconds, compute, curves
        self.position = Position()
        self.latest = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epoch_ends = batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop
        if not epoch_ends and self._is_due():
            self._save(trainer, trainer.current_epoch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, trainer.current_epoch + 1, 0)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_POSITION] = vars(self.position)

    def _is_due(self) -> bool:
        due = torch.tensor(time.monotonic() - self.latest >= self.seconds)
        if self.compute.world_size > 1:
            dist.broadcast(due, src=0)
        return bool(due)

    def _save(self, trainer: L.Trainer, epochs: int, batches: int) -> None:
        curves = [self.curves()] if batches else []
        if batches and self.compute.world_size > 1:
            gathered: list[Any] = [None] * self.compute.world_size
            dist.all_gather_object(gathered, curves[0])
            curves = gathered
        self.position = Position(epochs, batches, curves)
        trainer.save_checkpoint(self.path)
        self.latest = time.monotonic()
