"""A batch in parts gives the gradients and the losses of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.methods.activation_aware import ActivationAware, ActivationAwareTraining
from tagmask.methods.amn import Amn, AmnTraining
from tagmask.methods.cam import Cam, CamTraining
from tagmask.methods.irn import Irn, IrnTraining
from tagmask.methods.recam import ReCam, ReCamNetwork, ReCamTraining
from tagmask.methods.segment import Segment, SegmentTraining
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork
from tagmask.models.classifier import Classifier
from tagmask.models.label_conditioned import LabelConditionedNetwork
from tagmask.models.segmenter import Segmenter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import Training, fit
from tagmask.training_curves import read_history
from tests.methods.contract import MakeContext
from tests.noisy_training import NoisyTraining, RandomImages, train_in_two_processes

CLASSES = ("red", "green", "blue")
SIDE = 32


def backbone() -> Backbone:
    made = Backbone("test_resnet", weights="none", output_stride=8)
    made.freeze_norm = True
    return made


def segmenter() -> Segmenter:
    network = Segmenter("deeplabv2", "test_resnet", CLASSES, output_stride=8)
    network.freeze_norm = True
    return network


def weighted_segment_training() -> SegmentTraining:
    training = SegmentTraining(segmenter(), [], Segment())
    training.label_weights = torch.tensor([0.5, 1.0, 3.0, 2.0])
    return training


TRAININGS: dict[str, Callable[[], Training]] = {
    "cam": lambda: CamTraining(Classifier(backbone(), CLASSES), [], Cam()),
    "recam": lambda: ReCamTraining(ReCamNetwork(Classifier(backbone(), CLASSES)), [], ReCam()),
    "amn": lambda: AmnTraining(LabelConditionedNetwork(backbone(), CLASSES, dropout=0), [], Amn()),
    "irn": lambda: IrnTraining(BoundaryNetwork(backbone()), [], Irn(pair_radius=2, crop_size=SIDE)),
    "segment": lambda: SegmentTraining(segmenter(), [], Segment()),
    "segment with class weights": weighted_segment_training,
    "activation_aware": lambda: ActivationAwareTraining(segmenter(), [], ActivationAware(saliency_weight=0.5)),
}


def make_batch(num_images: int) -> dict[str, Tensor]:
    """Return a batch whose images have very different numbers of labeled, foreground and salient pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (num_images, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    saliency = torch.randint(0, 2, (num_images, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for i in range(num_images):
        labels[i, : 8 * (i % 4)] = 255
        saliency[i, :, 6 * i + 4 :] = 255
    return {
        "image": torch.randn(num_images, 3, SIDE, SIDE, generator=generator),
        "tags": torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])[:num_images],
        "labels": labels,
        "saliency": saliency,
    }


def step(
    make: Callable[[], Training], num_parts: int, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the losses and the gradients of a step."""
    torch.manual_seed(0)
    training = make()
    training.num_parts = num_parts
    training.train()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        losses = training.training_step(make_batch(5), 0)
    losses["loss"].backward()
    gradients = {n: p.grad for n, p in training.network.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("name", TRAININGS)
def test_the_gradients_are_those_of_the_whole_batch(name: str) -> None:
    losses, gradients = step(TRAININGS[name], 1)
    assert gradients
    for num_parts in (2, 5):
        losses_of_parts, gradients_of_parts = step(TRAININGS[name], num_parts)
        torch.testing.assert_close(losses_of_parts, losses, rtol=1e-5, atol=1e-6)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        torch.testing.assert_close(gradients_of_parts, gradients, rtol=1e-3, atol=1e-5 * largest)


def test_parts_under_autocast() -> None:
    """The weights are cast to bfloat16 once per step; the parts share the casts."""
    losses, gradients = step(TRAININGS["segment"], 1, torch.bfloat16)
    losses_of_parts, gradients_of_parts = step(TRAININGS["segment"], 2, torch.bfloat16)
    torch.testing.assert_close(losses_of_parts, losses, rtol=1e-3, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradients_of_parts[name], gradient, rtol=0, atol=0.02 * float(gradient.abs().max()), msg=name
        )


class MeanLoss(Training):
    """A loss that is not normalized by `mean_over_processes`."""

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.network(batch["image"]).square().mean()}


def test_other_losses_are_averaged_over_the_parts() -> None:
    torch.manual_seed(0)
    training = MeanLoss(nn.Conv2d(3, 1, 1), [], Cam())
    batch = make_batch(4)
    means = [training.losses({"image": images})["loss"] for images in batch["image"].split(2)]
    training.num_parts = 2
    torch.testing.assert_close(training.training_step(batch, 0)["loss"], (means[0] + means[1]) / 2)


def train(context: StageContext, images: TaggedImages, name: str, stop_at: int | None = None, **settings: Any) -> Any:
    module = NoisyTraining(stop_at, is_noisy=settings.pop("is_noisy", False), optimizer="sgd", **settings)
    changed = replace(context, folder=StageFolder(context.folder.path / name))
    fit(module, RandomImages(images, lambda item: item, 0), changed, epochs=3, batch_size=3, steps=5)
    return module


def test_a_training_with_parts_equals_one_without(make_context: MakeContext, toy_images: TaggedImages) -> None:
    context = replace(make_context(), compute=Compute(precision="float32"))
    whole, parts = (
        train(context, toy_images, str(batch_parts), batch_parts=batch_parts, momentum=0.9) for batch_parts in (1, 2)
    )
    assert (whole.num_parts, parts.num_parts) == (1, 2)
    torch.testing.assert_close(parts.network.state_dict(), whole.network.state_dict())
    histories = [read_history(StageFolder(context.folder.path / name)) for name in ("1", "2")]
    assert len(histories[0]) == 3
    for name in ("loss", "half", "lr"):
        values = [[epoch[name] for epoch in history] for history in histories]
        tolerance = 0.1 if name == "half" else 1e-5  # `half` is a mean over the parts, of two images and of one
        assert values[1] == pytest.approx(values[0], rel=tolerance)


def test_an_interrupted_training_with_parts_resumes_exactly(
    make_context: MakeContext, toy_images: TaggedImages
) -> None:
    context, settings = make_context(), {"batch_parts": 3, "is_noisy": True, "checkpoint_minutes": 0}
    whole = train(context, toy_images, "whole", **settings)
    with pytest.raises(InterruptedError):
        train(context, toy_images, "interrupted", 7, **settings)  # parts, the second one of the third step
    resumed = train(context, toy_images, "interrupted", **settings)
    assert resumed.num_steps == 3 * (5 - 2)
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weight), name


def test_a_part_has_at_least_one_image_in_each_process(make_context: MakeContext, toy_images: TaggedImages) -> None:
    assert train(make_context(), toy_images, "many", batch_parts=100).num_parts == 3


@pytest.mark.slow
def test_two_processes_with_parts_equal_one(
    make_context: MakeContext, toy_images: TaggedImages, tmp_path: Path
) -> None:
    """One process has two of the three images of a batch, the other one has one."""
    settings = {"batch_parts": 2, "optimizer": "sgd", "is_noisy": False}
    assert train_in_two_processes(toy_images, tmp_path / "two", batch_size=5, **settings) == [0, 0]
    module = NoisyTraining(**settings)
    context = replace(make_context("one"), compute=Compute(precision="float32"))
    fit(module, RandomImages(toy_images, lambda item: item, 0), context, epochs=3, batch_size=5)
    weights = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    torch.testing.assert_close(weights, module.network.state_dict())
