"""The activation-aware loss: the properties (a) to (d) of its definition, worked by hand."""

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
from tagmask.data.transforms import RandomScale, training_transform
from tagmask.errors import DataError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.activation_aware import ActivationAware, activation_aware_loss, saliency_target, target_file
from tagmask.methods.segment import Segment, pixel_loss
from tagmask.pipeline import write_run_record
from tagmask.recipe import Recipe
from tagmask.stage import StageContext, mask_path
from tagmask.training import read_history
from tests.methods.contract import TOY_CAM, MakeContext, MethodContract
from tests.methods.test_segment import TOY

U = 255


@pytest.fixture(scope="session")
def toy_images(toy_images: TaggedImages, tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    """The toy pictures with saliency of half their size, their squares; the first has none."""
    folder = tmp_path_factory.mktemp("saliency")
    samples = list(toy_images.samples)
    for i, sample in enumerate(samples[1:], 1):
        assert sample.mask
        grey = Image.fromarray(np.where(sample.mask.read() > 0, 230, 20).astype(np.uint8)).resize((24, 20))
        grey.save(folder / f"{i}.png")
        samples[i] = replace(sample, saliency=folder / f"{i}.png")
    return replace(toy_images, samples=tuple(samples))


@pytest.fixture
def context(make_context: MakeContext, earlier: dict[str, Path]) -> StageContext:
    return make_context(**{kind: earlier[kind] for kind in ActivationAware.needs})


class TestActivationAware(MethodContract):
    method = ActivationAware
    settings = TOY


def test_the_stage_says_what_is_missing_and_shows_both_parts_of_the_loss(
    context: StageContext, capsys: pytest.CaptureFixture[str]
) -> None:
    ActivationAware(**TOY).run(replace(context, info=print))
    line = "1 of 8 images have no saliency: they are learnt from their masks alone\n"
    assert capsys.readouterr().out == line
    first, second = (read_label_map(target_file(context.folder, sample)) for sample in context.images.samples[:2])
    assert (first == U).all()
    assert {0, 1} <= set(np.unique(second)) <= {0, 1, U}
    [epoch] = read_history(context.folder)
    assert epoch["loss"] == pytest.approx(epoch["ce"] + 0.1 * epoch["saliency"], rel=1e-5)
    assert epoch["saliency"] > 0


def test_workers_make_the_same(context: StageContext, tmp_path: Path) -> None:
    many = replace(context, folder=tmp_path / "many", compute=Compute(workers=2))
    for each in (context, many):
        ActivationAware(**TOY).layers(each)
    assert len(MethodContract.files(many)) == 8
    assert MethodContract.same(context.folder, many.folder)


def test_where_saliency_says_nothing_the_stage_is_plain_segmentation(context: StageContext, tmp_path: Path) -> None:
    """Property (d), to the last bit."""
    for sample in context.images.samples:
        write_label_map(target_file(context.folder, sample), np.full((40, 48), U, np.uint8))
    ActivationAware(**TOY).run(context)
    plain = replace(context, folder=tmp_path / "plain")
    Segment(**TOY).run(plain)
    assert MethodContract.same(plain.folder, context.folder)


def test_saliency_goes_through_the_augmentation_as_the_labels_do(context: StageContext) -> None:
    """And is left out where the image was padded."""
    for sample in context.images.samples:
        labels = read_label_map(mask_path(context.inputs["masks"], sample))
        write_label_map(target_file(context.folder, sample), (labels > 0).astype(np.uint8))
    layers = ActivationAware(**TOY).layers(context)
    transform = training_transform(RandomScale(0.5, 1.5), 64, (0.5,) * 3, (0.2,) * 3)
    data = TrainingSet(context.images, transform, 0, layers)
    for item in (data[0, i] for i in range(8)):
        assert item["saliency"].dtype == torch.uint8
        padded = item["labels"] == U
        assert padded.any()
        assert torch.equal(item["saliency"], torch.where(padded, U, (item["labels"] > 0).to(torch.uint8)))


def test_no_saliency_at_all_is_one_sentence_before_the_run_begins(context: StageContext, tmp_path: Path) -> None:
    none = replace(context.images, samples=tuple(replace(s, saliency=None) for s in context.images.samples))
    recipe = Recipe.model_validate({"stages": {"cam": TOY_CAM, "crf": {}, "activation_aware": TOY}})
    with pytest.raises(DataError) as error:
        write_run_record(tmp_path, recipe, none, {})
    assert not any(tmp_path.iterdir())
    assert str(error.value) == (
        "no image of toy has saliency, which the activation-aware loss needs: "
        "give --saliency FOLDER, or make it with `tagmask saliency DATA --out FOLDER`."
    )


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (None, r"odd\.png is not an image that can be read; replace or remove it\.$"),
        ((48, 30), r"odd\.png has 48×30 pixels and its image 48×40; give both the same aspect ratio\.$"),
    ],
)
def test_bad_saliency_is_one_sentence_before_anything_is_trained(
    context: StageContext, tmp_path: Path, size: tuple[int, int] | None, sentence: str
) -> None:
    odd = tmp_path / "odd.png"
    Image.new("L", size).save(odd) if size else odd.write_bytes(b"no picture")
    samples = list(context.images.samples)
    samples[3] = replace(samples[3], saliency=odd)
    images = replace(context.images, samples=tuple(samples))
    with pytest.raises(DataError, match=sentence):
        ActivationAware(**TOY).run(replace(context, images=images))
    assert read_history(context.folder) == []


