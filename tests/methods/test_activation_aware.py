"""Test the activation-aware loss. Its definition has four properties:

(a) no gradient pushes an active pixel that is not salient to the background;
(b) foreground grows into the salient components that activation supports;
(c) a salient object that is not tagged is not learned as foreground;
(d) without saliency the loss is the cross-entropy against the pseudo-masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tagmask.compute import Compute
from tagmask.data.loading import TrainingSet
from tagmask.data.samples import TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.transforms import RandomScale, training_transform
from tagmask.errors import DataError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.activation_aware import (
    ActivationAware,
    activation_aware_loss,
    make_saliency_target,
)
from tagmask.methods.segment import Segment, pixel_loss
from tagmask.pipeline import write_run_record
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history
from tests.methods.contract import TOY_CAM, MakeContext, MethodContract
from tests.methods.test_segment import TOY

U = 255


@pytest.fixture(scope="session")
def toy_images(toy_images: TaggedImages, tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    """Return the toy images with saliency maps of half their size, in which the squares are salient.

    The first image has no saliency map.
    """
    folder = tmp_path_factory.mktemp("saliency")
    samples = list(toy_images.samples)
    for i, sample in enumerate(samples[1:], 1):
        assert sample.mask
        grey = Image.fromarray(np.where(sample.mask.read() > 0, 230, 20).astype(np.uint8)).resize((24, 20))
        grey.save(folder / f"{i}.png")
        samples[i] = replace(sample, saliency=folder / f"{i}.png")
    return replace(toy_images, samples=tuple(samples))


@pytest.fixture
def context(make_context: MakeContext, earlier_stages: dict[str, Path]) -> StageContext:
    return make_context(**{kind: earlier_stages[kind] for kind in ActivationAware.needs})


class TestActivationAware(MethodContract):
    method = ActivationAware
    settings = TOY


def test_the_stage_reports_missing_saliency_and_both_terms_of_the_loss(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "info", lines.append)
    ActivationAware(**TOY).run(replace(context, reporter=reporter))
    assert lines == ["  1 of 8 images have no saliency map: their masks alone are learned"]
    first, *others = (read_label_map(context.folder.file_path("saliency", s.id)) for s in context.images.samples)
    assert (first == U).all()
    assert {0, 1} <= set(np.unique(others)) <= {0, 1, U}
    [epoch] = read_history(context.folder)
    assert epoch["loss"] == pytest.approx(epoch["ce"] + 0.1 * epoch["saliency"], rel=1e-5)
    assert epoch["saliency"] > 0


def test_worker_processes_write_the_same_targets(context: StageContext, tmp_path: Path) -> None:
    with_workers = replace(context, folder=StageFolder(tmp_path / "with_workers"), compute=Compute(workers=2))
    for each in (context, with_workers):
        ActivationAware(**TOY).extra_targets(each)
    assert len(MethodContract.files(with_workers)) == 8
    assert MethodContract.is_same(context.folder.path, with_workers.folder.path)


def test_d_without_saliency_the_stage_equals_plain_segmentation(context: StageContext, tmp_path: Path) -> None:
    """The weights and masks are the same to the last bit."""
    for sample in context.images.samples:
        write_label_map(context.folder.file_path("saliency", sample.id), np.full((40, 48), U, np.uint8))
    ActivationAware(**TOY).run(context)
    plain = replace(context, folder=StageFolder(tmp_path / "plain"))
    Segment(**TOY).run(plain)
    assert MethodContract.is_same(plain.folder.path, context.folder.path)


def test_saliency_is_augmented_like_the_labels(context: StageContext) -> None:
    """Pixels outside of the image are left out."""
    for sample in context.images.samples:
        labels = read_label_map(context.inputs["masks"].mask_path(sample.id))
        write_label_map(context.folder.file_path("saliency", sample.id), (labels > 0).astype(np.uint8))
    extra_targets = ActivationAware(**TOY).extra_targets(context)
    transform = training_transform(RandomScale(0.5, 1.5), 64, (0.5,) * 3, (0.2,) * 3)
    data = TrainingSet(context.images, transform, 0, extra_targets)
    for item in (data[0, i] for i in range(8)):
        assert item["saliency"].dtype == torch.uint8
        padded = item["labels"] == U
        assert padded.any()
        assert torch.equal(item["saliency"], torch.where(padded, U, (item["labels"] > 0).to(torch.uint8)))


def test_images_without_saliency_are_an_error_before_the_run_begins(context: StageContext, tmp_path: Path) -> None:
    images = replace(context.images, samples=tuple(replace(s, saliency=None) for s in context.images.samples))
    recipe = Recipe.model_validate({"stages": {"cam": TOY_CAM, "pseudo_masks": {}, "activation_aware": TOY}})
    with pytest.raises(DataError) as error:
        write_run_record(RunFolder(tmp_path), recipe, images, RunSources(images=DataSource(root="toy")))
    assert not any(tmp_path.iterdir())
    assert str(error.value) == (
        "no image of toy has a saliency map, which the activation-aware loss needs: "
        "give --saliency FOLDER, or make them with `tagmask saliency`."
    )


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (None, r"bad\.png is not an image that can be read; replace or remove it\.$"),
        ((48, 30), r"bad\.png has 48×30 pixels and its image 48×40; give both the same aspect ratio\.$"),
    ],
)
def test_a_bad_saliency_map_is_an_error_before_anything_is_trained(
    context: StageContext, tmp_path: Path, size: tuple[int, int] | None, sentence: str
) -> None:
    path = tmp_path / "bad.png"
    Image.new("L", size).save(path) if size else path.write_bytes(b"no image")
    samples = list(context.images.samples)
    samples[3] = replace(samples[3], saliency=path)
    images = replace(context.images, samples=tuple(samples))
    with pytest.raises(DataError, match=sentence):
        ActivationAware(**TOY).run(replace(context, images=images))
    assert read_history(context.folder) == []


# `make_saliency_target`


def row_target(saliency: Sequence[float], *activations: Sequence[float]) -> list[int]:
    """Return the saliency target of an image of one row of pixels, from its saliency and the activation per class."""
    rows = np.array(activations, np.float32).reshape(len(activations), 1, -1)
    maps = SimpleNamespace(size=(1, len(saliency)), full_size=lambda: rows)
    target = make_saliency_target(np.array([saliency]), cast(ResponseMaps, maps))
    assert target.dtype == np.uint8
    return target[0].tolist()


# The 90th percentile of the ten positive activations is 0.7 + 0.1 · 0.3 = 0.73, so only the last pixel is claimed.
ACTIVATION = [0, 0, 0, 0, 0.05, 0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
SALIENCY = [1, 0.5, 0, 0.49, 0, 0, 0, 0, 0, 0, 1, 0.5, 0.6, 0]


def test_saliency_target_of_each_kind_of_pixel() -> None:
    untagged, background, weak, active, salient, claimed = [U] * 2, [0] * 2, [0] * 2, [U] * 4, [1] * 3, [1]
    expected = [*untagged, *background, *weak, *active, *salient, *claimed]
    assert row_target(SALIENCY, ACTIVATION) == expected


def test_a_salient_component_needs_a_mean_activation_of_a_tenth() -> None:
    """An activation of 0.5 at one of five pixels is enough, at one of six it is not."""
    assert row_target([1] * 5 + [0] + [1] * 6, [0.5] + [0] * 10 + [0.5]) == [1] * 5 + [0] + [U] * 6
    assert row_target([1, 1, 0, 1, 1], [0.3, 0.3, 0, 0, 0]) == [1, 1, 0, U, U]


def test_diagonal_neighbors_are_two_components() -> None:
    maps = SimpleNamespace(size=(2, 2), full_size=lambda: np.array([[[0.9, 0], [0, 0]]], np.float32))
    target = make_saliency_target(np.eye(2), cast(ResponseMaps, maps))
    assert target.tolist() == [[1, 0], [0, U]]


def test_pixels_that_two_classes_claim_are_left_out() -> None:
    """Each class has its own percentile."""
    strong, weak = [0.0] * 20, [0.0] * 20
    strong[:5], weak[4:9] = [0.2, 0.2, 0.2, 0.2, 0.9], [0.4, 0.01, 0.01, 0.01, 0.05]  # percentiles 0.62 and 0.26
    assert row_target([0] * 20, strong)[:9] == [U, U, U, U, 1, 0, 0, 0, 0]
    assert row_target([0] * 20, weak)[:9] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert row_target([0] * 20, strong, weak)[:9] == [U, U, U, U, U, 0, 0, 0, 0]
    assert row_target([0] * 4 + [1] + [0] * 15, strong, weak)[4] == U  # although it is salient
    weak[4], weak[8] = 0.05, 0.4  # each class claims another pixel
    assert row_target([0] * 20, strong, weak)[:9] == [U, U, U, U, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7)])
def test_constant_maps(size: tuple[int, int]) -> None:
    grid = grid_size(size)
    zero = ResponseMaps(np.array([2]), np.zeros((1, *grid), np.float16), size)
    no_tags = ResponseMaps(np.array([], int), np.zeros((0, *grid), np.float16), size)
    for maps in (zero, no_tags):
        assert (make_saliency_target(np.zeros(size), maps) == 0).all()
        assert (make_saliency_target(np.ones(size), maps) == U).all()
        assert (make_saliency_target(None, maps) == U).all()
    ones = ResponseMaps(np.array([2]), np.ones((1, *grid), np.float16), size)  # no value is above the percentile
    assert (make_saliency_target(np.zeros(size), ones) == U).all()
    assert (make_saliency_target(np.ones(size), ones) == 1).all()


def test_saliency_must_have_the_size_of_the_image() -> None:
    maps = ResponseMaps(np.array([1]), np.zeros((1, 2, 3)), (8, 9))
    with pytest.raises(ValueError, match=r"saliency is \[8, 8\], its image \[8, 9\]"):
        make_saliency_target(np.zeros((8, 8)), maps)


# `activation_aware_loss`


def column(values: Sequence[Any], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return values as [1, 1, W], an image of one row."""
    return torch.tensor(values, dtype=dtype)[None, None]


