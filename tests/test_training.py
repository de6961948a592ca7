"""The training loop: which samples the network sees in each epoch, also after an interruption."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tagmask.compute import Compute
from tagmask.data.loading import ShuffledBatches, TrainingSet
from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import RandomScale, training_transform
from tagmask.methods.cam import Cam, CamTraining
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.progress import LoopUnit, Reporter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import ParameterGroup, Training, _freeze_unused_parameters, fit
from tagmask.training_curves import read_history
from tests.methods.contract import MakeContext
from tests.noisy_training import Keys, NoisyTraining, Settings

BATCH = 3
EPOCHS = 4


class RecordingTraining(Training):
    """Record the samples of each step, and stop in the middle of an epoch if `stop_in` is its number."""

    def __init__(self, stop_in: int | None = None) -> None:
        super().__init__(nn.Conv2d(3, 1, 1), [], Settings())
        self._parameter_groups = [{"params": list(self.network.parameters()), "lr": 0.1}]
        self.keys: list[list[tuple[int, ...]]] = []
        self.stop_in = stop_in

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        keys = [tuple(key) for key in batch["key"].tolist()]
        if self.stop_in is not None and self.trainer.current_epoch == self.stop_in and len(self.keys) % 2:
            raise InterruptedError
        self.keys.append(keys)
        return {"loss": self.network(batch["image"]).sum()}


@pytest.fixture(params=[0, 2], ids=["alone", "2 workers"])
def context(request: pytest.FixtureRequest, make_context: MakeContext) -> StageContext:
    return replace(make_context(), compute=Compute(workers=request.param))


def trained(context: StageContext, images: TaggedImages, module: RecordingTraining) -> list[list[tuple[int, ...]]]:
    fit(module, Keys(images, lambda item: item, 0), context, epochs=EPOCHS, batch_size=BATCH)
    return module.keys


def expected(images: TaggedImages) -> list[list[tuple[int, int]]]:
    sampler, batches = ShuffledBatches(len(images), BATCH, 0, Compute()), []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    return batches


def test_every_epoch_has_its_own_order_and_random_numbers(context: StageContext, toy_images: TaggedImages) -> None:
    seen = trained(context, toy_images, RecordingTraining())
    assert seen == expected(toy_images)
    assert {epoch for batch in seen for epoch, _ in batch} == set(range(EPOCHS))
    assert {index for batch in seen for _, index in batch} == set(range(8))  # each epoch leaves out other two


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupted_training_resumes_with_the_next_samples(
    context: StageContext, toy_images: TaggedImages, epoch: int
) -> None:
    with pytest.raises(InterruptedError):
        trained(context, toy_images, RecordingTraining(stop_in=epoch))
    counted: list[int] = []
    again = trained(replace(context, reporter=CountingReporter(counted)), toy_images, RecordingTraining())
    steps = 8 // BATCH
    assert again == expected(toy_images)[epoch * steps :]
    assert counted == [len(again)]


def test_a_number_of_steps_is_exact_with_its_learning_rates_and_after_an_interruption(
    context: StageContext, toy_images: TaggedImages
) -> None:
    def train(folder: str, stop_in: int | None = None, **changes: Any) -> RecordingTraining:
        torch.manual_seed(0)
        module = RecordingTraining(stop_in)
        changed = replace(context, folder=StageFolder(context.folder.path / folder), **changes)
        fit(module, Keys(toy_images, lambda item: item, 0), changed, epochs=EPOCHS, batch_size=BATCH, steps=7)
        return module

    counted: list[int] = []
    whole = train("whole", reporter=CountingReporter(counted))
    assert whole.keys == expected(toy_images)[:7]
    assert counted == [7]
    history = read_history(StageFolder(context.folder.path / "whole"))
    assert len(history) == 4
    assert history[-1]["lr"] == 0  # the schedule ends with the last step

    with pytest.raises(InterruptedError):
        train("resumed", stop_in=2)
    resumed = train("resumed")
    assert resumed.keys == expected(toy_images)[4:7]
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)
    again = train("resumed")  # killed after the last checkpoint
    assert again.keys == []
    torch.testing.assert_close(again.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_progress_shows_epoch_and_loss(
    context: StageContext, toy_images: TaggedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagmask.progress.LOG_INTERVAL", 0)
    monkeypatch.setattr("tagmask.training_curves.NOTE_INTERVAL", 0)
    output = io.StringIO()
    loud = replace(context, reporter=Reporter(Console(file=output, width=200)))
    fit(NoisyTraining(), Keys(toy_images, lambda item: item, 0), loud, epochs=2, batch_size=BATCH)
    lines = output.getvalue().splitlines()
    assert re.fullmatch(r"  training 2 epochs \(epoch 1/2, loss [\d.e-]+\): 1/\d+ steps, about \d+ s left", lines[0])
    assert "epoch 2/2" in lines[-2]


class CountingReporter(Reporter):
    """Check that every loop ends at its total, and record the totals."""

    def __init__(self, totals: list[int]) -> None:
        super().__init__()
        self.totals = totals

    @contextmanager
    def progress(self, description: str, total: int, unit: LoopUnit = "images") -> Iterator[Any]:
        done: list[int] = []
        yield done.append
        assert sum(done) == total
        self.totals.append(total)


def test_parameters_without_influence_on_the_loss_get_no_gradient(toy_images: TaggedImages) -> None:
    """convnext has a norm behind the features that maps are made from; DDP would wait for its gradient."""
    backbone = Backbone("convnext_atto", weights="none")
    classifier = Classifier(backbone, toy_images.classes)
    module = CamTraining(classifier, [ParameterGroup(classifier.parameters(), 0.1)], Cam())
    data = TrainingSet(toy_images, training_transform(RandomScale(1, 1), 32, backbone.mean, backbone.std), 0)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    _freeze_unused_parameters(module, data)
    frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in before if "head.norm" in name} != set()
    module.losses({"image": torch.randn(2, 3, 32, 32), "tags": torch.eye(3)[:2]})["loss"].backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters() if parameter.requires_grad)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
