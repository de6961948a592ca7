"""The segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.methods.segment import Segment, SegmentTraining, decide, probabilities
from tagmask.models.segmenter import Segmenter
from tagmask.refine.settings import NETWORK_CRF
from tagmask.training import read_history
from tests.methods.contract import MakeContext, MethodContract

TOY: dict[str, Any] = {
    "architecture": "Unet", "freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32, "lr": 0.001,
    "scales": [1.0], "crf": None,
}  # fmt: skip


class TestSegment(MethodContract):
    method = Segment
    settings = TOY


class TestDeepLabWithCrf(MethodContract):
    method = Segment
    settings = {**TOY, "architecture": "deeplabv2", "crf": {"steps": 2}, "scales": [0.75, 1.0]}  # noqa: RUF012


def network(architecture: str = "Unet") -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(architecture, "resnet18", ("a", "b", "c"), 8).eval()


def training(net: Segmenter) -> SegmentTraining:
    return SegmentTraining(net, [(net.parameters(), 0.1)])


def test_the_loss_is_cross_entropy_over_the_known_pixels() -> None:
    net = network()
    logits = torch.randn(2, 4, 8, 8)
    net.forward = lambda images: logits  # type: ignore[method-assign]
    labels = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    labels[0, :5] = 255
    terms = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x].long()]
        for b in range(2) for y in range(8) for x in range(8) if labels[b, y, x] != 255
    ]  # fmt: skip
    found = training(net).loss({"image": torch.zeros(2, 3, 8, 8), "labels": labels})["loss"]
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_a_batch_of_unsure_pixels_teaches_nothing() -> None:
    net = network().train()
    labels = torch.full((2, 32, 32), 255, dtype=torch.uint8)
    loss = training(net).loss({"image": torch.rand(2, 3, 32, 32), "labels": labels})["loss"]
    assert float(loss) == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_masks_of_unsure_pixels_alone_go_through(
    make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path
) -> None:
    context = make_context(masks=tmp_path / "void", classifier=earlier["classifier"])
    for sample in context.images.samples:
        path = tmp_path / "void" / "masks" / f"{sample.id}.png"
        write_label_map(path, np.full(sample.size, 255, np.uint8))
    Segment(**TOY).run(context)
    assert read_history(context.folder)[0]["loss"] == 0
    assert read_label_map(context.mask_path(context.images.samples[0])).max() < 255


@torch.inference_mode()
def plain_loop(net: nn.Module, image: Tensor, ids: Sequence[int], scales: Sequence[float]) -> np.ndarray:
    """One scale and flip at a time: softmax over the allowed classes at full size, then the mean."""
    height, width = image.shape[1:]
    found = []
    for scale in scales:
        size = (round(height * scale), round(width * scale))
        for mirrored in (False, True):
            view = F.interpolate(image[None], size, mode="bilinear", antialias=scale < 1) if scale != 1 else image[None]
            logits = net(view.flip(3))[:, list(ids)].flip(3) if mirrored else net(view)[:, list(ids)]
            found.append(F.interpolate(logits, (height, width), mode="bilinear")[0].softmax(0).numpy())
    return np.mean(found, 0)


@pytest.mark.parametrize("architecture", ["Unet", "deeplabv2"])
def test_probabilities_are_those_of_a_plain_loop(architecture: str) -> None:
    net = network(architecture)
    images = torch.randn(3, 3, 40, 64, generator=torch.Generator().manual_seed(1))
    tags = [None, (3, 1), ()]
    found = probabilities(net, images, tags, (1.0, 0.5, 1.5))
    for image, (ids, probs), expected in zip(images, found, [[0, 1, 2, 3], [0, 1, 3], [0]], strict=True):
        assert ids.tolist() == expected
        assert probs.shape == (len(expected), 40, 64)
        np.testing.assert_allclose(probs, plain_loop(net, image, expected, (1.0, 0.5, 1.5)), atol=1e-5)
        np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("crf", [None, NETWORK_CRF])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_decide(crf: Any, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    probs = np.stack([np.full(size, 0.2), np.full(size, 0.7), np.full(size, 0.1)]).astype(np.float32)
    labels = decide(image, np.array([0, 4, 9], np.uint8), probs, crf)
    assert labels.dtype == np.uint8
    assert labels.tolist() == np.full(size, 4).tolist()
    assert not decide(image, np.array([0], np.uint8), np.ones((1, *size), np.float32), crf).any()


def test_it_learns_what_the_masks_say(make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path) -> None:
    """Trained on true masks it finds the squares, whose colours tell all."""
    context = make_context(masks=tmp_path / "true", classifier=earlier["classifier"])
    for sample in context.images.samples:
        assert sample.mask is not None
        write_label_map(tmp_path / "true" / "masks" / f"{sample.id}.png", sample.mask.read())
    settings = {**TOY, "backbone": "resnet10t", "weights": "none", "epochs": 20, "optimizer": "adamw", "head_factor": 1}
    Segment(**{**settings, "lr": 0.005}).run(context)
    ground_truth = np.stack([sample.mask.read() for sample in context.images.samples if sample.mask])
    found = np.stack([read_label_map(context.folder.mask_path(sample.id)) for sample in context.images.samples])
    assert (ground_truth == found).mean() > 0.95
    assert (ground_truth == found)[ground_truth > 0].mean() > 0.8


def test_where_its_weights_come_from(make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path) -> None:
    from tagmask.models.classifier import Classifier

    context = make_context(masks=earlier["masks"], classifier=earlier["classifier"])
    of_classifier = Segment(**TOY).untrained(context).timm_network().state_dict()["conv1.weight"]
    assert torch.equal(of_classifier, Classifier.load(earlier["classifier"]).backbone.net.state_dict()["conv1.weight"])
    random = Segment(**TOY | {"weights": "none"}).untrained(context).timm_network().state_dict()["conv1.weight"]
    assert not torch.equal(random, of_classifier)
    other = Segment(**TOY | {"backbone": "mobilenetv2_050"})
    with pytest.raises(RecipeError, match="are in the weights given: are they of another backbone"):
        other.untrained(context)
    assert Segment(**TOY | {"backbone": "mobilenetv2_050", "weights": "none"}).untrained(context).classes


@pytest.mark.parametrize(("steps", "batch_size", "epochs"), [(5, 4, 3), (4, 4, 2), (1, 4, 1), (3, 100, 3)])
def test_steps_are_rounded_up_to_epochs(
    make_context: MakeContext, earlier: dict[str, Path], steps: int, batch_size: int, epochs: int
) -> None:
    context = make_context(masks=earlier["masks"], classifier=earlier["classifier"])
    Segment(**TOY | {"epochs": None, "steps": steps, "batch_size": batch_size}).run(context)
    assert len(read_history(context.folder)) == epochs


def test_an_architecture_that_needs_more_than_one_image_says_so(
    make_context: MakeContext, earlier: dict[str, Path], toy_images: TaggedImages
) -> None:
    one = replace(toy_images, samples=toy_images.samples[:1])
    context = make_context(masks=earlier["masks"], classifier=earlier["classifier"], images=one)
    with pytest.raises(RecipeError, match="DeepLabV3Plus cannot learn from one image at a time"):
        Segment(**TOY | {"architecture": "DeepLabV3Plus", "output_stride": 16}).run(context)


def test_many_workers_make_the_same_masks(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    alone, many = (make_context(n, masks=earlier["masks"], classifier=earlier["classifier"]) for n in ("alone", "many"))
    method = Segment(**TOY | {"crf": {"steps": 2}})
    method.run(alone)
    method.run(replace(many, compute=Compute(workers=2)))
    assert MethodContract.same(alone.folder, many.folder)
