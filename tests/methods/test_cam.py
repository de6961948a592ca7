"""Test CAM: its maps against a plain loop, its loss against the formula, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tagmask.data.samples import Sample, TaggedImages
from tagmask.maps import ResponseMaps
from tagmask.methods.cam import Cam, CamTraining, response_maps
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.progress import Reporter
from tagmask.training import ParameterGroup
from tagmask.training_curves import read_history
from tests.methods.contract import TOY_CAM, MakeContext, MethodContract


class TestCam(MethodContract):
    method = Cam
    settings = TOY_CAM


class TestCamOnVit(MethodContract):
    method = Cam
    settings = {**TOY_CAM, "backbone": "vit_tiny_patch16_224", "options": {"depth": 2}}  # noqa: RUF012


def make_classifier(name: str = "resnet18", num_classes: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=8), tuple("abcd"[:num_classes])).eval()


def random_images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def plain_loop(net: Classifier, image: Tensor, tags: Sequence[int], scales: Sequence[float]) -> np.ndarray:
    """Compute the maps [K, h, w] of one image: one scale, one flip and one class at a time."""
    height, width = image.shape[1:]
    grid = (-(-height // 4), -(-width // 4))
    sums = {tag: torch.zeros(grid, dtype=image.dtype) for tag in tags}
    for scale in scales:
        size = (round(height * scale), round(width * scale))
        for flip in (False, True):
            view = F.interpolate(image[None], size, mode="bilinear", antialias=scale < 1) if scale != 1 else image[None]
            features = net.backbone(view.flip(3) if flip else view)[0]
            for tag in tags:
                activation = torch.relu(torch.einsum("dhw,d->hw", features, net.weight[tag - 1]))
                activation = activation.flip(1) if flip else activation
                sums[tag] += F.interpolate(activation[None, None], grid, mode="bilinear", align_corners=False)[0, 0]
    return np.stack([(m / (m.max() + 1e-5)).numpy() for m in sums.values()]) if tags else np.zeros((0, *grid))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(48, 64), (37, 50)])
def test_maps_equal_a_plain_loop(name: str, size: tuple[int, int]) -> None:
    net, images = make_classifier(name).double(), random_images(3, *size).double()  # so that rounding errors are small
    tags = [(1, 3), (), (2, 3, 4)]
    results = response_maps(net.activations, images, tags, (1.0, 0.5, 1.5))
    for image, ids, maps in zip(images, tags, results, strict=True):
        assert maps.classes.tolist() == list(ids)
        assert maps.size == size
        np.testing.assert_allclose(maps.maps, plain_loop(net, image, ids, (1.0, 0.5, 1.5)), atol=1e-5)


def test_maps_of_a_flipped_image_are_flipped() -> None:
    net, images = make_classifier(), random_images(2, 40, 56)
    [original] = response_maps(net.activations, images[:1], [(1, 2)])
    [flipped] = response_maps(net.activations, images[:1].flip(3), [(1, 2)])
    np.testing.assert_allclose(flipped.maps, original.maps[..., ::-1], atol=1e-5)
    assert np.abs(original.maps - original.maps[..., ::-1]).max() > 0.1


def test_maps_do_not_depend_on_the_batch() -> None:
    net, images = make_classifier(), random_images(4, 40, 56)
    tags = [(1,), (1, 2), (), (4,)]
    batch = response_maps(net.activations, images, tags)
    for i, maps in enumerate(batch):
        [alone] = response_maps(net.activations, images[i : i + 1], tags[i : i + 1])
        np.testing.assert_allclose(maps.maps, alone.maps, atol=1e-5)


def test_the_order_of_tags_does_not_matter() -> None:
    net, images = make_classifier(), random_images(1, 32, 32)
    [ascending] = response_maps(net.activations, images, [(1, 2, 4)])
    [unordered] = response_maps(net.activations, images, [(4, 1, 2)])
    assert unordered.classes.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(ascending.maps, unordered.maps)


def test_the_network_is_not_run_for_images_without_tags() -> None:
    def fail(images: Tensor) -> Tensor:
        raise AssertionError("the network was run")

    results = response_maps(fail, random_images(2, 33, 18), [(), ()])
    assert [maps.maps.shape for maps in results] == [(0, 9, 5)] * 2


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_an_image_of_one_pixel(name: str) -> None:
    net = make_classifier(name)
    [maps] = response_maps(net.activations, random_images(1, 1, 1), [(2,)])
    assert maps.maps.shape == (1, 1, 1)
    assert 0 <= maps.maps[0, 0, 0] <= 1
    assert maps.full_size().shape == (1, 1, 1)


def test_a_class_without_activation_has_an_empty_map() -> None:
    [maps] = response_maps(lambda images: torch.zeros(len(images), 2, 5, 5), random_images(1, 20, 20), [(1, 2)])
    assert not maps.maps.any()
    assert maps.label_map(0.3).sum() == 0


def test_the_maximum_of_each_map_is_one() -> None:
    """Each map is divided by (its maximum over all scales + 1e-5)."""
    [maps] = response_maps(make_classifier().activations, random_images(1, 64, 64), [(1, 2, 3)])
    np.testing.assert_allclose(maps.maps.max((1, 2)), 1, atol=1e-3)
    assert maps.maps.min() >= 0


def test_the_loss_equals_the_soft_margin_formula() -> None:
    net = make_classifier(num_classes=2)
    module = CamTraining(net, [ParameterGroup(net.parameters(), 0.1)], Cam(**TOY_CAM))
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    net.forward = lambda images: logits  # type: ignore[method-assign]
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    signs = 2 * tags - 1
    expected = torch.log1p(torch.exp(-signs * logits)).mean()  # −log σ(±x), averaged over classes and images
    batch = {"image": torch.zeros(2, 3, 4, 4), "tags": tags}
    torch.testing.assert_close(module.losses(batch)["loss"], expected)


def test_the_learning_rate_decays(make_context: MakeContext) -> None:
    context = make_context()
    Cam(**{**TOY_CAM, "epochs": 2, "lr": 0.02, "head_lr": 0.5}).run(context)
    history = read_history(context.folder)
    assert [entry["epoch"] for entry in history] == [1, 2]
    steps = 4  # 2 epochs of 2 batches; the rate after step s is lr · (1 − s / 4)^0.9
    assert [entry["lr"] for entry in history] == pytest.approx([0.02 * (1 - s / steps) ** 0.9 for s in (2, 4)])
    assert not (context.folder.path / "training").exists()


def test_zero_epochs_make_maps_with_the_initial_network(make_context: MakeContext) -> None:
    context = make_context()
    Cam(**{**TOY_CAM, "epochs": 0}).run(context)
    assert all(context.folder.maps_path(sample.id).exists() for sample in context.images.samples)


def test_weights_from_a_file(make_context: MakeContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the normalization, because a wrong one is not noticed otherwise."""
    torch.manual_seed(3)
    net = Backbone("test_resnet").net
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    context = replace(make_context(), reporter=Reporter.to_stderr())
    Cam(**{**TOY_CAM, "epochs": 0, "weights": str(tmp_path / "weights.pth")}).run(context)
    assert "weights.pth: images are normalized with mean (0.5, 0.5, 0.5)" in capsys.readouterr().err
    loaded = Classifier.load(context.folder.path).backbone.net.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in net.state_dict().items())


def test_images_of_any_size(make_context: MakeContext, tmp_path: Path) -> None:
    samples = []
    for i, size in enumerate([(1, 1), (1, 90), (90, 1), (40, 48), (33, 57), (40, 48)]):
        Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), str(tmp_path / f"{i}.png"), (1 + i % 2,), size=size))
    context = make_context(images=TaggedImages(("a", "b"), tuple(samples)))
    Cam(**TOY_CAM).run(context)
    for sample in samples:
        assert ResponseMaps.load(context.folder.maps_path(sample.id)).size == sample.size


def test_a_data_set_of_one_image_with_one_class(make_context: MakeContext, toy_images: TaggedImages) -> None:
    one_image = replace(toy_images.restrict(["red"]), samples=toy_images.restrict(["red"]).samples[:1])
    context = make_context(images=one_image)
    Cam(**TOY_CAM).run(context)
    assert ResponseMaps.load(context.folder.maps_path(one_image.samples[0].id)).classes.tolist() == [1]
