"""Test LayerCAM against its formulas, computed with plain autograd and without hooks."""

from __future__ import annotations

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
from tagmask.methods.layercam import LayerCam, LayerMaps, activations
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tests.methods.contract import MakeContext, MethodContract


class TestLayerCam(MethodContract):
    method = LayerCam
    settings: ClassVar = {"scales": [1.0, 0.5], "inference_batch_size": 2}
    trains = False

    def test_it_runs_on_a_vision_transformer(self, make_context: MakeContext) -> None:
        context = make_context()
        make_classifier("test_vit", num_classes=3).save(context.folder.path / "vit")
        context = make_context("layercam", classifier=context.folder.path / "vit")
        LayerCam(**self.settings).run(context)
        maps = ResponseMaps.load(context.folder.maps_path("6")).maps
        assert maps.shape == (3, 10, 12)
        assert maps.max() > 0.99

    def test_a_missing_layer_is_an_error(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        context = make_context(classifier=earlier_stages["classifier"])
        with pytest.raises(RecipeError, match=r"'test_resnet' has no layer -6: give layers from -5 .* to -1"):
            LayerCam(layers=(-1, -6)).run(context)


def make_classifier(name: str = "resnet18", num_classes: int = 4, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=8, options=options), tuple("abcd"[:num_classes])).eval()


def random_images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def layercam(net: Classifier, images: Tensor, *layers: int) -> Tensor:
    return LayerMaps(net, LayerCam(layers=layers))(images)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "test_vit"])
def test_the_last_layer_equals_the_formula(name: str) -> None:
    """With logits W · GAP(f), the gradient of logit k at f_d is W_kd / hw in every cell."""
    net, images = make_classifier(name).double(), random_images(2, 48, 64).double()
    with torch.no_grad():
        features = net.backbone(images)
        cells = features[0, 0].numel()
        weighted = torch.einsum("kd,bdhw->bkhw", net.weight.relu() / cells, features).relu()
    torch.testing.assert_close(layercam(net, images, -1), weighted * cells, rtol=1e-10, atol=0)


def layer_map(net: Classifier, a: Tensor, features: Tensor, k: int, channel_dim: int) -> Tensor:
    """Compute ReLU(Σ_c ReLU(g_c) · A_c) with g the gradient of the sum (not mean) of the activations of class k."""
    (gradient,) = torch.autograd.grad(torch.einsum("bdhw,d->", features, net.weight[k]), a)
    return (gradient.clamp(min=0) * a).sum(channel_dim).clamp(min=0).detach()


@pytest.mark.parametrize("layer", [-2, -3])
@pytest.mark.parametrize("k", [0, 3])
def test_an_earlier_layer_equals_plain_autograd(layer: int, k: int) -> None:
    net, image = make_classifier().double(), random_images(1, 40, 56).double()
    resnet: Any = net.backbone.net
    stem = [resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool]
    modules = [*stem, *(resnet.get_submodule(f"layer{i}") for i in range(1, 5))]
    a = torch.nn.Sequential(*modules[: layer + 1])(image)
    features = torch.nn.Sequential(*modules[layer + 1 :])(a)
    expected = layer_map(net, a, features, k, channel_dim=1)
    torch.testing.assert_close(layercam(net, image, layer)[:, k], expected, rtol=1e-9, atol=1e-12)


def test_an_earlier_block_of_a_vit_equals_plain_autograd() -> None:
    net, image = make_classifier("test_vit").double(), random_images(1, 48, 64).double()
    vit: Any = net.backbone.net
    levels = {"indices": [4], "output_fmt": "NLC", "intermediates_only": True, "return_prefix_tokens": True}
    [(cells, prefix)] = vit.forward_intermediates(image, **levels)
    a = torch.cat([prefix, cells], 1).detach().requires_grad_()
    tokens = vit.norm(vit.blocks[5](a))[:, 1:]
    expected = layer_map(net, a, tokens.mT.unflatten(2, (3, 4)), 2, channel_dim=2)[:, 1:].unflatten(1, (3, 4))
    torch.testing.assert_close(layercam(net, image, -2)[:, 2], expected, rtol=1e-9, atol=1e-12)


