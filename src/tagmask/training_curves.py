"""Training curves: the mean losses of each epoch, in `history.json`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tagmask.artifacts import RUN_AGAIN, read_model, write_json
from tagmask.errors import RunError
from tagmask.stage import StageContext
from tagmask.stage_folder import HistoryEntry, StageFolder

NOTE_INTERVAL = 1.0  # seconds between updates of the loss that is shown during training


class TrainingCurves(Callback):
    """Write the mean losses of each epoch to `history.json`.

    Args:
        context: of the stage.
        advance: reports the number of steps that have been done.
        resumed: the `state` of an epoch in which the training resumes; None: it begins with a new epoch.
    """

    def __init__(
        self, context: StageContext, advance: Callable[[int], None], resumed: dict[str, Any] | None = None
    ) -> None:
        self.context, self.advance, self.resumed = context, advance, resumed
        self.noted = 0.0
        self._begin_epoch({"sums": {}, "steps": 0, "seconds": 0.0, "wait_seconds": 0.0})

    def state(self) -> dict[str, Any]:
        """Return the losses and times of the epoch up to now, of this process."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "steps": self.steps,
            "seconds": time.perf_counter() - self.start,
            "wait_seconds": self.wait_seconds,
        }

    def _begin_epoch(self, state: dict[str, Any]) -> None:
        self.sums: dict[str, Tensor] = {
            name: torch.tensor(value, device=self.context.compute.device) for name, value in state["sums"].items()
        }
        self.steps, self.wait_seconds = state["steps"], state["wait_seconds"]
        self.idle_since = time.perf_counter()
        self.start = self.idle_since - state["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.resumed:  # Lightning does not call `on_train_epoch_start` within an epoch
            self._begin_epoch(self.resumed)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_epoch({"sums": {}, "steps": 0, "seconds": 0.0, "wait_seconds": 0.0})

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.wait_seconds += time.perf_counter() - self.idle_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
        self.steps += 1
        now = time.perf_counter()
        if now - self.noted >= NOTE_INTERVAL:  # reading the loss waits for the GPU
            self.noted = now
            loss = float(self.sums["loss"]) / self.steps
            self.context.reporter.note = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, loss {loss:.3g}"
        self.advance(1)
        self.idle_since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        means = {name: float(trainer.strategy.reduce(total / self.steps)) for name, total in self.sums.items()}
        if not all(torch.isfinite(torch.tensor(list(means.values())))):
            raise RunError(
                f"the training loss is not a number in epoch {trainer.current_epoch + 1}: "
                "lower the learning rate, or set --precision float32."
            )
        if not self.context.compute.is_main_process:
            return
        seconds = time.perf_counter() - self.start
        folder = self.context.folder
        earlier = [e for e in read_history(folder) if e["epoch"] <= trainer.current_epoch]
        lrs = [group["lr"] for group in trainer.optimizers[0].param_groups]
        entry = {"epoch": trainer.current_epoch + 1, **means, "lr": lrs[0], "seconds": round(seconds, 2)}
        wait_share = round(self.wait_seconds / seconds, 4)
        write_json(folder.history_path, [*earlier, {**entry, "data_wait": wait_share}])


def read_history(folder: StageFolder) -> list[dict[str, Any]]:
    """Read the training curves that `fit` wrote: one dict per epoch; empty if the stage trained nothing.

    Raises:
        RunError: the file is damaged.
    """
    path = folder.history_path
    entries = read_model(path, list[HistoryEntry], remedy=RUN_AGAIN) if path.exists() else []
    return [entry.model_dump() for entry in entries]