def test_loss_of_equal_probabilities() -> None:
    """All three probabilities are 1/3: the cross-entropy is log 3 at each labeled pixel, and p_fg is 2/3."""
    labels, targets = column([0, 1, 2, U]), column([0, 1, U, 1])
    losses = activation_aware_loss(torch.zeros(1, 3, 1, 4), labels, targets, 0.1)
    saliency = (log(3) + 2 * log(1.5)) / 3
    assert losses["ce"].item() == pytest.approx(log(3))
    assert losses["saliency"].item() == pytest.approx(saliency)
    assert losses["loss"].item() == pytest.approx(log(3) + 0.1 * saliency)


def saliency_gradient(targets: list[int], num_classes: int = 2) -> Tensor:
    """Return the gradient [K + 1, W] of the saliency term at equal logits."""
    logits = torch.zeros(1, num_classes + 1, 1, len(targets), requires_grad=True)
    activation_aware_loss(logits, column([0] * len(targets)), column(targets))["saliency"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad[0, :, 0]


def test_a_and_c_active_and_untagged_pixels_are_not_pushed_to_the_background() -> None:
    """Active pixels that are not salient, and untagged salient ones, have no gradient. Claimed ones are foreground."""
    untagged, background, active, salient, claimed = 0, 2, 6, 10, 13
    gradient = saliency_gradient(row_target(SALIENCY, ACTIVATION))
    num_pixels = 8  # that are not left out
    assert not gradient[:, [active, untagged]].any()
    for pixel in (claimed, salient):  # d(−log p_fg): p_bg = 1/3 for the background logit, shared by the others
        torch.testing.assert_close(gradient[:, pixel] * num_pixels, torch.tensor([1 / 3, -1 / 6, -1 / 6]))
    torch.testing.assert_close(gradient[:, background] * num_pixels, torch.tensor([-2 / 3, 1 / 3, 1 / 3]))


def test_b_foreground_grows_into_the_salient_component() -> None:
    """Of five salient pixels, the mask labels one as the class, ignores three, and labels one as background."""
    targets = column(row_target([1, 1, 1, 1, 1, 0], [0.8, 0, 0, 0, 0, 0]))
    labels = column([1, U, U, U, 0, 0])
    logits = torch.zeros(1, 2, 1, 6, requires_grad=True)
    activation_aware_loss(logits, labels, targets, 0.1)["loss"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    gradient = logits.grad[0, 1, 0]
    # −p_bg / n for foreground, p_fg / n for background; n is 3 for the mask and 6 for the saliency
    mask = torch.tensor([-0.5, 0, 0, 0, 0.5, 0.5]) / 3
    saliency = torch.tensor([-0.5, -0.5, -0.5, -0.5, -0.5, 0.5]) / 6
    torch.testing.assert_close(gradient, mask + 0.1 * saliency)
    assert (gradient[1:4] < 0).all()  # where the mask is ignored, towards the foreground


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0])
def test_b_saliency_against_the_mask_has_its_minimum_at_log_lambda(weight: float) -> None:
    """−log p_bg − λ log p_fg is minimal at p_fg = λ / (1 + λ), which is a logit of log λ."""
    logits = torch.tensor([0.0, log(weight)]).reshape(1, 2, 1, 1).requires_grad_()
    activation_aware_loss(logits, column([0]), column([1]), weight)["loss"].backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2, 1, 1), atol=1e-6, rtol=0)


def test_d_without_saliency_the_loss_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 4, 5, 5, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 5), dtype=torch.uint8)
    ignored = torch.full_like(labels, U)
    losses = activation_aware_loss(logits, labels, ignored, 0.1)
    assert losses["saliency"].item() == 0
    [aware] = torch.autograd.grad(losses["loss"], logits)
    [plain] = torch.autograd.grad(pixel_loss(logits, labels), logits)
    assert torch.equal(aware, plain)
    all_ignored = activation_aware_loss(logits, ignored, ignored)["loss"]
    assert all_ignored.item() == 0
    assert not torch.autograd.grad(all_ignored, logits)[0].any()


def test_extreme_logits_have_a_finite_loss() -> None:
    """With logits that are wrong by 1e4, the loss is 1e4 and its gradient 1."""
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).reshape(1, 2, 1, 2).requires_grad_()
    saliency = activation_aware_loss(logits, column([U, U]), column([1, 0]))["saliency"]
    assert saliency.item() == pytest.approx(1e4)
    saliency.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, :, 0] * 2, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_the_loss_does_not_depend_on_the_number_of_processes() -> None:
    """The mean over the processes is the loss of the whole batch, even if they have different numbers of pixels."""
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    targets = torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8)
    labels[0, :3], targets[1, 1:] = U, U
    whole = activation_aware_loss(logits, labels, targets, 0.5)["loss"]
    parts = []
    for i in range(2):
        # the mean counts over the processes, of the mask and then of the saliency
        mean_counts = iter([(labels != U).sum() / 2, (targets != U).sum() / 2])
        reduce_mean = partial(next, mean_counts)  # the own count is the second argument of `next`, its default
        parts.append(activation_aware_loss(logits[[i]], labels[[i]], targets[[i]], 0.5, reduce_mean)["loss"])
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
