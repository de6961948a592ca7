"""`cam` with a frozen backbone: only the weights of the classes are learned, on features that are kept."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tagmask.data.loading import multi_hot
from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.methods import _frozen
from tagmask.methods._frozen import pooled_features
from tagmask.methods.amn import Amn
from tagmask.methods.cam import Cam
from tagmask.methods.recam import ReCam
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.training_curves import read_history
from tests.methods.contract import TOY_CAM, MakeContext, MethodContract

FROZEN: dict[str, Any] = {**TOY_CAM, "frozen_stride": "all", "inference_batch_size": 2}


class TestFrozenCam(MethodContract):
    method = Cam
    settings: ClassVar = FROZEN


class TestFrozenVit(MethodContract):
    method = Cam
    settings: ClassVar = {**FROZEN, "backbone": "test_vit"}


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_backbone_does_not_change(make_context: MakeContext, toy_images: TaggedImages, backbone: str) -> None:
    context = make_context()
    settings = Cam(**{**FROZEN, "backbone": backbone})
    settings.train(context)
    torch.manual_seed(context.seed)
    initial = Backbone(backbone, "none", 8).state_dict()
    trained = Classifier.load(context.folder.path).backbone.state_dict()
    assert initial.keys() == trained.keys()
    assert all(torch.equal(initial[name], trained[name]) for name in initial)


def test_the_loss_is_that_of_the_classifier_itself(make_context: MakeContext, toy_images: TaggedImages) -> None:
    """The loss in the history is that of logits which the saved classifier computes from the images of all views."""
    context = make_context()
    settings = Cam(**FROZEN, weight_decay=0.001)
    settings.train(context)
    classifier = Classifier.load(context.folder.path)
    losses = []
    with torch.inference_mode():
        for sample in toy_images.samples:
            pixels = torch.from_numpy(sample.read_image()).permute(2, 0, 1)[None]
            images = normalize_images(pixels, classifier.backbone.mean, classifier.backbone.std)
            views = pooled_features(classifier.backbone, images, settings.scales)[0]
            targets = multi_hot(sample.tags, len(toy_images.classes)).expand(len(views), -1)
            losses.append(F.multilabel_soft_margin_loss(views @ classifier.weight.T, targets))
        loss = torch.stack(losses).mean() + settings.weight_decay / 2 * (classifier.weight**2).sum()
    assert read_history(context.folder)[-1]["loss"] == pytest.approx(float(loss), rel=2e-3)  # features are float16


def test_the_views_are_scales_and_flips(toy_images: TaggedImages) -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", "none", 8).eval()
    images = torch.randn(2, 3, 40, 48)
    pooled = pooled_features(backbone, images, (1.0, 0.5))
    assert pooled.shape == (2, 4, backbone.channels)
    with torch.inference_mode():
        torch.testing.assert_close(pooled[:, 0], backbone(images).mean((2, 3)))
        torch.testing.assert_close(pooled[:, 1], backbone(images.flip(3)).mean((2, 3)))


def test_features_that_exist_are_not_computed_again(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context()
    settings, backbone = Cam(**FROZEN), Backbone("test_resnet", "none", 8).eval()
    folder = context.folder.path / "training" / "features"
    _frozen.write_missing_features(backbone, folder, context, settings)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(contents) == len(context.images)
    kept, *removed = contents
    for path in removed:
        path.unlink()
    time = kept.stat().st_mtime_ns
    _frozen.write_missing_features(backbone, folder, context, settings)
    assert {path: path.read_bytes() for path in folder.iterdir()} == contents
    assert kept.stat().st_mtime_ns == time


def test_the_kept_features_are_removed(make_context: MakeContext) -> None:
    context = make_context()
    Cam(**FROZEN).run(context)
    assert not (context.folder.path / "training").exists()


@pytest.mark.parametrize("method", [Amn, ReCam])
def test_other_methods_freeze_the_whole_backbone(
    make_context: MakeContext, earlier_stages: dict[str, Any], method: type[Amn] | type[ReCam]
) -> None:
    before = Classifier.load(earlier_stages["classifier"]).backbone.state_dict()
    settings = method(frozen_stride="all", epochs=1, batch_size=4, crop_size=32, lr=0.01, head_lr=0.01, scales=(1.0,))
    context = make_context(**{kind: earlier_stages[kind] for kind in settings.required_inputs()})
    settings.run(context)
    if isinstance(settings, ReCam):
        after = Classifier.load(context.folder.path).backbone.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
