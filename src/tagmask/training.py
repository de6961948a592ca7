"""Training a network in a stage: Lightning's loop, one checkpoint an epoch, and going on from it."""

from __future__ import annotations

import io
import logging
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tagmask.artifacts import atomic_write, read_json, write_json
from tagmask.data.loading import TrainingSet, training_loader
from tagmask.errors import RunError
from tagmask.stage import StageContext

Optimizer = Literal["sgd", "adam", "adamw"]


class Training(L.LightningModule):
    """A network and its loss. Subclasses give `network` and `loss(batch)`.

    Args:
        network: what learns.
        groups: (parameters, learning rate) pairs, as each paper splits backbone and new layers.
        optimizer, momentum, weight_decay: as usual; the learning rates fall as (1 − step / steps) ** power.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Iterable[tuple[Iterable[nn.Parameter], float]],
        *,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        weight_decay: float = 1e-4,
        power: float = 0.9,
    ) -> None:
        super().__init__()
        self.network = network
        learning = [([p for p in parameters if p.requires_grad], rate) for parameters, rate in groups]
        self._groups: list[dict[str, Any]] = [{"params": p, "lr": rate} for p, rate in learning if p]
        self._optimizer, self._momentum = optimizer, momentum
        self._weight_decay, self._power = weight_decay, power

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss ("loss") and whatever else should be in the training curves; scalars."""
        raise NotImplementedError

    def all_mean(self, count: Tensor) -> Tensor:
        """A number's mean over the processes, as float."""
        own = count.detach().clone().float()  # what is reduced is overwritten
        mean = self._trainer.strategy.reduce(own) if self._trainer else own
        return cast(Tensor, mean)

    def on_train_epoch_start(self) -> None:
        self.train()

    def training_step(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.loss(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        chosen: torch.optim.Optimizer
        if self._optimizer == "sgd":
            chosen = torch.optim.SGD(self._groups, momentum=self._momentum, weight_decay=self._weight_decay)
        else:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self._optimizer]
            chosen = kind(self._groups, weight_decay=self._weight_decay)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(chosen, lambda step: max(0.0, 1 - step / steps) ** self._power)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: Training, data: TrainingSet, context: StageContext, *, epochs: int, batch_size: int) -> None:
    """Train, or go on with a training that was cut off; `history.json` gets a line an epoch.

    An epoch is the unit that survives: one that was cut off is begun again with the same random numbers,
    so the result is that of an undisturbed training.

    Raises:
        RunError: the loss is no longer a number.
    """
    checkpoint = context.folder / "training" / "last.ckpt"
    done = _epochs_done(checkpoint)
    loader = training_loader(data, batch_size, context.compute, done)
    module.network.to(memory_format=torch.channels_last)
    what = f"training epochs {done + 1} to {epochs}" if done else f"training {epochs} epochs"
    with context.progress(what, (epochs - done) * len(loader), "steps") as advance, _quiet(), _stoppable():
        keep = ModelCheckpoint(
            dirpath=checkpoint.parent,
            filename=checkpoint.stem,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        trainer = L.Trainer(
            max_epochs=epochs,
            max_steps=-1 if context.max_steps is None else context.max_steps,
            callbacks=[_EpochSeeds(data.seed), _Curves(context, advance, len(loader)), keep],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # ours splits each batch, so that many processes equal one
            deterministic="warn",
            default_root_dir=context.folder,
            plugins=[_Checkpoints(), *context.compute.trainer_plugins()],
            **context.compute.trainer_arguments(module.network),
        )
        trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    module.network.to(context.compute.device)


def _epochs_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1


def train_once(context: StageContext, weights: str, train: Callable[[], None]) -> None:
    """Call `train`, which writes the file `weights` of the stage, unless it is there; then drop the checkpoint."""
    if not (context.folder / weights).exists():
        train()
    context.compute.barrier()
    shutil.rmtree(context.folder / "training", ignore_errors=True)


class _Checkpoints(TorchCheckpointIO):
    """Written beside their final place: Lightning goes by way of /tmp, whence a file is copied, not renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        whole = io.BytesIO()  # torch's own writer turns a full disk into an error of its own
        torch.save(checkpoint, whole)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(whole.getbuffer())


class _EpochSeeds(Callback):
    """What is random in the network (dropout) depends on seed, epoch and process alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch) * 1009 + trainer.global_rank)


class _Curves(Callback):
    """Means of the losses of each epoch, into `history.json`."""

    def __init__(self, context: StageContext, advance: Callable[[int], None], steps: int) -> None:
        self.context, self.advance, self.steps = context, advance, steps
        self.file = context.folder / "history.json"
        self.sums: dict[str, Tensor] = {}
        self.waited = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sums, self.waited = {}, 0.0
        self.started = self.idle_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited += time.perf_counter() - self.idle_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        self.advance(1)
        self.idle_since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        means = {name: float(trainer.strategy.reduce(total / self.steps)) for name, total in self.sums.items()}
        if not all(torch.isfinite(torch.tensor(list(means.values())))):
            raise RunError(
                f"the training loss is no longer a number in epoch {trainer.current_epoch + 1}: "
                "lower the learning rate, or set --precision float32."
            )
        if not self.context.compute.is_main_process:
            return
        seconds = time.perf_counter() - self.started
        history = [e for e in read_history(self.context.folder) if e["epoch"] <= trainer.current_epoch]
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        entry = {"epoch": trainer.current_epoch + 1, **means, "lr": rates[0], "seconds": round(seconds, 2)}
        write_json(self.file, [*history, {**entry, "data_wait": round(self.waited / seconds, 4)}])


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The training curves that `fit` wrote: one dict an epoch."""
    file = folder / "history.json"
    return read_json(file) if file.exists() else []


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop a training as they stop anything else.

    Lightning ends Python (at SIGTERM with the status of success), and is deaf to Ctrl-C from then on.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on our own choices, kept from the user."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        log.setLevel(level)
