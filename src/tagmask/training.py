"""The training loop of a stage: Lightning's Trainer, training curves, checkpoints and exact resume."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from tagmask.batch_parts import Batch, add_up, recorded_outputs, split_batch, zero_outputs
from tagmask.checkpoints import AtomicCheckpoints, SaveCheckpoints, read_position
from tagmask.data.loading import TrainingSet, training_loader
from tagmask.errors import RecipeError
from tagmask.models.saved_network import SavedNetwork
from tagmask.models.synced_batch_norm import synced_batch_norms
from tagmask.progress import stop_workers
from tagmask.stage import Method, StageContext
from tagmask.text import pluralize
from tagmask.training_curves import TrainingCurves
from tagmask.training_environment import (
    deterministic_algorithms,
    keep_freed_memory,
    silence_lightning,
    stop_on_signals,
)

Optimizer = Literal["sgd", "adam", "adamw"]


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        parameters: those that need no gradient are left out.
        lr: the learning rate.
        weight_decay: None: that of the settings.
    """

    parameters: Iterable[nn.Parameter]
    lr: float
    weight_decay: float | None = None


ParameterGroups = Iterable[ParameterGroup]

MAX_FULL_SHUFFLE = 100_000  # images; so many are more than COCO has
DRY_RUN_LR = 1e-9  # randomly initialized networks would diverge at rates that are meant for pretrained ones


class TrainingSettings(Method):
    """The settings that all methods share that train a network.

    The learning rate at step t of T is lr · (1 − t / T) ** poly_power.

    Attributes:
        learning_rates: the names of the fields that are learning rates.
    """

    learning_rates: ClassVar[tuple[str, ...]] = ("lr", "head_lr")
    free_settings: ClassVar[tuple[str, ...]] = ("checkpoint_minutes",)

    epochs: int = Field(5, ge=0, description="passes over the training images")
    batch_size: int = Field(16, ge=1, description="images per training step, over all processes")
    batch_parts: int = Field(
        1,
        ge=1,
        description="parts into which each process splits its images of a step, so that a large batch fits into the "
        "memory: their gradients are added up before the step. The result is that of the whole batch, except that "
        "batch norms that are not frozen see the parts; batch_size stays the number of images per step",
    )
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
    shuffle: Literal["auto", "full", "windows"] = Field(
        "auto",
        description="the order of the images in an epoch: full (any order); windows (blocks of 50 neighbors in any "
        "order, whose images are mixed within windows of 1,000, so that shards are read piece by piece); auto: windows "
        "if there are more than 100,000 images",
    )
    deterministic: bool = Field(
        True,
        description="use PyTorch's deterministic algorithms where they exist, so that a training can be repeated; "
        "false: those that are faster on a GPU",
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="minutes after which a checkpoint is saved within an epoch, from which an interrupted run resumes; "
        "one is saved after each epoch, too. It does not change the results, and can be changed at any time",
    )

    def shuffles_windows(self, num_images: int) -> bool:
        """Return whether an epoch of so many images is shuffled in windows."""
        return num_images > MAX_FULL_SHUFFLE if self.shuffle == "auto" else self.shuffle == "windows"

    def check_processes(self, num_processes: int) -> None:
        if self.batch_size < num_processes:
            raise RecipeError(
                f"batch_size {self.batch_size} cannot be split over {num_processes} processes; start fewer processes, "
                "or give a larger batch_size."
            )

    def for_dry_run(self) -> Self:
        rates = {name: DRY_RUN_LR for name in self.learning_rates if getattr(self, name, None)}
        return super().for_dry_run().model_copy(update=rates)


