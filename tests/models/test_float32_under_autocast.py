"""Under autocast, only the features are bfloat16: logits, displacements and losses are float32, and so precise."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tagmask.methods.cam import Cam, CamTraining
from tagmask.methods.recam import ReCam, ReCamNetwork, ReCamTraining
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork
from tagmask.models.classifier import Classifier
from tagmask.models.segmenter import DilatedHead

CLASSES = ("red", "green", "blue")


class FixedFeatures(nn.Module):
    """A backbone whose features are numbers that bfloat16 holds exactly."""

    channels = 64

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(2, self.channels, 9, 9, generator=generator).bfloat16().float()

    def forward(self, images: Tensor) -> Tensor:
        return self.features.bfloat16() if torch.is_autocast_enabled("cpu") else self.features


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(cast(Backbone, FixedFeatures()), CLASSES)


def both(compute: object) -> tuple[object, object]:
    """Return a result under autocast to bfloat16, and in float32."""
    assert callable(compute)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = compute()
    return under_autocast, compute()


def test_logits_and_activations_of_the_classifier() -> None:
    network, images = classifier(), torch.zeros(2, 3, 72, 72)
    for compute in (network.forward, network.activations):
        result, expected = both(lambda compute=compute: compute(images))
        assert isinstance(result, Tensor)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cam", "recam"])
def test_losses_of_the_classifiers(name: str) -> None:
    network = classifier()
    torch.manual_seed(0)
    training = {
        "cam": lambda: CamTraining(network, [], Cam()),
        "recam": lambda: ReCamTraining(ReCamNetwork(network), [], ReCam()),
    }[name]()
    batch = {"image": torch.zeros(2, 3, 72, 72), "tags": torch.tensor([[1.0, 0, 1], [0, 1, 0]])}
    result, expected = both(lambda: training.losses(batch))
    assert isinstance(result, dict)
    assert {loss.dtype for loss in result.values()} == {torch.float32}
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_displacements_near_70_cells_are_finer_than_a_hundredth_of_a_cell() -> None:
    """bfloat16 has steps of half a cell there."""
    torch.manual_seed(0)
    network = BoundaryNetwork(Backbone("test_resnet", weights="none"))
    last = network.displacement[-1]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight.abs_().mul_(15)
        network.boundary.weight.mul_(1000)
        images = torch.rand(1, 3, 64, 64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            boundary, displacement = network(images)
    assert boundary.dtype == displacement.dtype == torch.float32
    assert 35 < displacement.median() < 140
    for values in (boundary, displacement):
        rounded = values.bfloat16().float()
        assert (values != rounded).float().mean() > 0.9  # it was never rounded to bfloat16


def test_the_branches_of_the_dilated_head_are_added_in_float32() -> None:
    head = DilatedHead(8, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
        logits = head(features)
        branches = [branch(features) for branch in head.branches]
    assert logits.dtype == torch.float32
    assert branches[0].dtype == torch.bfloat16
    torch.testing.assert_close(logits, torch.stack(branches).float().sum(0))
