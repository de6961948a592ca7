"""AMN, against the reference's numbers (goldens/amn.npz) and its traps."""

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
from tagmask.methods.amn import Amn, balanced_loss, mean_logits, renormalize_maps
from tagmask.models.backbone import Backbone
from tagmask.models.label_conditioned import LabelConditioned
from tests.conftest import GOLDENS
from tests.methods.contract import MakeContext, MethodContract

TOY = {
    "freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32, "lr": 1e-3, "head_lr": 1e-3, "scales": [1.0, 0.5],
    "seeds": {"fg": 0.3, "bg": 0.05, "crf": None},
}  # fmt: skip


class Features(nn.Module):
    """The goldens' backbone: the identity."""

    channels = 16

    def forward(self, images: Tensor) -> Tensor:
        return images


def golden() -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in np.load(GOLDENS / "amn.npz").items()}


class TestAmn(MethodContract):
    method = Amn
    settings = TOY

    def test_background_and_tagged_maps_alone_are_stored(
        self, make_context: MakeContext, earlier: dict[str, Path]
    ) -> None:
        context = self.run(make_context, earlier)
        for sample in context.images.samples:
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            assert maps.background is not None
            assert 0 <= maps.background.min() <= maps.background.max() <= 1
            for labels in (maps.label_map(), maps.label_map(0.3)):
                assert set(np.unique(labels)) <= {0, *(sample.tags or ())}

    def test_seeds_are_of_both_thresholds(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        context = self.run(make_context, earlier)
        for sample in context.images.samples:
            cam = ResponseMaps.load(earlier["maps"] / "maps" / f"{sample.id}.safetensors")
            seeds = read_label_map(context.folder.path / "seeds" / f"{sample.id}.png")
            high, low = cam.label_map(0.3), cam.label_map(0.05)
            assert np.array_equal(seeds, np.where(high > 0, high, np.where(low == 0, 0, 255)))

    def test_the_maps_depend_on_the_seed_where_it_is_not_background(
        self, make_context: MakeContext, earlier: dict[str, Path]
    ) -> None:
        context = make_context(maps=earlier["maps"], classifier=earlier["classifier"])
        raw = make_context("raw", maps=earlier["maps"], classifier=earlier["classifier"])
        Amn(**{**TOY, "renormalize": "seed"}).run(context)
        Amn(**{**TOY, "renormalize": "nowhere"}).run(raw)
        changed = 0
        for sample in context.images.samples:
            seeds = read_label_map(context.folder.path / "seeds" / f"{sample.id}.png")
            background = seeds[2::4, 2::4] == 0  # the centres of 40×48 pixels' 10×12 cells
            ours, plain = ResponseMaps.load(context.folder.maps_path(sample.id)), ResponseMaps.load(raw.maps_path(sample))
            assert np.array_equal(ours.maps[:, background], plain.maps[:, background])
            changed += int((ours.maps != plain.maps).sum())
        assert changed > 0

    def test_probabilities_are_of_all_classes_before_the_tagged_are_kept(
        self, make_context: MakeContext, earlier: dict[str, Path]
    ) -> None:
        context = make_context(maps=earlier["maps"], classifier=earlier["classifier"])
        Amn(**{**TOY, "renormalize": "nowhere"}).run(context)
        for sample in context.images.samples:
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            total = maps.maps.astype(np.float32).sum(0) + maps.background
            if len(sample.tags or ()) == 3:
                assert total == pytest.approx(np.ones_like(total), abs=2e-3)
            else:
                assert total.mean() < 0.99

    def test_one_pixel(self, make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path) -> None:
        Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
        one = TaggedImages(
            ("red", "green", "blue"), (Sample("one", str(tmp_path / "one.png"), (1, 3), None, size=(1, 1)),)
        )
        ResponseMaps(np.array([1, 3]), np.array([[[0.9]], [[0.0]]]), (1, 1)).save(
            tmp_path / "in" / "maps" / "one.safetensors"
        )
        context = make_context(images=one, maps=tmp_path / "in", classifier=earlier["classifier"])
        Amn(**{**TOY, "seeds": {"fg": 0.3, "bg": 0.05}}).run(context)
        maps = ResponseMaps.load(context.maps_path(one.samples[0]))
        assert maps.maps.shape == (2, 1, 1)
        assert np.isfinite(maps.maps).all()

    def test_weights_of_another_backbone_are_refused(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        context = make_context(maps=earlier["maps"], classifier=earlier["classifier"])
        with pytest.raises(RecipeError, match=r"'resnet18'.*'test_resnet'.*leave backbone"):
            Amn(**TOY, backbone="test_resnet").run(context)
        Amn(**TOY, backbone="test_vit", weights="none").run(context)


def test_goldens() -> None:
    g = golden()
    network = LabelConditioned(cast(Backbone, Features()), tuple("abcde")).eval()
    network.condition.weight.data = g["label_encoder_weight"]
    network.condition.bias.data = g["label_encoder_bias"]
    for i, branch in enumerate(network.head.branches):
        branch.weight.data, branch.bias.data = g[f"head{i}_weight"], g[f"head{i}_bias"]
    with torch.no_grad():
        logits = network(g["features"], g["tags"])
    torch.testing.assert_close(logits, g["logits"], rtol=1e-5, atol=1e-5)

    labels = downsample_labels(g["labels_full_size"], (13, 11))
    assert torch.equal(labels, g["labels_on_grid"])
    loss = balanced_loss(logits, labels, float(g["label_smoothing"]))
    assert loss.item() == pytest.approx(float(g["balanced_loss"]), rel=1e-5)


def test_golden_pair_of_mirrored_logits() -> None:
    g = golden()
    images = torch.zeros(1, 3, 52, 44)  # whose grid is the goldens': 13×11
    ours = mean_logits(lambda both, tags: g["logits"][:2], images, g["tags"][:1], scales=(1.0,))
    torch.testing.assert_close(ours[0], g["logits_of_image0_and_mirrored_image1"], rtol=1e-5, atol=1e-5)


def test_logits_are_averaged_over_scales_not_summed() -> None:
    constant = torch.tensor([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1)
    ours = mean_logits(
        lambda both, tags: constant.expand(2, 3, *both.shape[2:]), torch.zeros(1, 3, 9, 5), torch.ones(1, 2)
    )
    torch.testing.assert_close(ours, constant.expand(1, 3, 3, 2))


def test_loss_without_one_kind_is_half_the_other() -> None:
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    target = F.one_hot(torch.tensor(2), 4) * (0.6 - 0.4 / 3) + 0.4 / 3  # 1 − ε, and ε/K elsewhere
    by_hand = -(target[:, None, None] * logits.log_softmax(1)).sum(1).mean() / 2
    loss = balanced_loss(logits, torch.full((2, 3, 5), 2))
    torch.testing.assert_close(loss, by_hand)
    for labels in (torch.zeros(2, 3, 5), torch.full((2, 3, 5), 255)):
        loss = balanced_loss(logits, labels.long())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    assert loss.item() == 0  # unsure pixels alone


def test_many_processes_make_the_loss_of_one() -> None:
    """Their parts' mean is the whole's, with its gradients, however unevenly the pixels of each kind lie."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(1, 3, (2, 4, 4))
    labels[0, :3], labels[1, 1:], labels[1, 0, 0] = 255, 255, 0  # one pixel of background in all
    whole = balanced_loss(logits, labels)
    agreed = [torch.tensor([1, 7]) / 2] * 2  # the processes' mean counts of background and foreground
    parts = [balanced_loss(logits[i : i + 1], labels[i : i + 1], 0.4, lambda _, i=i: agreed[i]) for i in range(2)]
    together = torch.stack(parts).mean()
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(torch.autograd.grad(together, logits), torch.autograd.grad(whole, logits))


def test_unsure_pixels_and_their_number_do_not_matter() -> None:
    logits = torch.randn(1, 3, 2, 8)
    labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 2], [255] * 8]])
    losses = F.cross_entropy(logits, labels.where(labels != 255, 0), label_smoothing=0.0, reduction="none")[0, 0]
    expected = (losses[:6].mean() + losses[6:].mean()) / 2
    torch.testing.assert_close(balanced_loss(logits, labels, label_smoothing=0), expected)


def test_dropout_is_off_in_eval() -> None:
    torch.manual_seed(0)
    network = LabelConditioned(Backbone("test_resnet"), ("a", "b"), dropout=0.5)
    images, tags = torch.randn(1, 3, 32, 32), torch.tensor([[1.0, 0.0]])
    network.eval()
    assert torch.equal(network(images, tags), network(images, tags))
    network.train()
    network.backbone.eval()
    assert not torch.equal(network(images, tags), network(images, tags))


@pytest.mark.parametrize(
    ("size", "grid"), [((100, 44), (13, 11)), ((37, 90), (3, 6)), ((5, 7), (5, 7)), ((1, 9), (1, 2))]
)
def test_labels_are_resized_as_pillow_does_for_any_shape(size: tuple[int, int], grid: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, IGNORE_INDEX], np.uint8), size)
    expected = Image.fromarray(labels).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    assert np.array_equal(downsample_labels(torch.from_numpy(labels)[None], grid)[0], np.asarray(expected))


def test_where_maps_are_stretched() -> None:
    maps = torch.tensor([[[0.2, 0.4], [0.6, 0.2]], [[0.5, 0.5], [0.5, 0.5]]])
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True  # the upper two cells
    stretched = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    torch.testing.assert_close(renormalize_maps(maps, known, "everywhere")[0], stretched)
    torch.testing.assert_close(renormalize_maps(maps, known, "seed")[0], torch.tensor([[0.0, 0.5], [0.6, 0.2]]))
    assert torch.equal(renormalize_maps(maps, known, "nowhere"), maps)
    assert torch.equal(
        renormalize_maps(maps, known, "everywhere")[1], maps[1]
    )  # nothing to stretch, nothing divided by 0
