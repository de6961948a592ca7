"""The training loop of a stage: Lightning's Trainer, training curves, checkpoints and exact resume."""

from __future__ import annotations

import io
import logging
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from tagmask.artifacts import RUN_AGAIN, atomic_write, read_model, write_json
from tagmask.data.loading import TrainingSet, training_loader
from tagmask.errors import RecipeError, RunError
from tagmask.models.saved_network import SavedNetwork
from tagmask.models.synced_batch_norm import synced_batch_norms
from tagmask.stage import Method, StageContext
from tagmask.stage_folder import HistoryEntry, StageFolder
from tagmask.text import shorten

Optimizer = Literal["sgd", "adam", "adamw"]
ParameterGroups = Iterable[tuple[Iterable[nn.Parameter], float]]
"""Pairs of parameters and their learning rate."""

NOTE_INTERVAL = 1.0  # seconds between updates of the loss that is shown during training
DRY_RUN_LR = 1e-9  # randomly initialized networks would diverge at rates that are meant for pretrained ones


class TrainingSettings(Method):
    """The settings that all methods share that train a network.

    The learning rate at step t of T is lr · (1 − t / T) ** poly_power.

    Attributes:
        learning_rates: the names of the fields that are learning rates.
    """

    learning_rates: ClassVar[tuple[str, ...]] = ("lr", "head_lr")

    epochs: int = Field(5, ge=0, description="passes over the training images")
    batch_size: int = Field(16, ge=1, description="images per training step, over all processes")
    crop_size: int = Field(512, ge=16, description="side of the random crops in pixels")
    optimizer: Optimizer = Field("sgd", description="the optimizer")
    lr: float = Field(0.1, gt=0, description="learning rate of the backbone")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    poly_power: float = Field(
        0.9,
        ge=0,
        description="exponent p of the decay: at step t of T the learning rates are multiplied by (1 − t/T)^p; "
        "0: no decay",
    )

    def check_processes(self, num_processes: int) -> None:
        if self.batch_size < num_processes:
            raise RecipeError(
                f"batch_size {self.batch_size} cannot be split over {num_processes} processes; start fewer processes, "
                "or give a larger batch_size."
            )

    def for_dry_run(self) -> Self:
        rates = {name: DRY_RUN_LR for name in self.learning_rates if name in type(self).model_fields}
        return super().for_dry_run().model_copy(update=rates)


