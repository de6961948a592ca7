"""LayerCAM, against its formulas worked by hand and with plain autograd, without a hook."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.data.images import read_image
from tagmask.data.transforms import normalize_images
from tagmask.errors import RecipeError
from tagmask.maps import ResponseMaps
from tagmask.methods.cam import response_maps
from tagmask.methods.layercam import LayerCam, StageMaps, activations
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tests.methods.contract import MakeContext, MethodContract


class TestLayerCam(MethodContract):
    method = LayerCam
    settings: ClassVar = {"scales": [1.0, 0.5], "inference_batch_size": 2}
    trains = False

    def test_it_runs_on_a_vision_transformer(self, make_context: MakeContext) -> None:
        context = make_context()
        classifier("test_vit", num_classes=3).save(context.folder.path / "vit")
        context = make_context("layercam", classifier=context.folder.path / "vit")
        LayerCam(**self.settings).run(context)
        maps = ResponseMaps.load(context.maps_path(context.images.samples[6])).maps
        assert maps.shape == (3, 10, 12)
        assert maps.max() > 0.99

    def test_a_stage_that_the_network_lacks(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        context = make_context(classifier=earlier["classifier"])
        with pytest.raises(RecipeError, match=r"'resnet18' has no stage -6: give stages from -5 .* to -1"):
            LayerCam(stages=(-1, -6)).run(context)


def classifier(name: str = "resnet18", num_classes: int = 4, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=8, options=options), tuple("abcd"[:num_classes])).eval()


def some_images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def layercam(net: Classifier, images: Tensor, *stages: int) -> Tensor:
    return StageMaps(net, LayerCam(stages=stages))(images)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "test_vit"])
def test_the_last_stage_by_hand(name: str) -> None:
    """With logits W · GAP(f), the gradient of logit k at f_d is W_kd / hw in every cell."""
    net, images = classifier(name).double(), some_images(2, 48, 64).double()
    with torch.no_grad():
        features = net.backbone(images)
        cells = features[0, 0].numel()
        weighed = torch.einsum("kd,bdhw->bkhw", net.weight.relu() / cells, features).relu()
    torch.testing.assert_close(layercam(net, images, -1), weighed * cells, rtol=1e-10, atol=0)


def by_autograd(net: Classifier, a: Tensor, features: Tensor, k: int, channel: int) -> Tensor:
    """ReLU(Σ_c ReLU(g_c) · A_c), with g the gradient of the summed (not mean) activation of class k."""
    (gradient,) = torch.autograd.grad(torch.einsum("bdhw,d->", features, net.weight[k]), a)
    return (gradient.clamp(min=0) * a).sum(channel).clamp(min=0).detach()


@pytest.mark.parametrize("stage", [-2, -3])
@pytest.mark.parametrize("k", [0, 3])
def test_an_earlier_stage_by_plain_autograd(stage: int, k: int) -> None:
    net, image = classifier().double(), some_images(1, 40, 56).double()
    resnet: Any = net.backbone.net
    layers = [
        resnet.conv1,
        resnet.bn1,
        resnet.act1,
        resnet.maxpool,
        *(resnet.get_submodule(f"layer{i}") for i in range(1, 5)),
    ]
    a = torch.nn.Sequential(*layers[: stage + 1])(image)
    features = torch.nn.Sequential(*layers[stage + 1 :])(a)
    expected = by_autograd(net, a, features, k, channel=1)
    torch.testing.assert_close(layercam(net, image, stage)[:, k], expected, rtol=1e-9, atol=1e-12)


def test_an_earlier_block_of_a_vision_transformer_by_plain_autograd() -> None:
    net, image = classifier("test_vit").double(), some_images(1, 48, 64).double()
    vit: Any = net.backbone.net
    levels = {"indices": [4], "output_fmt": "NLC", "intermediates_only": True, "return_prefix_tokens": True}
    [(cells, prefix)] = vit.forward_intermediates(image, **levels)
    a = torch.cat([prefix, cells], 1).detach().requires_grad_()
    tokens = vit.norm(vit.blocks[5](a))[:, 1:]
    expected = by_autograd(net, a, tokens.mT.unflatten(2, (3, 4)), 2, channel=2)[:, 1:].unflatten(1, (3, 4))
    torch.testing.assert_close(layercam(net, image, -2)[:, 2], expected, rtol=1e-9, atol=1e-12)


def test_a_network_with_channels_last_by_plain_autograd() -> None:
    net = classifier("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, img_size=(64, 96)).double()
    image = some_images(1, 64, 96).double()
    swin: Any = net.backbone.net
    a = swin.layers[2](swin.layers[1](swin.layers[0](swin.patch_embed(image))))  # [1, 4, 6, 96]
    features = swin.norm(swin.layers[3](a)).permute(0, 3, 1, 2)
    expected = by_autograd(net, a, features, 1, channel=3)
    torch.testing.assert_close(layercam(net, image, -2)[:, 1], expected, rtol=1e-9, atol=1e-12)


def test_stages_are_fused_by_their_maximum_the_earlier_ones_lifted() -> None:
    net, images = classifier("test_resnet").double(), some_images(2, 40, 56).double()
    net.backbone.net.layer4.register_forward_hook(lambda module, inputs, output: F.avg_pool2d(output, 2))
    fine, coarse = layercam(net, images, -2), layercam(net, images, -1)
    assert fine.shape[2:] != coarse.shape[2:]
    fine = torch.tanh(2 * fine / (fine.amax((2, 3), keepdim=True) + 1e-5))
    coarse = F.interpolate(coarse / (coarse.amax((2, 3), keepdim=True) + 1e-5), fine.shape[2:], mode="bilinear")
    torch.testing.assert_close(layercam(net, images, -1, -2), torch.maximum(fine, coarse))


def test_only_tagged_classes_are_looked_at_and_they_are_the_same() -> None:
    net, images = classifier("test_resnet"), some_images(3, 40, 56)
    look, tags = activations(net), [(2,), (), (4, 1)]
    views = torch.cat([images, images.flip(3)])
    everything, tagged = look(views), StageMaps(net, LayerCam())(views, tags)
    for i, ids in enumerate(tags * 2):
        wanted = [id_ - 1 for id_ in ids]
        torch.testing.assert_close(tagged[i, wanted], everything[i, wanted], rtol=1e-4, atol=1e-5)
        assert not np.delete(tagged[i].numpy(), wanted, axis=0).any()


def test_a_run_s_maps_are_those_of_all_classes(make_context: MakeContext, earlier: dict[str, Path]) -> None:
    """The run looks at tagged classes alone; class-conditional inference at all."""
    context = make_context(classifier=earlier["classifier"])
    LayerCam(scales=(1.0, 0.5), inference_batch_size=8).run(context)
    net, sample = Classifier.load(earlier["classifier"]), context.images.samples[6]
    pixels = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)[None]
    images = normalize_images(pixels, net.backbone.mean, net.backbone.std)
    with context.compute.autocast(net):
        [alone] = response_maps(activations(net), images, [sample.tags or ()], (1.0, 0.5))
    ours = ResponseMaps.load(context.folder.maps_path(sample.id)).maps
    np.testing.assert_allclose(ours, alone.maps, atol=0.05 if torch.cpu._is_avx512_bf16_supported() else 1e-3)


def test_in_inference_mode_and_bfloat16() -> None:
    net, images = classifier(), some_images(2, 40, 56)
    plain = activations(net)(images)
    with torch.inference_mode():
        view = images * 1.0  # a tensor of inference mode
        torch.testing.assert_close(activations(net)(view), plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = activations(net)(view)
    assert rounded.dtype == torch.float32
    assert not rounded.requires_grad
    assert (rounded - plain).abs().mean() < 0.02
    assert not any(parameter.requires_grad for parameter in net.parameters())  # theirs would cost memory and time


def test_from_several_threads() -> None:
    net = classifier("test_resnet")
    look, group_by_size = activations(net), [some_images(1 + i % 3, 32 + 8 * i, 40) for i in range(6)]
    alone = [look(batch) for batch in group_by_size]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(look, group_by_size * 3))
    for ours, theirs in zip(together, alone * 3, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_classifier_stays_as_it_is() -> None:
    net, images = classifier(), some_images(1, 40, 56)
    with torch.no_grad():
        before = net.activations(images)
        activations(net)(images)
        assert torch.equal(net.activations(images), before)


def test_recam_s_weights_are_used() -> None:
    net, images = classifier(), some_images(1, 40, 56)
    net.map_weight = torch.randn_like(net.weight)
    with torch.no_grad():
        expected = torch.einsum("kd,bdhw->bkhw", net.map_weight.relu(), net.backbone(images))
    torch.testing.assert_close(layercam(net, images, -1), expected)


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    net = classifier()
    net.weight.data[1] = -1
    [maps] = response_maps(StageMaps(net, LayerCam(stages=(-1,))), some_images(1, 40, 56), [(1, 2)])
    assert maps.maps[0].max() > 0.99
    assert not maps.maps[1].any()


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto", "test_vit"])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (45, 33)])
def test_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    [maps] = response_maps(activations(classifier(name)), some_images(1, *size), [(1, 3)])
    assert maps.size == size
    assert np.isfinite(maps.maps).all()
    assert 0 <= maps.maps.min() <= maps.maps.max() <= 1


@pytest.mark.parametrize("stages", [(0,), (-1, 2), (-7,)])
def test_stages_that_do_not_exist(stages: Sequence[int]) -> None:
    with pytest.raises(RecipeError, match="has no stage"):
        StageMaps(classifier("test_vit"), LayerCam(stages=tuple(stages)))


def test_a_network_without_feature_levels_has_its_last_stage() -> None:
    net = classifier()
    net.backbone.net.feature_info = []
    assert layercam(net, some_images(1, 32, 32), -1).shape == (1, 4, 4, 4)
    with pytest.raises(RecipeError, match=r"has no stage -2: give stages from -1"):
        layercam(net, some_images(1, 32, 32), -2)
