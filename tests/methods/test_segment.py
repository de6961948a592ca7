"""Test the segmentation stage: its loss, its inference against a plain loop, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import tagmask.methods.segment
from tagmask import large_images
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.methods._class_balance import balanced_label_weights, label_shares, undo_label_weights
from tagmask.methods.segment import (
    Segment,
    SegmentTraining,
    add_foreground_bias,
    class_probabilities,
    most_probable_labels,
    pixel_loss,
)
from tagmask.models.classifier import Classifier
from tagmask.models.segmenter import Segmenter
from tagmask.refine.settings import NETWORK_CRF, NetworkCrfSettings
from tagmask.stage_folder import StageFolder
from tagmask.training import ParameterGroup
from tagmask.training_curves import read_history
from tests.methods.contract import MakeContext, MethodContract

TOY: dict[str, Any] = {
    "architecture": "Unet", "freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32, "lr": 0.001,
    "head_lr": 0.01, "scales": [1.0], "crf": None,
}  # fmt: skip


LIKE_DEEPLAB_PYTORCH: dict[str, Any] = {
    "scale_choices": [0.5, 0.75, 1, 1.25, 1.5], "train_norm": False, "loss_grid": "logits", "loss_scales": [0.5, 0.75],
    "head_bias_lr": 0.02,
}  # fmt: skip


class TestSegment(MethodContract):
    method = Segment
    settings = TOY


class TestDeepLabWithCrf(MethodContract):
    method = Segment
    settings = {  # noqa: RUF012
        **TOY, "architecture": "deeplabv2", "crf": {"steps": 2}, "scales": [0.75, 1.0], **LIKE_DEEPLAB_PYTORCH
    }  # fmt: skip


class TestClassBalance(MethodContract):
    method = Segment
    settings = {**TOY, "class_balance": 0.5}  # noqa: RUF012


class TestCalibration(MethodContract):
    method = Segment
    settings = {**TOY, "class_balance": 0.5, "calibration_images": 5}  # noqa: RUF012


def make_network(architecture: str = "Unet") -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(architecture, "test_resnet", ("a", "b", "c"), 8).eval()


def make_training(net: Segmenter) -> SegmentTraining:
    return SegmentTraining(net, [ParameterGroup(net.parameters(), 0.1)], Segment(**TOY))


def test_the_loss_is_the_cross_entropy_without_ignored_pixels() -> None:
    net = make_network()
    logits = torch.randn(2, 4, 8, 8)
    net.forward = lambda images: logits  # type: ignore[method-assign]
    labels = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    labels[0, :5] = 255
    terms = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x].long()]
        for b in range(2) for y in range(8) for x in range(8) if labels[b, y, x] != 255
    ]  # fmt: skip
    loss = make_training(net).losses({"image": torch.zeros(2, 3, 8, 8), "labels": labels})["loss"]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_a_batch_of_ignored_pixels_has_no_gradient() -> None:
    net = make_network().train()
    labels = torch.full((2, 32, 32), 255, dtype=torch.uint8)
    loss = make_training(net).losses({"image": torch.rand(2, 3, 32, 32), "labels": labels})["loss"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_masks_in_which_all_pixels_are_ignored(
    make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path
) -> None:
    masks = StageFolder(tmp_path / "masks")
    context = make_context(masks=masks.path, classifier=earlier_stages["classifier"])
    for sample in context.images.samples:
        write_label_map(masks.mask_path(sample.id), np.full(sample.size, 255, np.uint8))
    Segment(**TOY).run(context)
    assert read_history(context.folder)[0]["loss"] == 0
    assert read_label_map(context.folder.mask_path("0")).max() < 255


@torch.inference_mode()
def plain_loop(
    net: nn.Module, image: Tensor, ids: Sequence[int], scales: Sequence[float], flips: Sequence[bool]
) -> np.ndarray:
    """Compute the mean over scales and flips of the softmax over the given labels at full size: [L, H, W]."""
    height, width = image.shape[1:]
    views = []
    for scale in scales:
        size = (round(height * scale), round(width * scale))
        for flip in flips:
            view = F.interpolate(image[None], size, mode="bilinear", antialias=scale < 1) if scale != 1 else image[None]
            logits = net(view.flip(3))[:, list(ids)].flip(3) if flip else net(view)[:, list(ids)]
            views.append(F.interpolate(logits, (height, width), mode="bilinear")[0].softmax(0).numpy())
    return np.mean(views, 0)


@pytest.mark.parametrize("hflip", [True, False])
@pytest.mark.parametrize("architecture", ["Unet", "deeplabv2"])
def test_class_probabilities_equal_a_plain_loop(architecture: str, hflip: bool) -> None:
    net = make_network(architecture)
    images = torch.randn(3, 3, 40, 64, generator=torch.Generator().manual_seed(1))
    tags = [None, (3, 1), ()]
    flips = (False, True) if hflip else (False,)
    results = class_probabilities(net, images, tags, (1.0, 0.5, 1.5), hflip)
    for image, (ids, probabilities), expected in zip(images, results, [[0, 1, 2, 3], [0, 1, 3], [0]], strict=True):
        assert ids.tolist() == expected
        assert probabilities.shape == (len(expected), 40, 64)
        np.testing.assert_allclose(probabilities, plain_loop(net, image, expected, (1.0, 0.5, 1.5), flips), atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("crf", [None, NETWORK_CRF])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_most_probable_labels(crf: Any, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    probabilities = np.stack([np.full(size, 0.2), np.full(size, 0.7), np.full(size, 0.1)]).astype(np.float32)
    labels = most_probable_labels(image, np.array([0, 4, 9], np.uint8), probabilities, crf)
    assert labels.dtype == np.uint8
    assert labels.tolist() == np.full(size, 4).tolist()
    only_background = most_probable_labels(image, np.array([0], np.uint8), np.ones((1, *size), np.float32), crf)
    assert not only_background.any()


def test_the_foreground_bias_multiplies_the_odds_of_the_foreground() -> None:
    """0.45 / 0.55 · e^0.5 = 1.35 > 1, and 0.45 / 0.55 · e^0.1 = 0.90 < 1; all pixels agree, so the CRF changes none."""
    image, ids = np.zeros((5, 9, 3), np.uint8), np.array([0, 4, 9], np.uint8)
    probabilities = np.broadcast_to(np.float32([0.55, 0.3, 0.15])[:, None, None], (3, 5, 9))
    odds = np.broadcast_to(np.float32([0.55, 0.45])[:, None, None], (2, 5, 9))
    for bias, label in ((0.1, 0), (0.5, 4)):
        crf = NetworkCrfSettings(foreground_bias=bias)
        assert (most_probable_labels(image, ids[:2], odds, crf) == label).all()
    biased = add_foreground_bias(probabilities, 0.5)
    np.testing.assert_allclose(biased.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(biased[1:] / biased[0], np.exp(0.5) * probabilities[1:] / probabilities[0], rtol=1e-6)
    np.testing.assert_allclose(biased[1] / biased[2], 2, rtol=1e-6)


def test_one_setting_of_the_crf_leaves_the_others_as_they_are_for_networks() -> None:
    crf = Segment.model_validate({"crf": {"steps": 5}}).crf
    assert crf == NETWORK_CRF.model_copy(update={"steps": 5})
    deeplab = {"gaussian_sxy": 1, "gaussian_weight": 3, "bilateral_sxy": 67, "bilateral_srgb": 3, "bilateral_weight": 4}
    assert NETWORK_CRF.kernel_arguments() == deeplab


def test_the_network_learns_the_masks(
    make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path
) -> None:
    """Trained on the ground truth, the network finds the squares, whose colors give their classes."""
    masks = StageFolder(tmp_path / "masks")
    context = make_context(masks=masks.path, classifier=earlier_stages["classifier"])
    for sample in context.images.samples:
        assert sample.mask is not None
        write_label_map(masks.mask_path(sample.id), sample.mask.read())
    settings = {**TOY, "weights": "none", "epochs": 30, "optimizer": "adamw"}
    Segment(**{**settings, "lr": 0.005, "head_lr": 0.005}).run(context)
    target = np.stack([sample.mask.read() for sample in context.images.samples if sample.mask])
    preds = np.stack([read_label_map(context.folder.mask_path(sample.id)) for sample in context.images.samples])
    assert (target == preds).mean() > 0.95
    assert (target == preds)[target > 0].mean() > 0.8


def test_initial_weights(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    def untrained_encoder(name: str, **changes: Any) -> dict[str, Tensor]:
        context = make_context(name, masks=earlier_stages["masks"], classifier=earlier_stages["classifier"])
        Segment(**TOY | {"epochs": 0} | changes).run(context)
        return Segmenter.load(context.folder.path).timm_network().state_dict()

    classifier = Classifier.load(earlier_stages["classifier"]).backbone.net.state_dict()
    default, random = untrained_encoder("default"), untrained_encoder("random", weights="none")
    assert torch.equal(default["conv1.0.weight"], classifier["conv1.0.weight"])
    assert not torch.equal(random["conv1.0.weight"], classifier["conv1.0.weight"])
    with pytest.raises(RecipeError, match=r"the weights contain only .* of the .* layers of 'mobilenetv2_050'"):
        untrained_encoder("refused", backbone="mobilenetv2_050")
    assert untrained_encoder("mobilenet", backbone="mobilenetv2_050", weights="none").keys() != classifier.keys()


@pytest.mark.parametrize(("steps", "batch_size", "epochs"), [(5, 4, 3), (4, 4, 2), (1, 4, 1), (3, 100, 3)])
def test_steps_are_rounded_up_to_whole_epochs(
    make_context: MakeContext, earlier_stages: dict[str, Path], steps: int, batch_size: int, epochs: int
) -> None:
    context = make_context(masks=earlier_stages["masks"], classifier=earlier_stages["classifier"])
    Segment(**TOY | {"epochs": None, "steps": steps, "batch_size": batch_size}).run(context)
    assert len(read_history(context.folder)) == epochs


def test_an_architecture_that_cannot_train_with_one_image_is_an_error(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages
) -> None:
    one_image = replace(toy_images, samples=toy_images.samples[:1])
    context = make_context(masks=earlier_stages["masks"], classifier=earlier_stages["classifier"], images=one_image)
    with pytest.raises(RecipeError, match="DeepLabV3Plus cannot be trained with one image per step"):
        Segment(**TOY | {"architecture": "DeepLabV3Plus", "output_stride": 16}).run(context)


def test_worker_processes_write_the_same_masks(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context, with_workers = (
        make_context(name, masks=earlier_stages["masks"], classifier=earlier_stages["classifier"])
        for name in ("stage", "with_workers")
    )
    method = Segment(**TOY | {"crf": {"steps": 2}})
    method.run(context)
    method.run(replace(with_workers, compute=Compute(workers=2)))
    assert MethodContract.is_same(context.folder.path, with_workers.folder.path)


def test_label_weights_are_those_of_the_cross_entropy_of_torch() -> None:
    logits, weights = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 1.0, 3.0, 0.5])
    labels = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    labels[0, :5] = 255
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=255)
    torch.testing.assert_close(pixel_loss(logits, labels, label_weights=weights), expected)
    torch.testing.assert_close(pixel_loss(logits, labels, label_weights=torch.ones(4)), pixel_loss(logits, labels))
    assert pixel_loss(logits, torch.full_like(labels, 255), label_weights=weights) == 0


def test_balanced_weights_make_a_rare_label_count_more() -> None:
    shares = np.array([0.9, 0.09, 0.01, 0.0])
    for exponent in (0.0, 0.5, 1.0):
        weights = balanced_label_weights(shares, exponent)
        assert (weights * shares).sum() == pytest.approx(1)
        assert weights[2] / weights[1] == pytest.approx(9**exponent)
        assert weights[3] == 0
    contributions = balanced_label_weights(shares, 1.0) * shares
    np.testing.assert_allclose(contributions[:3], 1 / 3)


def test_the_shares_of_labels_leave_out_ignored_pixels(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(masks=tmp_path / "masks_stage")
    for sample in context.images.samples:
        labels = np.zeros((40, 48), np.uint8)
        labels[:10], labels[10:20] = 2, 255
        write_label_map(context.inputs["masks"].mask_path(sample.id), labels)
    np.testing.assert_allclose(label_shares(context, 4), [2 / 3, 0, 1 / 3, 0])


def test_label_weights_are_undone_exactly() -> None:
    """The best logits for pixels that look alike, with weights: after the correction, they are the labels' shares."""
    counts = torch.tensor([70.0, 25.0, 5.0])
    weights = torch.from_numpy(balanced_label_weights((counts / counts.sum()).numpy(), 0.5)).float()
    labels = torch.repeat_interleave(torch.arange(3), counts.int())[None, None]
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = pixel_loss(logits.expand(1, 3, 1, 100), labels, label_weights=weights)
        value.backward()
        return value

    optimizer.step(loss)
    shares = (logits[0, :, 0, 0] + undo_label_weights(weights)).softmax(0)
    torch.testing.assert_close(shares.detach(), counts / 100, atol=1e-3, rtol=0)
    assert undo_label_weights(torch.tensor([2.0, 0.0]))[1] == 0