def test_a_network_with_channels_last_equals_plain_autograd() -> None:
    net = make_classifier("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, img_size=(64, 96)).double()
    image = random_images(1, 64, 96).double()
    swin: Any = net.backbone.net
    a = swin.layers[2](swin.layers[1](swin.layers[0](swin.patch_embed(image))))  # [1, 4, 6, 96]
    features = swin.norm(swin.layers[3](a)).permute(0, 3, 1, 2)
    expected = layer_map(net, a, features, 1, channel_dim=3)
    torch.testing.assert_close(layercam(net, image, -2)[:, 1], expected, rtol=1e-9, atol=1e-12)


def test_layers_are_fused_by_their_maximum_after_tanh() -> None:
    net, images = make_classifier("test_resnet").double(), random_images(2, 40, 56).double()
    net.backbone.net.layer4.register_forward_hook(lambda module, inputs, output: F.avg_pool2d(output, 2))
    fine, coarse = layercam(net, images, -2), layercam(net, images, -1)
    assert fine.shape[2:] != coarse.shape[2:]
    fine = torch.tanh(2 * fine / (fine.amax((2, 3), keepdim=True) + 1e-5))
    coarse = F.interpolate(coarse / (coarse.amax((2, 3), keepdim=True) + 1e-5), fine.shape[2:], mode="bilinear")
    torch.testing.assert_close(layercam(net, images, -1, -2), torch.maximum(fine, coarse))


def test_with_tags_only_the_maps_of_tagged_classes_are_computed() -> None:
    net, images = make_classifier("test_resnet"), random_images(3, 40, 56)
    tags: list[tuple[int, ...]] = [(2,), (), (4, 1)]
    views = torch.cat([images, images.flip(3)])
    all_classes, tagged = activations(net)(views), LayerMaps(net, LayerCam())(views, tags)
    for i, ids in enumerate(tags * 2):
        channels = [class_id - 1 for class_id in ids]
        torch.testing.assert_close(tagged[i, channels], all_classes[i, channels], rtol=1e-4, atol=1e-5)
        assert not np.delete(tagged[i].numpy(), channels, axis=0).any()


def test_the_stage_and_activations_give_the_same_maps(
    make_context: MakeContext, earlier_stages: dict[str, Path]
) -> None:
    """The stage computes the maps of the tagged classes, `activations` (for infercam) those of all classes."""
    context = make_context(classifier=earlier_stages["classifier"])
    LayerCam(scales=(1.0, 0.5), inference_batch_size=8).run(context)
    net, sample = Classifier.load(earlier_stages["classifier"]), context.images.samples[6]
    pixels = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)[None]
    images = normalize_images(pixels, net.backbone.mean, net.backbone.std)
    with context.compute.autocast(net):
        [expected] = response_maps(activations(net), images, [sample.tags or ()], (1.0, 0.5))
    maps = ResponseMaps.load(context.folder.maps_path(sample.id)).maps
    np.testing.assert_allclose(maps, expected.maps, atol=0.05 if torch.cpu._is_avx512_bf16_supported() else 1e-3)


def test_maps_in_inference_mode_and_in_bfloat16() -> None:
    net, images = make_classifier(), random_images(2, 40, 56)
    plain = activations(net)(images)
    with torch.inference_mode():
        view = images * 1.0  # a tensor of inference mode
        torch.testing.assert_close(activations(net)(view), plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = activations(net)(view)
    assert rounded.dtype == torch.float32
    assert not rounded.requires_grad
    assert (rounded - plain).abs().mean() < 0.02
    assert not any(
        parameter.requires_grad for parameter in net.parameters()
    )  # their gradients would cost memory and time


def test_activations_can_be_called_from_several_threads() -> None:
    layer_maps = activations(make_classifier("test_resnet"))
    batches = [random_images(1 + i % 3, 32 + 8 * i, 40) for i in range(6)]
    expected = [layer_maps(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(layer_maps, batches * 3))
    for maps, expected_maps in zip(results, expected * 3, strict=True):
        torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-4)


def test_the_classifier_is_not_changed() -> None:
    net, images = make_classifier(), random_images(1, 40, 56)
    with torch.no_grad():
        before = net.activations(images)
        activations(net)(images)
        assert torch.equal(net.activations(images), before)


def test_the_map_weights_of_recam_are_used() -> None:
    net, images = make_classifier(), random_images(1, 40, 56)
    net.map_weight = torch.randn_like(net.weight)
    with torch.no_grad():
        expected = torch.einsum("kd,bdhw->bkhw", net.map_weight.relu(), net.backbone(images))
    torch.testing.assert_close(layercam(net, images, -1), expected)


def test_a_class_with_negative_weights_has_an_empty_map() -> None:
    net = make_classifier()
    net.weight.data[1] = -1
    [maps] = response_maps(LayerMaps(net, LayerCam(layers=(-1,))), random_images(1, 40, 56), [(1, 2)])
    assert maps.maps[0].max() > 0.99
    assert not maps.maps[1].any()


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto", "test_vit"])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (45, 33)])
def test_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    [maps] = response_maps(activations(make_classifier(name)), random_images(1, *size), [(1, 3)])
    assert maps.size == size
    assert np.isfinite(maps.maps).all()
    assert 0 <= maps.maps.min() <= maps.maps.max() <= 1


@pytest.mark.parametrize("layers", [(0,), (-1, 2), (-7,)])
def test_layers_that_do_not_exist(layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="has no layer"):
        LayerMaps(make_classifier("test_vit"), LayerCam(layers=layers))


def test_a_network_without_feature_levels_has_only_its_last_layer() -> None:
    net = make_classifier()
    net.backbone.net.feature_info = []
    assert layercam(net, random_images(1, 32, 32), -1).shape == (1, 4, 4, 4)
    with pytest.raises(RecipeError, match=r"has no layer -2: give layers from -1"):
        layercam(net, random_images(1, 32, 32), -2)
