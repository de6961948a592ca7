"""A training that is interrupted within an epoch ends with the bytes of an undisturbed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.progress import Reporter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import fit
from tagmask.training_curves import read_history
from tests.methods.contract import MakeContext
from tests.noisy_training import NoisyTraining, RandomImages, train_in_two_processes

EPOCHS, BATCH = 3, 2  # the toy images are eight: four steps per epoch


def losses(folder: Path) -> list[dict[str, float]]:
    history = read_history(StageFolder(folder))
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "data_wait")} for epoch in history]


def assert_equal(weights: dict[str, Any], expected: dict[str, Any]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


@pytest.fixture(params=[0, 2], ids=["alone", "2 workers"])
def context(request: pytest.FixtureRequest, make_context: MakeContext) -> StageContext:
    return replace(make_context(), compute=Compute(workers=request.param))


def train(
    context: StageContext, images: TaggedImages, name: str, stop_at: int | None = None, **arguments: Any
) -> NoisyTraining:
    steps = arguments.pop("steps", None)
    module = NoisyTraining(stop_at, **{"checkpoint_minutes": 0, **arguments})
    changed = replace(context, folder=StageFolder(context.folder.path / name))
    fit(module, RandomImages(images, lambda item: item, 0), changed, epochs=EPOCHS, batch_size=BATCH, steps=steps)
    return module


@pytest.mark.parametrize("stops", [(2,), (5, 2), (4, 1, 1, 3)], ids=str)
def test_the_result_is_that_of_an_undisturbed_training(
    context: StageContext, toy_images: TaggedImages, stops: tuple[int, ...]
) -> None:
    """Each number is that of the steps that an attempt does before it is interrupted."""
    whole = train(context, toy_images, "whole", checkpoint_minutes=10)
    for stop in stops:
        with pytest.raises(InterruptedError):
            train(context, toy_images, "interrupted", stop)
    resumed = train(context, toy_images, "interrupted")
    assert resumed.num_steps == 12 - sum(stops)  # no step is done twice
    assert_equal(resumed.network.state_dict(), whole.network.state_dict())
    assert losses(context.folder.path / "interrupted") == losses(context.folder.path / "whole")


def test_a_number_of_steps_that_ends_within_an_epoch(make_context: MakeContext, toy_images: TaggedImages) -> None:
    context = make_context()
    whole = train(context, toy_images, "whole", steps=7, checkpoint_minutes=10)
    with pytest.raises(InterruptedError):
        train(context, toy_images, "interrupted", 5, steps=7)
    resumed = train(context, toy_images, "interrupted", steps=7)
    assert resumed.num_steps == 2
    assert_equal(resumed.network.state_dict(), whole.network.state_dict())
    assert losses(context.folder.path / "interrupted") == losses(context.folder.path / "whole")


def test_without_a_checkpoint_within_the_epoch_it_starts_again(
    make_context: MakeContext, toy_images: TaggedImages
) -> None:
    context = make_context()
    whole = train(context, toy_images, "whole", checkpoint_minutes=10)
    with pytest.raises(InterruptedError):
        train(context, toy_images, "interrupted", 6, checkpoint_minutes=10)
    resumed = train(context, toy_images, "interrupted", checkpoint_minutes=10)
    assert resumed.num_steps == 8
    assert_equal(resumed.network.state_dict(), whole.network.state_dict())


def test_checkpoints_are_saved_by_time(
    make_context: MakeContext, toy_images: TaggedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that advances by a minute at each look: with 2.5 minutes, each third look saves."""
    minutes = iter(range(10_000))
    # The module's own clock alone: other threads look at time.monotonic, too.
    clock = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    monkeypatch.setattr("tagmask.checkpoints.time", clock)
    saved: list[tuple[int, int]] = []
    save = torch.save

    def record(content: dict[str, Any], file: Any) -> None:
        saved.append((content["tagmask"]["epochs"], content["tagmask"]["batches"]))
        save(content, file)

    monkeypatch.setattr("tagmask.checkpoints.torch.save", record)
    train(make_context(), toy_images, "stage", checkpoint_minutes=2.5)
    assert saved == [(0, 3), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0)]


def test_a_damaged_checkpoint_is_removed_and_the_training_starts_again(
    make_context: MakeContext, toy_images: TaggedImages
) -> None:
    context = make_context()
    whole = train(context, toy_images, "whole")
    with pytest.raises(InterruptedError):
        train(context, toy_images, "damaged", 6)
    path = context.folder.path / "damaged" / "training" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    messages: list[str] = []

    class Recorder(Reporter):
        def info(self, message: str) -> None:
            messages.append(message)

    again = train(replace(context, reporter=Recorder()), toy_images, "damaged")
    assert again.num_steps == 12
    assert "is damaged" in messages[0]
    assert_equal(again.network.state_dict(), whole.network.state_dict())


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed_within_an_epoch(toy_images: TaggedImages, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_in_two_processes(toy_images, whole, checkpoint_minutes=10) == [0, 0]
    assert 0 not in train_in_two_processes(toy_images, killed, stop_at=3, checkpoint_minutes=0)  # of two per epoch
    assert 0 not in train_in_two_processes(toy_images, killed, stop_at=2, workers=2, checkpoint_minutes=0)
    content = torch.load(killed / "training" / "last.ckpt", weights_only=True)["tagmask"]
    assert (content["epochs"], content["batches"], len(content["curves"])) == (2, 1, 2)
    assert train_in_two_processes(toy_images, killed, workers=2, checkpoint_minutes=0) == [0, 0]
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (killed, whole)]
    assert_equal(*weights)
    assert losses(killed) == losses(whole)
