"""CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from tagmask.stage import StageContext
from tests.methods.contract import TOY_CAM, MethodContract


class TestCam(MethodContract):
    method = Cam
    settings = TOY_CAM


class TestCamOnAViT(MethodContract):
    method = Cam
    settings = {**TOY_CAM, "backbone": "vit_tiny_patch16_224", "options": {"depth": 2}}  # noqa: RUF012


def classifier(name: str = "resnet18", num_classes: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Backbone(name, output_stride=8), tuple("abcd"[:num_classes])).eval()


def some_images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def plain_loop(net: Classifier, image: Tensor, tags: Sequence[int], scales: Sequence[float]) -> np.ndarray:
    """One image, one scale, one flip, one class at a time, from methods.md's section 1: [K, h, w]."""
    height, width = image.shape[1:]
    grid = (-(-height // 4), -(-width // 4))
    sums = {tag: torch.zeros(grid, dtype=image.dtype) for tag in tags}
    for scale in scales:
        size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        for mirrored in (False, True):
            view = F.interpolate(image[None], size, mode="bilinear", antialias=scale < 1) if scale != 1 else image[None]
            features = net.backbone(view.flip(3) if mirrored else view)[0]
            for tag in tags:
                activation = torch.relu(torch.einsum("dhw,d->hw", features, net.weight[tag - 1]))
                activation = activation.flip(1) if mirrored else activation
                sums[tag] += F.interpolate(activation[None, None], grid, mode="bilinear", align_corners=False)[0, 0]
    return np.stack([(m / (m.max() + 1e-5)).numpy() for m in sums.values()]) if tags else np.zeros((0, *grid))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(48, 64), (37, 50)])
def test_maps_are_those_of_a_plain_loop(name: str, size: tuple[int, int]) -> None:
    net, images = classifier(name).double(), some_images(3, *size).double()  # so that rounding is no excuse
    tags = [(1, 3), (), (2, 3, 4)]
    found = response_maps(net.activations, images, tags, (1.0, 0.5, 1.5))
    for image, ids, maps in zip(images, tags, found, strict=True):
        assert maps.classes.tolist() == list(ids)
        assert maps.size == size
        np.testing.assert_allclose(maps.maps, plain_loop(net, image, ids, (1.0, 0.5, 1.5)), atol=1e-5)


def test_a_mirrored_image_has_mirrored_maps() -> None:
    net, images = classifier(), some_images(2, 40, 56)
    [straight] = response_maps(net.activations, images[:1], [(1, 2)])
    [mirrored] = response_maps(net.activations, images[:1].flip(3), [(1, 2)])
    np.testing.assert_allclose(mirrored.maps, straight.maps[..., ::-1], atol=1e-5)
    assert np.abs(straight.maps - straight.maps[..., ::-1]).max() > 0.1


def test_an_image_s_maps_do_not_depend_on_its_batch() -> None:
    net, images = classifier(), some_images(4, 40, 56)
    tags = [(1,), (1, 2), (), (4,)]
    together = response_maps(net.activations, images, tags)
    for i, maps in enumerate(together):
        [alone] = response_maps(net.activations, images[i : i + 1], tags[i : i + 1])
        np.testing.assert_allclose(maps.maps, alone.maps, atol=1e-5)


def test_the_order_of_tags_does_not_matter() -> None:
    net, images = classifier(), some_images(1, 32, 32)
    [up] = response_maps(net.activations, images, [(1, 2, 4)])
    [down] = response_maps(net.activations, images, [(4, 1, 2)])
    assert down.classes.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(up.maps, down.maps)


def test_images_without_tags_need_no_network() -> None:
    def never(images: Tensor) -> Tensor:
        raise AssertionError("nothing is to be computed")

    found = response_maps(never, some_images(2, 33, 18), [(), ()])
    assert [maps.maps.shape for maps in found] == [(0, 9, 5)] * 2


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_one_pixel_is_an_image(name: str) -> None:
    net = classifier(name)
    [maps] = response_maps(net.activations, some_images(1, 1, 1), [(2,)])
    assert maps.maps.shape == (1, 1, 1)
    assert 0 <= maps.maps[0, 0, 0] <= 1
    assert maps.full_size().shape == (1, 1, 1)


