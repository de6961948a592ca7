"""Test ReCAM against values of the public code (goldens/recam.npz), and its edge cases."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.maps import ResponseMaps
from tagmask.methods.recam import ReCam, ReCamNetwork, ReCamTraining, compute_class_features, softmax_losses
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tests.conftest import GOLDENS
from tests.methods.contract import TOY_CAM, MakeContext, MethodContract

TOY = {
    **{k: TOY_CAM[k] for k in ("freeze_norm", "epochs", "batch_size", "crop_size", "long_side_range", "scales")},
    "lr": 0.01, "head_lr": 0.1,
}  # fmt: skip


class Features(nn.Module):
    """The backbone of the goldens: the identity."""

    channels = 16

    def forward(self, images: Tensor) -> Tensor:
        return images


def golden() -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDENS / "recam.npz").items()}


def golden_network(g: dict[str, Tensor]) -> ReCamNetwork:
    network = ReCamNetwork(Classifier(cast(Backbone, Features()), tuple("abcde")))
    network.classifier.weight.data = g["classifier"]
    network.second_weight.data = g["second_classifier"]
    return network


class TestReCam(MethodContract):
    method = ReCam
    settings = TOY

    def test_maps_are_made_with_the_product_of_both_weights(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = make_context(classifier=earlier_stages["classifier"])
        ReCam(**{**TOY, "epochs": 0}).run(context)  # so that V has its initial values, within ±1/√D
        before, after = Classifier.load(earlier_stages["classifier"]), Classifier.load(context.folder.path)
        assert torch.equal(after.weight, before.weight)
        second = (after.map_weight / after.weight).detach()
        bound = after.weight.shape[1] ** -0.5
        assert second.abs().max() <= bound * 1.001
        assert float(second.std()) == pytest.approx(bound / 3**0.5, rel=0.05)

    def test_inference_stride_does_not_change_the_training(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        plain = self.run(make_context, earlier_stages, "plain")
        context = make_context(classifier=earlier_stages["classifier"])
        ReCam(**TOY, inference_stride=32).run(context)
        changed, expected = Classifier.load(context.folder.path), Classifier.load(plain.folder.path)
        assert changed.backbone.config == expected.backbone.config
        assert torch.equal(changed.map_weight, expected.map_weight)

    def test_it_runs_on_a_vision_transformer(self, make_context: MakeContext) -> None:
        torch.manual_seed(0)
        context = make_context()
        Classifier(Backbone("test_vit"), context.images.classes).save(context.folder.path / "vit")
        context = make_context("recam", classifier=context.folder.path / "vit")
        ReCam(**{**TOY, "crop_size": 48}).run(context)
        assert ResponseMaps.load(context.folder.maps_path("6")).maps.shape == (3, 10, 12)

    def test_it_can_follow_another_recam_stage(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        first = self.run(make_context, earlier_stages, "first")
        second = self.run(make_context, {"classifier": first.folder.path}, "second")
        weights = [Classifier.load(context.folder.path).map_weight for context in (first, second)]
        assert not torch.equal(*weights)


def test_values_and_gradients_equal_the_goldens() -> None:
    g = golden()
    network = golden_network(g)
    features = g["features"].requires_grad_()
    logits, class_logits = network(features)
    class_features, masks = compute_class_features(features, network.classifier.weight)
    bce, sce = F.multilabel_soft_margin_loss(logits, g["tags"]), softmax_losses(class_logits, g["tags"]).mean()
    (bce + sce).backward()
    pairs = {
        "logits": logits,
        "class_features": class_features,
        "normalised_cams": masks,
        "loss_bce": bce,
        "loss_sce": sce,
        "grad_features_of_sum": features.grad,
        "grad_classifier_of_sum": network.classifier.weight.grad,
        "grad_second_classifier_of_sum": network.second_weight.grad,
    }
    for name, value in pairs.items():
        torch.testing.assert_close(value, g[name], rtol=1e-5, atol=1e-5 * float(g[name].abs().max()), msg=name)


def test_maps_equal_the_golden() -> None:
    g = golden()
    with torch.no_grad():
        activations = golden_network(g).combined_classifier().activations(g["features"])
    summed = activations[0] + activations[1].flip(2)
    torch.testing.assert_close(summed, g["map_of_image0_and_mirrored_image1"], rtol=1e-5, atol=1e-5)


def test_keep_sign_uses_the_positive_weights_of_the_first_classifier() -> None:
    g = golden()
    classifier = golden_network(g).combined_classifier(keep_sign=True)
    torch.testing.assert_close(classifier.map_weight, g["second_classifier"] * g["classifier"].clamp(min=0))
    assert torch.equal(classifier.weight, g["classifier"])


def test_map_weights() -> None:
    g = golden()
    expected = {
        "product": g["second_classifier"] * g["classifier"], "first": g["classifier"], "second": g["second_classifier"],
    }  # fmt: skip
    for name, weights in expected.items():
        torch.testing.assert_close(
            golden_network(g).combined_classifier(ReCam(map_weights=name).map_weights).map_weight, weights
        )


def test_the_loss_is_the_sum_weighted_by_lambda() -> None:
    g = golden()
    training = ReCamTraining(golden_network(g), [], ReCam(sce_weight=0.1))
    loss = training.losses({"image": g["features"], "tags": g["tags"]})["loss"]
    assert loss.item() == pytest.approx(float(g["loss_bce"]) + 0.1 * float(g["loss_sce"]), rel=1e-5)


def test_an_image_without_tags_adds_nothing_but_counts() -> None:
    logits = torch.randn(2, 4, 4)
    one = softmax_losses(logits[:1], torch.tensor([[0.0, 1, 1, 0]])).mean()
    both = softmax_losses(logits, torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 0]])).mean()
    expected = (F.cross_entropy(logits[0, 1], torch.tensor(1)) + F.cross_entropy(logits[0, 2], torch.tensor(2))) / 2
    torch.testing.assert_close(one, expected)
    torch.testing.assert_close(both, expected / 2)
    assert float(softmax_losses(logits, torch.zeros(2, 4)).sum()) == 0


def test_gradients_are_finite_if_a_class_has_no_activation() -> None:
    features = torch.rand(1, 3, 4, 4, requires_grad=True)
    weight = torch.tensor([[-1.0, -1, -1], [1, 1, 1]], requires_grad=True)
    class_features, masks = compute_class_features(features, weight)
    assert masks[0, 0].abs().max().item() == 0
    loss = softmax_losses(class_features @ torch.randn(3, 2), torch.ones(1, 2)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for tensor in (loss, features.grad, weight.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


def test_both_losses_reach_the_whole_backbone(earlier_stages: dict[str, Path]) -> None:
    torch.manual_seed(0)
    network = ReCamNetwork(Classifier.load(earlier_stages["classifier"]))
    training = ReCamTraining(network, [], ReCam())
    batch = {"image": torch.randn(2, 3, 48, 48), "tags": torch.tensor([[1.0, 0, 1], [0, 1, 0]])}
    for name in ("bce", "sce"):
        training.zero_grad()
        training.losses(batch)[name].backward()  # type: ignore[no-untyped-call]
        reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached >= {n for n, _ in network.classifier.named_parameters(prefix="classifier")}
        assert ("second_weight" in reached) == (name == "sce")