class Training(L.LightningModule):
    """A network, its optimizer and its loss. Subclasses define `losses(batch)`.

    Args:
        network: the network to train.
        parameter_groups: (parameters, learning rate) pairs; parameters that need no gradient are left out.
        settings: optimizer, momentum, weight decay and polynomial decay.
    """

    def __init__(self, network: nn.Module, parameter_groups: ParameterGroups, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = network
        self._settings = settings
        self.total_steps = sys.maxsize  # `fit` sets it
        trainable = [([p for p in parameters if p.requires_grad], lr) for parameters, lr in parameter_groups]
        self._parameter_groups: list[dict[str, Any]] = [{"params": p, "lr": lr} for p, lr in trainable if p]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the scalar losses of a batch: "loss", which is minimized, and others for the training curves."""
        raise NotImplementedError

    def mean_over_processes(self, count: Tensor) -> Tensor:
        """Return the mean of a number over all processes, as float."""
        own = count.detach().clone().float()  # the reduction overwrites its argument
        mean = self._trainer.strategy.reduce(own) if self._trainer else own
        return cast(Tensor, mean)

    def mean_over_images(self, losses: Tensor) -> Tensor:
        """Return the mean of a loss per image [B], normalized so that the processes' shards may differ in size."""
        return losses.sum() / self.mean_over_processes(losses.new_tensor(len(losses)))

    def on_train_epoch_start(self) -> None:
        self.train()

    def training_step(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.losses(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self._settings
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                self._parameter_groups, momentum=settings.momentum, weight_decay=settings.weight_decay
            )
        else:
            optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
            optimizer = optimizer_class(self._parameter_groups, weight_decay=settings.weight_decay)
        total = max(1, min(self.total_steps, int(self.trainer.estimated_stepping_batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(0.0, 1 - step / total) ** settings.poly_power
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    module: Training,
    data: TrainingSet,
    context: StageContext,
    *,
    epochs: int,
    batch_size: int,
    steps: int | None = None,
) -> None:
    """Train a network, or resume a training that was interrupted.

    `history.json` in the stage folder gets one entry per epoch, and a checkpoint is written after each epoch. An
    interrupted epoch starts again with the same random numbers, so that the result is that of an undisturbed training.

    Args:
        module: the network and its loss.
        data: the augmented training images.
        context: of the stage.
        epochs: the number of passes over the images.
        batch_size: the number of images per step, over all processes.
        steps: the number of steps after which the training ends within the last epoch; None: it is complete.

    Raises:
        RunError: the loss is NaN or infinite.
    """
    checkpoint = context.folder.path / "training" / "last.ckpt"
    done = _epochs_done(checkpoint, context)
    if 0 < epochs <= done:  # killed after the last checkpoint; Lightning would go on in an epoch that steps cut short
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        module.network.to(context.compute.device)
        return
    loader = training_loader(data, batch_size, context.compute, done, epoch_size=context.images_per_epoch)
    module.network.to(memory_format=torch.channels_last)
    description = f"training epochs {done + 1} to {epochs}" if done else f"training {epochs} epochs"
    total = epochs * len(loader) if steps is None else min(steps, epochs * len(loader))
    module.total_steps = total
    with (
        context.reporter.progress(description, max(0, total - done * len(loader)), "steps") as advance,
        _silence_lightning(),
        _stop_on_signals(),
    ):
        save_checkpoints = ModelCheckpoint(
            dirpath=checkpoint.parent,
            filename=checkpoint.stem,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        trainer = L.Trainer(
            max_epochs=epochs,
            max_steps=-1 if context.max_steps is None else context.max_steps,  # it would change how Lightning resumes
            callbacks=[
                _EpochSeeds(data.seed),
                _TrainingCurves(context, advance),
                _StopAfter(total),
                save_checkpoints,
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # ours divides each batch among the processes, so that N processes equal one
            deterministic="warn",
            default_root_dir=context.folder.path,
            plugins=[_AtomicCheckpoints(), *context.compute.trainer_plugins()],
            **context.compute.trainer_arguments(module.network),
        )
        if context.compute.world_size > 1:
            _freeze_unused_parameters(module, data)
        with synced_batch_norms(module.network) if context.compute.world_size > 1 else nullcontext():
            trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    module.network.to(context.compute.device)


def _freeze_unused_parameters(module: Training, data: TrainingSet) -> None:
    """Switch off the gradients of parameters that the loss does not depend on, e.g. those of a layer behind the last
    features; otherwise several processes would wait for these gradients."""
    trainable = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    tagged = [n for n, sample in enumerate(data.images.samples) if sample.tags] or [0]
    batch = default_collate([data[0, n] for n in tagged[:1]])
    with torch.random.fork_rng(devices=[]):
        module.eval()  # the batch norms and their statistics stay as they are
        loss = module.losses({name: value.to(trainable[0].device) for name, value in batch.items()})
        gradients = torch.autograd.grad(loss["loss"], trainable, allow_unused=True)
        module.train()
    for parameter, gradient in zip(trainable, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _epochs_done(checkpoint: Path, context: StageContext) -> int:
    """Return the number of epochs that a checkpoint holds; a checkpoint that cannot be read is removed."""
    if not checkpoint.exists():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
    except Exception as error:  # torch raises many types for a damaged file
        context.reporter.info(f"  {checkpoint} is damaged ({shorten(str(error))}): the training starts again")
        checkpoint.unlink(missing_ok=True)
        return 0


def train_once(context: StageContext, network: type[SavedNetwork], train: Callable[[], None]) -> None:
    """Call `train`, which saves a network of this kind, unless it exists; then remove the checkpoint."""
    if not network.exists(context.folder.path):
        train()
    context.compute.barrier()
    shutil.rmtree(context.folder.path / "training", ignore_errors=True)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically. Lightning writes to /tmp first, from where a file is copied, not renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch's own file writer hides a full disk behind an error of its own
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class _EpochSeeds(Callback):
    """Seed the random numbers of the network (dropout) by seed, epoch and rank alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch) * 1009 + trainer.global_rank)


class _StopAfter(Callback):
    """End the training after a number of steps, also within an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


class _TrainingCurves(Callback):
    """Write the mean losses of each epoch to `history.json`."""

    def __init__(self, context: StageContext, advance: Callable[[int], None]) -> None:
        self.context, self.advance, self.steps = context, advance, 0
        self.sums: dict[str, Tensor] = {}
        self.wait_seconds, self.noted = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sums, self.steps, self.wait_seconds = {}, 0, 0.0
        self.start = self.idle_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.wait_seconds += time.perf_counter() - self.idle_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
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


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a training like any other loop, by KeyboardInterrupt.

    Lightning ends Python instead (at SIGTERM with the exit status of success), and replaces the handler of Ctrl-C.
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
def _silence_lightning() -> Iterator[None]:
    """Hide Lightning's warnings about settings that are deliberate here."""
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