@pytest.mark.parametrize("architecture", ["deeplabv2", "Unet", "DeepLabV3Plus", "FPN", "UPerNet", "Segformer"])
def test_offsets_are_added_to_the_logits(architecture: str) -> None:
    torch.manual_seed(0)
    network = Segmenter(architecture, "resnet18", ("a", "b")).eval()
    images, offsets = torch.randn(1, 3, 64, 64), torch.tensor([0.5, -1.0, 2.0])
    with torch.inference_mode():
        before = network(images)
    network.add_to_logits(offsets)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), before + offsets[:, None, None], atol=1e-4, rtol=0)


def test_class_balance_reaches_the_loss(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    losses = {}
    for balance in (0.0, 1.0):
        inputs = {kind: earlier_stages[kind] for kind in ("masks", "classifier")}
        context = make_context(f"balance-{balance}", **inputs)
        Segment(**TOY, class_balance=balance).train(context)
        losses[balance] = read_history(context.folder)[0]["loss"]
    assert losses[0.0] != pytest.approx(losses[1.0], rel=0.01)


def test_calibrated_networks_find_each_label_as_often_as_the_masks_have_it(
    make_context: MakeContext, earlier_stages: dict[str, Path]
) -> None:
    inputs = {kind: earlier_stages[kind] for kind in ("masks", "classifier")}
    means = {}
    for count in (0, 100):
        context = make_context(f"calibration-{count}", **inputs)
        settings = Segment(**TOY, class_balance=0.5, calibration_images=count)
        settings.train(context)
        network = Segmenter.load(context.folder.path).eval()
        shares, probabilities = [], []
        for sample in context.images.samples:
            pixels = torch.from_numpy(sample.read_image()).permute(2, 0, 1)[None]
            image = normalize_images(pixels, network.mean, network.std)
            labels = context.inputs["masks"].read_mask(sample.id)
            _, p = class_probabilities(network, image, [[1, 3]])[0]  # no mask has class 2
            assert set(np.unique(labels)) <= {0, 1, 3, 255}
            probabilities.append(p[:, labels != 255].mean(1))
            shares.append(np.bincount(labels[labels != 255], minlength=4)[[0, 1, 3]] / (labels != 255).sum())
        means[count] = np.abs(np.mean(probabilities, 0) - np.mean(shares, 0)).max()
    assert means[0] > 0.03
    assert means[100] < 0.005  # not 0: flips are averaged after the softmax


def test_networks_are_calibrated_on_one_tile_of_a_large_image(
    make_context: MakeContext, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MAX_PIXELS": 500, "CORE_SIDE": 32, "HALO": 4}.items():
        monkeypatch.setattr(large_images, name, value)
    seen = []

    def spy(network: Segmenter, images: Tensor, *arguments: Any) -> Any:
        seen.append(tuple(images.shape))
        return class_probabilities(network, images, *arguments)

    monkeypatch.setattr(tagmask.methods.segment, "class_probabilities", spy)
    context = make_context("calibration", masks=earlier_stages["masks"], classifier=earlier_stages["classifier"])
    network = make_network()
    network.classes = context.images.classes
    biases = Segment(**TOY, calibration_images=3).calibrated_biases(network, context)
    assert biases.shape == (4,)
    assert biases[0] == 0
    assert biases[1:].abs().max() > 0.01
    assert seen == 3 * [(1, 3, 12, 36)]  # images of 40 x 48: the lower left tile has rows 28 to 40, columns 0 to 36


def test_the_loss_of_deeplab_pytorch() -> None:
    """The sum of four mean cross-entropies, with labels resized by PIL (its README: other ways misalign them)."""
    network = make_network("deeplabv2").train()
    settings = Segment(**TOY | LIKE_DEEPLAB_PYTORCH)
    training = settings.make_training(network, [])
    images = torch.randn(2, 3, 65, 81, generator=torch.Generator().manual_seed(1))
    labels = torch.from_numpy(np.random.default_rng(2).choice([0, 1, 2, 3, 255], (2, 65, 81)).astype(np.uint8))
    with torch.no_grad():
        views = [images, *(F.interpolate(images, size, mode="bilinear") for size in ([32, 40], [48, 60]))]
        logits = [network(view) for view in views]
        grid = logits[0].shape[2:]
        logits.append(torch.stack([F.interpolate(each, grid, mode="bilinear") for each in logits]).max(0).values)
        expected = 0.0
        for each in logits:
            height, width = each.shape[2:]
            resized = [Image.fromarray(m).resize((width, height), Image.Resampling.NEAREST) for m in labels.numpy()]
            target = torch.from_numpy(np.stack([np.asarray(m) for m in resized])).long()
            expected += float(F.cross_entropy(each, target, ignore_index=255))
        loss = training.losses({"image": images, "labels": labels})["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_parameter_groups_of_deeplab_pytorch() -> None:
    """Its `get_params`: encoder 1×, weights of the head 10×, its biases 20× and without decay; no norms."""
    network = make_network("deeplabv2")
    settings = Segment(**{**TOY, **LIKE_DEEPLAB_PYTORCH, "lr": 0.1, "head_lr": 1.0, "head_bias_lr": 2.0})
    encoder, weights, biases = settings.parameter_groups(network)
    assert (encoder.lr, weights.lr, biases.lr) == (0.1, 1.0, 2.0)
    assert (encoder.weight_decay, weights.weight_decay, biases.weight_decay) == (None, None, 0.0)
    head = dict(network.net[1].named_parameters())
    assert {id(p) for p in weights.parameters} == {id(p) for name, p in head.items() if name.endswith("weight")}
    assert {id(p) for p in biases.parameters} == {id(p) for name, p in head.items() if name.endswith("bias")}
    trained = [p for p in network.timm_network().parameters() if p.requires_grad]
    assert trained
    assert all(p.ndim == 4 for p in trained)