# The target of one image


def target(saliency: Sequence[float], *activations: Sequence[float]) -> list[int]:
    """`saliency_target` of an image of one row, with activations given pixel by pixel."""
    rows = np.array(activations, np.float32).reshape(len(activations), 1, -1)
    maps = SimpleNamespace(size=(1, len(saliency)), full_size=lambda: rows)
    found = saliency_target(np.array([saliency]), cast(ResponseMaps, maps))
    assert found.dtype == np.uint8
    return found[0].tolist()


def test_target_by_hand() -> None:
    """The 90th percentile of the ten positive activations is 0.7 + 0.1 · 0.3 = 0.73: only the last claims."""
    active = [0, 0, 0, 0, 0.05, 0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
    salient = [1, 0.5, 0, 0.49, 0, 0, 0, 0, 0, 0, 1, 0.5, 0.6, 0]
    # an untagged object; background; hardly active; active, not salient; salient; claimed
    expected = [U, U, 0, 0, 0, 0, U, U, U, U, 1, 1, 1, 1]
    assert target(salient, active) == expected


def test_a_component_is_foreground_where_the_seed_covers_but_a_part_of_it() -> None:
    """Its mean activation must be 0.1: 0.5 on one of five pixels, not on one of six. Components count one by one."""
    assert target([1] * 5 + [0] + [1] * 6, [0.5] + [0] * 10 + [0.5]) == [1] * 5 + [0] + [U] * 6
    assert target([1, 1, 0, 1, 1], [0.3, 0.3, 0, 0, 0]) == [1, 1, 0, U, U]


def test_diagonal_neighbours_are_two_components() -> None:
    maps = SimpleNamespace(size=(2, 2), full_size=lambda: np.array([[[0.9, 0], [0, 0]]], np.float32))
    found = saliency_target(np.eye(2), cast(ResponseMaps, maps))
    assert found.tolist() == [[1, 0], [0, U]]


def test_each_class_claims_by_its_own_percentile_and_two_claims_are_unsure() -> None:
    strong, weak = [0.0] * 20, [0.0] * 20
    strong[:5], weak[4:9] = [0.2, 0.2, 0.2, 0.2, 0.9], [0.4, 0.01, 0.01, 0.01, 0.05]  # percentiles 0.62 and 0.26
    assert target([0] * 20, strong)[:9] == [U, U, U, U, 1, 0, 0, 0, 0]
    assert target([0] * 20, weak)[:9] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert target([0] * 20, strong, weak)[:9] == [U, U, U, U, U, 0, 0, 0, 0]
    assert target([0] * 4 + [1] + [0] * 15, strong, weak)[4] == U  # salient or not
    weak[4], weak[8] = 0.05, 0.4  # of one pixel above the percentile each
    assert target([0] * 20, strong, weak)[:9] == [U, U, U, U, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7)])
def test_maps_that_say_nothing(size: tuple[int, int]) -> None:
    grid = grid_size(size)
    zero = ResponseMaps(np.array([2]), np.zeros((1, *grid), np.float16), size)
    for maps in (zero, ResponseMaps(np.array([], int), np.zeros((0, *grid), np.float16), size)):
        assert (saliency_target(np.zeros(size), maps) == 0).all()
        assert (saliency_target(np.ones(size), maps) == U).all()
        assert (saliency_target(None, maps) == U).all()
    one = ResponseMaps(np.array([2]), np.ones((1, *grid), np.float16), size)  # no value is above the percentile
    assert (saliency_target(np.zeros(size), one) == U).all()
    assert (saliency_target(np.ones(size), one) == 1).all()


def test_saliency_must_have_the_image_s_size() -> None:
    maps = ResponseMaps(np.array([1]), np.zeros((1, 2, 3)), (8, 9))
    with pytest.raises(ValueError, match=r"saliency is \[8, 8\], its image \[8, 9\]"):
        saliency_target(np.zeros((8, 8)), maps)


# The loss


def column(values: Sequence[Any], dtype: torch.dtype = torch.uint8) -> Tensor:
    """[1, 1, W]: an image of one row."""
    return torch.tensor(values, dtype=dtype)[None, None]