class Training(L.LightningModule):
    """A network, its optimizer and its loss. Subclasses define `losses(batch)`.

    Args:
        network: the network to train.
        parameter_groups: the parameters to train.
        settings: optimizer, momentum, weight decay and polynomial decay.

    Attributes:
        total_steps: the number of steps of the training, at whose end the learning rate is 0.
        num_parts: the number of parts of a batch whose gradients are added up. `fit` sets both.
    """

    def __init__(self, network: nn.Module, parameter_groups: ParameterGroups, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.total_steps, self.num_parts = sys.maxsize, 1
        self._count_mean: Callable[[Tensor], Tensor] = self._mean_over_trainer
        self._output_examples: list[Any] | None = None
        self._parameter_groups: list[dict[str, Any]] = []
        for parameters, lr, weight_decay in parameter_groups:
            group: dict[str, Any] = {"params": [p for p in parameters if p.requires_grad], "lr": lr}
            if weight_decay is not None:
                group["weight_decay"] = weight_decay
            if group["params"]:
                self._parameter_groups.append(group)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the scalar losses of a batch: "loss", which is minimized, and others for the training curves."""
        raise NotImplementedError

    def mean_over_processes(self, count: Tensor) -> Tensor:
        """Return the mean of a number over all processes, and over all parts of the batch, as float.

        The number is a count of images, pixels, ... of `losses`, which depends only on the batch, not on the network.
        """
        return self._count_mean(count)

    def _mean_over_trainer(self, count: Tensor) -> Tensor:
        own = count.detach().clone().float()  # the reduction overwrites its argument
        mean = self._trainer.strategy.reduce(own) if self._trainer else own
        return cast(Tensor, mean)

    def mean_over_images(self, losses: Tensor) -> Tensor:
        """Return the mean of a loss per image [B], normalized so that the processes' shards may differ in size."""
        return losses.sum() / self.mean_over_processes(losses.new_tensor(len(losses)))

    def on_train_start(self) -> None:
        self.train()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        self.optimizers(use_pl_optimizer=False).zero_grad()  # type: ignore[union-attr]

    def optimizer_zero_grad(self, epoch: int, index: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep the gradients of the parts that `training_step` has added up."""

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Return the losses of a batch. If it has several parts, add up the gradients of all parts but the last one."""
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        if self.num_parts == 1:
            return self.losses(batch)
        parts = split_batch(batch, self.num_parts)
        counts = [self._mean_over_trainer(count) / self.num_parts for count in self._counts(parts)]
        earlier: dict[str, Tensor] = {}
        for part in parts[:-1]:
            losses = self._part_losses(part, counts)
            with torch.autocast(self.device.type, enabled=False):
                losses["loss"].backward()
            earlier = {name: earlier.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return {name: loss + earlier[name] for name, loss in self._part_losses(parts[-1], counts).items()}

    def _part_losses(self, part: Batch, counts: list[Tensor]) -> dict[str, Tensor]:
        """Return what a part adds to the losses, given the mean counts of all parts and processes."""
        remaining = iter(counts)

        def next_count(count: Tensor) -> Tensor:
            return next(remaining)

        with self._counted_by(next_count):
            return {name: loss / self.num_parts for name, loss in self.losses(part).items()}

    def _counts(self, parts: list[Batch]) -> list[Tensor]:
        """Return the counts that the losses of all parts are divided by, in the order in which `losses` needs them.

        The losses are computed for outputs of zeros, because the counts do not depend on the network.
        """
        recorded: list[Tensor] = []

        def record(count: Tensor) -> Tensor:
            recorded.append(count.detach().float())
            return recorded[-1]

        totals: list[Tensor] = []
        self.eval()
        with torch.no_grad(), self._counted_by(record):
            if self._output_examples is None:
                with recorded_outputs(self.network) as outputs:
                    self.losses({name: value[:1] for name, value in parts[0].items()})
                self._output_examples = outputs
            for part in parts:
                recorded.clear()
                with zero_outputs(self.network, self._output_examples, len(part["image"])):
                    self.losses(part)
                totals = add_up(totals, recorded)
        self.train()
        return totals

    @contextmanager
    def _counted_by(self, count_mean: Callable[[Tensor], Tensor]) -> Iterator[None]:
        self._count_mean = count_mean
        try:
            yield
        finally:
            self._count_mean = self._mean_over_trainer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
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

    `history.json` in the stage folder gets one entry per epoch. A checkpoint is written after each epoch, and within
    an epoch every `checkpoint_minutes`. All random numbers depend only on the seed, the epoch, the batch and the rank,
    so that the result of a resumed training is that of an undisturbed one.

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
    context.require_all_images("trains a network")
    checkpoint = context.folder.path / "training" / "last.ckpt"
    position = read_position(checkpoint, lambda message: context.reporter.info(f"  {message}"))
    done = position.epochs
    if 0 < epochs <= done:  # killed after the last checkpoint; Lightning would go on in an epoch that steps cut short
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        module.network.to(context.compute.device)
        return
    stop_workers()  # of the stage before: the workers that load images need the memory
    loader = training_loader(
        data, batch_size, context.compute, done, epoch_size=context.images_per_epoch, first_batch=position.batches,
        windows=module.settings.shuffles_windows(context.images_per_epoch),
    )  # fmt: skip
    module.network.to(memory_format=torch.channels_last)
    description = f"training epochs {done + 1} to {epochs}" if done else f"training {pluralize(epochs, 'epoch')}"
    total = epochs * len(loader) if steps is None else min(steps, epochs * len(loader))
    module.total_steps = total
    num_images = min(batch_size, context.images_per_epoch) // context.compute.world_size  # of the smallest shard
    module.num_parts = max(1, min(module.settings.batch_parts, num_images))
    remaining = max(0, total - done * len(loader) - position.batches)
    with (
        context.reporter.progress(description, remaining, "steps") as advance,
        silence_lightning(),
        stop_on_signals(),
        deterministic_algorithms(module.settings.deterministic),
        keep_freed_memory(),
    ):
        curves = TrainingCurves(context, advance, position.curves_of(context.compute))
        is_dry_run = context.max_steps is not None
        seconds = math.inf if is_dry_run else 60 * module.settings.checkpoint_minutes
        trainer = L.Trainer(
            max_epochs=epochs,
            max_steps=-1 if context.max_steps is None else context.max_steps,  # it would change how Lightning resumes
            callbacks=[
                _StepSeeds(data.seed),
                curves,
                _StopAfter(total),
                SaveCheckpoints(checkpoint, seconds, context.compute, curves.state),
            ],
            logger=False,
            enable_checkpointing=False,  # by a callback of Lightning
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # ours divides each batch among the processes, so that N processes equal one
            default_root_dir=context.folder.path,
            plugins=[AtomicCheckpoints(), *context.compute.trainer_plugins()],
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


def train_once(context: StageContext, network: type[SavedNetwork], train: Callable[[], None]) -> None:
    """Call `train`, which saves a network of this kind, unless it exists; then remove the checkpoint."""
    if not network.exists(context.folder.path):
        train()
    context.compute.barrier()
    shutil.rmtree(context.folder.path / "training", ignore_errors=True)


class _StepSeeds(Callback):
    """Seed the random numbers of the network (dropout) by seed, epoch, batch and rank alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        torch.manual_seed(sequence.generate_state(1, np.uint64).item())


class _StopAfter(Callback):
    """End the training after a number of steps, also within an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps
