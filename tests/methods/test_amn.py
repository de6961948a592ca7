"""Test AMN against values of the public code (goldens/amn.npz), and its edge cases."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.transforms import downsample_labels
from tagmask.errors import RecipeError
from tagmask.label_map import IGNORE_INDEX, read_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods._seeds import make_seeds
from tagmask.methods.amn import Amn, mean_logits, renormalize_maps, smoothed_loss
from tagmask.models.backbone import Backbone
from tagmask.models.label_conditioned import LabelConditionedNetwork
from tagmask.stage_folder import StageFolder
from tests.conftest import GOLDENS
from tests.methods.contract import MakeContext, MethodContract

TOY = {
    "freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32, "lr": 1e-3, "head_lr": 1e-3,
    "scales": [1.0, 0.5], "seeds": {"fg": 0.3, "bg": 0.05, "crf": None},
}  # fmt: skip


class Features(nn.Module):
    """The backbone of the goldens: the identity."""

    channels = 16

    def forward(self, images: Tensor) -> Tensor:
        return images


def golden() -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in np.load(GOLDENS / "amn.npz").items()}


class TestAmn(MethodContract):
    method = Amn
    settings = TOY

    def test_the_maps_of_background_and_tagged_classes_are_stored(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = self.finished(make_context, earlier_stages)
        for sample in context.images.samples:
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            assert maps.background is not None
            assert 0 <= maps.background.min() <= maps.background.max() <= 1
            for labels in (maps.label_map(), maps.label_map(0.3)):
                assert set(np.unique(labels)) <= {0, *(sample.tags or ())}

    def test_seeds_agree_at_both_thresholds(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        context = self.finished(make_context, earlier_stages)
        for sample in context.images.samples:
            cam = ResponseMaps.load(StageFolder(earlier_stages["maps"]).maps_path(sample.id))
            seeds = read_label_map(context.folder.file_path("seeds", sample.id))
            high, low = cam.label_map(0.3), cam.label_map(0.05)
            assert np.array_equal(seeds, np.where(high > 0, high, np.where(low == 0, 0, 255)))

    def test_renormalize_seed_changes_maps_only_where_the_seed_is_not_background(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
        raw_context = make_context("raw", maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
        Amn(**{**TOY, "renormalize": "seed"}).run(context)
        Amn(**{**TOY, "renormalize": "nowhere"}).run(raw_context)
        num_changed = 0
        for sample in context.images.samples:
            seeds = read_label_map(context.folder.file_path("seeds", sample.id))
            background = seeds[2::4, 2::4] == 0  # at the centers of the 10×12 cells of 40×48 pixels
            stretched, raw = (
                ResponseMaps.load(folder.maps_path(sample.id)).maps for folder in (context.folder, raw_context.folder)
            )
            assert np.array_equal(stretched[:, background], raw[:, background])
            num_changed += int((stretched != raw).sum())
        assert num_changed > 0

    def test_the_softmax_is_over_all_classes_not_only_the_tagged_ones(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
        Amn(**{**TOY, "renormalize": "nowhere"}).run(context)
        for sample in context.images.samples:
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            total = maps.maps.astype(np.float32).sum(0) + maps.background
            if len(sample.tags or ()) == 3:
                assert total == pytest.approx(np.ones_like(total), abs=2e-3)
            else:
                assert total.mean() < 0.99

    def test_an_image_of_one_pixel(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path
    ) -> None:
        Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
        sample = Sample("one", str(tmp_path / "one.png"), (1, 3), None, size=(1, 1))
        images = TaggedImages(("red", "green", "blue"), (sample,))
        cam = StageFolder(tmp_path / "cam")
        ResponseMaps(np.array([1, 3]), np.array([[[0.9]], [[0.0]]]), (1, 1)).save(cam.maps_path("one"))
        context = make_context(images=images, maps=cam.path, classifier=earlier_stages["classifier"])
        Amn(**{**TOY, "seeds": {"fg": 0.3, "bg": 0.05}}).run(context)
        maps = ResponseMaps.load(context.folder.maps_path("one"))
        assert maps.maps.shape == (2, 1, 1)
        assert np.isfinite(maps.maps).all()

    def test_the_weights_of_the_classifier_do_not_fit_another_backbone(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
        with pytest.raises(RecipeError, match=r"'test_resnet'.*'resnet10t'.*leave backbone"):
            Amn(**TOY, backbone="resnet10t").run(context)
        Amn(**TOY, backbone="test_vit", weights="none").run(context)


def test_logits_and_loss_equal_the_goldens() -> None:
    g = golden()
    network = LabelConditionedNetwork(cast(Backbone, Features()), tuple("abcde")).eval()
    network.condition.weight.data = g["label_encoder_weight"]
    network.condition.bias.data = g["label_encoder_bias"]
    for i, branch in enumerate(network.head.branches):
        branch.weight.data, branch.bias.data = g[f"head{i}_weight"], g[f"head{i}_bias"]
    with torch.no_grad():
        logits = network(g["features"], g["tags"])
    torch.testing.assert_close(logits, g["logits"], rtol=1e-5, atol=1e-5)

    labels = downsample_labels(g["labels_full_size"], (13, 11))
    assert torch.equal(labels, g["labels_on_grid"])
    loss = smoothed_loss(logits, labels, float(g["smoothing"]))
    assert loss.item() == pytest.approx(float(g["balanced_loss"]), rel=1e-5)


def test_the_mean_over_horizontal_flips_equals_the_golden() -> None:
    g = golden()
    images = torch.zeros(1, 3, 52, 44)  # the grid of the goldens has 13×11 cells
    logits = mean_logits(lambda images, tags: g["logits"][:2], images, g["tags"][:1], scales=(1.0,))
    torch.testing.assert_close(logits[0], g["logits_of_image0_and_mirrored_image1"], rtol=1e-5, atol=1e-5)


def test_logits_are_averaged_over_scales() -> None:
    constant = torch.tensor([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1)

    def network(images: Tensor, tags: Tensor) -> Tensor:
        return constant.expand(2, 3, *images.shape[2:])

    logits = mean_logits(network, torch.zeros(1, 3, 9, 5), torch.ones(1, 2))
    torch.testing.assert_close(logits, constant.expand(1, 3, 3, 2))


def test_the_loss_without_background_or_foreground_pixels() -> None:
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    target = F.one_hot(torch.tensor(2), 4) * (0.6 - 0.4 / 3) + 0.4 / 3  # 1 − ε for the label, ε / K for the others
    expected = -(target[:, None, None] * logits.log_softmax(1)).sum(1).mean() / 2
    loss = smoothed_loss(logits, torch.full((2, 3, 5), 2))
    torch.testing.assert_close(loss, expected)
    for labels in (torch.zeros(2, 3, 5), torch.full((2, 3, 5), 255)):
        loss = smoothed_loss(logits, labels.long())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    assert loss.item() == 0  # all pixels are ignored


def test_the_loss_does_not_depend_on_the_number_of_processes() -> None:
    """The mean over the processes is the loss of the whole batch, even if they have different numbers of pixels."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(1, 3, (2, 4, 4))
    labels[0, :3], labels[1, 1:], labels[1, 0, 0] = 255, 255, 0  # a single background pixel
    whole = smoothed_loss(logits, labels)
    mean_counts = torch.tensor([1, 7]) / 2  # of background and foreground pixels, over the processes
    parts = [smoothed_loss(logits[[i]], labels[[i]], 0.4, lambda own_counts: mean_counts) for i in range(2)]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, logits), torch.autograd.grad(whole, logits))


def test_ignored_pixels_do_not_change_the_loss() -> None:
    logits = torch.randn(1, 3, 2, 8)
    labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 2], [255] * 8]])
    losses = F.cross_entropy(logits, labels.where(labels != 255, 0), label_smoothing=0.0, reduction="none")[0, 0]
    expected = (losses[:6].mean() + losses[6:].mean()) / 2
    torch.testing.assert_close(smoothed_loss(logits, labels, label_smoothing=0), expected)


def test_dropout_is_active_only_in_training() -> None:
    torch.manual_seed(0)
    network = LabelConditionedNetwork(Backbone("test_resnet"), ("a", "b"), dropout=0.5)
    images, tags = torch.randn(1, 3, 32, 32), torch.tensor([[1.0, 0.0]])
    network.eval()
    assert torch.equal(network(images, tags), network(images, tags))
    network.train()
    network.backbone.eval()
    assert not torch.equal(network(images, tags), network(images, tags))


@pytest.mark.parametrize(
    ("size", "grid"), [((100, 44), (13, 11)), ((37, 90), (3, 6)), ((5, 7), (5, 7)), ((1, 9), (1, 2))]
)
def test_labels_are_resized_like_pillow_at_any_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, IGNORE_INDEX], np.uint8), size)
    expected = Image.fromarray(labels).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    assert np.array_equal(downsample_labels(torch.from_numpy(labels)[None], grid)[0], np.asarray(expected))


def test_renormalize_maps() -> None:
    maps = torch.tensor([[[0.2, 0.4], [0.6, 0.2]], [[0.5, 0.5], [0.5, 0.5]]])
    not_background = torch.zeros(8, 8, dtype=torch.bool)
    not_background[:4] = True  # the upper two cells
    stretched = torch.tensor([[0.0, 0.2], [0.4, 0.0]]) / (0.6 - 0.2 + 1e-5)
    everywhere, seed, nowhere = (
        renormalize_maps(maps, not_background, where) for where in ("everywhere", "seed", "nowhere")
    )
    torch.testing.assert_close(everywhere[0], stretched)
    torch.testing.assert_close(seed[0], torch.tensor([[0.0, 0.2 / (0.4 + 1e-5)], [0.6, 0.2]]))
    assert torch.equal(nowhere, maps)
    assert torch.equal(everywhere[1], torch.zeros(2, 2))  # a constant map


def test_an_almost_constant_map_is_not_stretched() -> None:
    """The public code adds 1e-5 to the range, so that noise of 1e-7 does not become 0 to 1."""
    maps = 0.3 + torch.tensor([[[0.0, 1e-7], [3e-7, 2e-7]]], dtype=torch.float64)
    assert float(renormalize_maps(maps, torch.ones(8, 8, dtype=torch.bool), "everywhere").max()) < 0.05


def test_without_balance_the_loss_is_the_mean_over_all_known_pixels() -> None:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 255]).expand(2, 3, 5)
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(smoothed_loss(logits, labels, label_smoothing=0, balance=False), expected)


def test_without_label_conditioning_the_tags_do_not_change_the_logits() -> None:
    network = LabelConditionedNetwork(cast(Backbone, Features()), tuple("abcde"), conditioned=False).eval()
    features = golden()["features"]
    logits = network(features, torch.zeros(len(features), 5))
    torch.testing.assert_close(logits, network(features, torch.ones(len(features), 5)))
    torch.testing.assert_close(logits, network.head(features))
    assert not any("condition" in name for name in network.state_dict())


def test_the_first_layers_can_be_frozen(
    make_context: MakeContext, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[nn.Module] = []
    monkeypatch.setattr("tagmask.methods.amn.fit", lambda module, *_, **__: trained.append(module.network))
    context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
    settings = Amn(**TOY, frozen_stride=2)
    settings.train(context, make_seeds(settings.seeds, context))
    stem, *_, last = trained[0].get_submodule("backbone.net").children()
    assert not any(parameter.requires_grad for parameter in stem.parameters())
    assert all(parameter.requires_grad for parameter in last.parameters())