def test_loss_by_hand() -> None:
    """All three probabilities are a third: CE is log 3 at each known pixel, p_fg = 2/3."""
    labels, targets = column([0, 1, 2, U]), column([0, 1, U, 1])
    found = activation_aware_loss(torch.zeros(1, 3, 1, 4), labels, targets, 0.1)
    saliency = (log(3) + 2 * log(1.5)) / 3
    assert found["ce"].item() == pytest.approx(log(3))
    assert found["saliency"].item() == pytest.approx(saliency)
    assert found["loss"].item() == pytest.approx(log(3) + 0.1 * saliency)


def saliency_gradient(targets: list[int], num_classes: int = 2) -> Tensor:
    """Of the saliency's part at equal logits, [K + 1, W]."""
    logits = torch.zeros(1, num_classes + 1, 1, len(targets), requires_grad=True)
    activation_aware_loss(logits, column([0] * len(targets)), column(targets))["saliency"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad[0, :, 0]


def test_a_and_c_nothing_pushes_an_active_or_untagged_pixel_to_the_background() -> None:
    """(a) not salient, but active: no gradient, or with a claim one to the foreground. (c) as in the first."""
    active, claimed, untagged, background, salient = 6, 13, 0, 2, 10  # the pixels of `test_target_by_hand`
    activations = [0, 0, 0, 0, 0.05, 0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
    gradient = saliency_gradient(target([1, 0.5, 0, 0.49, 0, 0, 0, 0, 0, 0, 1, 0.5, 0.6, 0], activations))
    counted = 8
    assert not gradient[:, [active, untagged]].any()
    for pixel in (claimed, salient):  # d(−log p_fg): p_bg = 1/3 for the background's logit, shared by the others
        torch.testing.assert_close(gradient[:, pixel] * counted, torch.tensor([1 / 3, -1 / 6, -1 / 6]))
    torch.testing.assert_close(gradient[:, background] * counted, torch.tensor([-2 / 3, 1 / 3, 1 / 3]))


def test_b_foreground_grows_into_the_salient_component() -> None:
    """The seed covers one of five salient pixels, three are unsure, one is called background by the mask."""
    targets = column(target([1, 1, 1, 1, 1, 0], [0.8, 0, 0, 0, 0, 0]))
    labels = column([1, U, U, U, 0, 0])
    logits = torch.zeros(1, 2, 1, 6, requires_grad=True)
    activation_aware_loss(logits, labels, targets, 0.1)["loss"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    gradient = logits.grad[0, 1, 0]
    # −p_bg / n for "foreground", p_fg / n for "background"; n is 3 of the mask's pixels, 6 of the saliency's
    mask = torch.tensor([-0.5, 0, 0, 0, 0.5, 0.5]) / 3
    saliency = torch.tensor([-0.5, -0.5, -0.5, -0.5, -0.5, 0.5]) / 6
    torch.testing.assert_close(gradient, mask + 0.1 * saliency)
    assert (gradient[1:4] < 0).all()  # without the mask's veto, to the foreground


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0])
def test_b_against_the_mask_it_comes_to_rest_where_both_pulls_are_even(weight: float) -> None:
    """−log p_bg − λ log p_fg is least at p_fg = λ / (1 + λ), a logit of log λ."""
    logits = torch.tensor([0.0, log(weight)]).reshape(1, 2, 1, 1).requires_grad_()
    activation_aware_loss(logits, column([0]), column([1]), weight)["loss"].backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2, 1, 1), atol=1e-6, rtol=0)


def test_d_without_saliency_it_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 4, 5, 5, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 5), dtype=torch.uint8)
    nothing = torch.full_like(labels, U)
    found = activation_aware_loss(logits, labels, nothing, 0.1)
    assert found["saliency"].item() == 0
    [aware] = torch.autograd.grad(found["loss"], logits)
    [plain] = torch.autograd.grad(pixel_loss(logits, labels), logits)
    assert torch.equal(aware, plain)
    everything_unsure = activation_aware_loss(logits, nothing, nothing)["loss"]
    assert everything_unsure.item() == 0
    assert not torch.autograd.grad(everything_unsure, logits)[0].any()


def test_extreme_logits_stay_finite() -> None:
    """Wrong by 1e4: so much is the loss, and the gradient is 1."""
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).reshape(1, 2, 1, 2).requires_grad_()
    saliency = activation_aware_loss(logits, column([U, U]), column([1, 0]))["saliency"]
    assert saliency.item() == pytest.approx(1e4)
    saliency.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, :, 0] * 2, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_many_processes_make_the_loss_of_one() -> None:
    """Their parts' mean is the whole's, however unevenly the counted pixels lie."""
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    targets = torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8)
    labels[0, :3], targets[1, 1:] = U, U
    whole = activation_aware_loss(logits, labels, targets, 0.5)["loss"]
    parts = []
    for one in (slice(0, 1), slice(1, 2)):
        # what the processes would agree on: the mask's mean count, then the saliency's
        agreed = iter([(labels != U).sum() / 2, (targets != U).sum() / 2])
        counts = partial(next, agreed)  # its second argument, the own count, is only what it gives at the end
        parts.append(activation_aware_loss(logits[one], labels[one], targets[one], 0.5, counts)["loss"])
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