def test_a_class_active_nowhere_has_an_empty_map() -> None:
    [maps] = response_maps(lambda images: torch.zeros(len(images), 2, 5, 5), some_images(1, 20, 20), [(1, 2)])
    assert not maps.maps.any()
    assert maps.label_map(0.3).sum() == 0


def test_the_strongest_place_is_one() -> None:
    """Each map is divided by its own maximum, over all scales: it reaches 1, but for the 1e-5."""
    [maps] = response_maps(classifier().activations, some_images(1, 64, 64), [(1, 2, 3)])
    np.testing.assert_allclose(maps.maps.max((1, 2)), 1, atol=1e-3)
    assert maps.maps.min() >= 0


def test_the_loss_is_soft_margin_by_hand() -> None:
    net = classifier(num_classes=2)
    module = CamTraining(net, [(net.parameters(), 0.1)])
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    net.forward = lambda images: logits  # type: ignore[method-assign]
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    signs = 2 * tags - 1
    expected = torch.log1p(torch.exp(-signs * logits)).mean()  # −log σ(±x), over classes and images
    batch = {"image": torch.zeros(2, 3, 4, 4), "tags": tags}
    torch.testing.assert_close(module.loss(batch)["loss"], expected)


def test_learning_rates_of_backbone_and_head(make_context: Callable[..., StageContext]) -> None:
    context = make_context()
    Cam(**{**TOY_CAM, "epochs": 2, "lr": 0.02, "head_lr": 0.5}).run(context)
    from tagmask.training import read_history

    history = read_history(context.folder)
    assert [entry["epoch"] for entry in history] == [1, 2]
    steps = 4  # 8 images in batches of 4, twice; the rate after step s is lr · (1 − s / 4)^0.9
    assert [entry["lr"] for entry in history] == pytest.approx([0.02 * (1 - s / steps) ** 0.9 for s in (2, 4)])
    assert not (context.folder.path / "training").exists()


def test_no_epochs_are_a_random_network(make_context: Callable[..., StageContext]) -> None:
    context = make_context()
    Cam(**{**TOY_CAM, "epochs": 0}).run(context)
    assert all(context.folder.maps_path(sample.id).exists() for sample in context.images.samples)


def test_weights_of_one_s_own(make_context: Callable[..., StageContext], tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Backbone("resnet18").net
    torch.save(net.state_dict(), tmp_path / "own.pth")
    context = make_context()
    Cam(**{**TOY_CAM, "epochs": 0, "weights": str(tmp_path / "own.pth")}).run(context)
    loaded = Classifier.load(context.folder).backbone.net.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in net.state_dict().items())


def test_images_of_all_sizes(make_context: Callable[..., StageContext], tmp_path: Path) -> None:
    samples = []
    for i, size in enumerate([(1, 1), (1, 90), (90, 1), (40, 48), (33, 57), (40, 48)]):
        Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), str(tmp_path / f"{i}.png"), (1 + i % 2,), size=size))
    context = make_context(images=TaggedImages(("a", "b"), tuple(samples)))
    Cam(**TOY_CAM).run(context)
    for sample in samples:
        assert ResponseMaps.load(context.folder.maps_path(sample.id)).size == sample.size


def test_one_image_of_one_class(make_context: Callable[..., StageContext], toy_images: TaggedImages) -> None:
    one = replace(toy_images.restrict(["red"]), samples=toy_images.restrict(["red"]).samples[:1])
    context = make_context(images=one)
    Cam(**TOY_CAM).run(context)
    assert ResponseMaps.load(context.maps_path(one.samples[0])).classes.tolist() == [1]
