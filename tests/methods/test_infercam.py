"""Test class-conditional inference against a plain loop, its rules, and two errors of the public code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from benchmarks.infercam import on_grid, plain_loop
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.maps import ResponseMaps
from tagmask.method_modules import import_method_module
from tagmask.methods.infercam import BUFFERS, InferCam, Piece, infercam_maps, quadrants
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.recipe import load_recipe
from tests.methods.contract import MakeContext, MethodContract


class TestInferCam(MethodContract):
    method = InferCam
    settings: ClassVar = {"scales": [1.0, 0.5], "inference_batch_size": 2}
    trains = False


class TestInferCamWithLayerCam(MethodContract):
    method = InferCam
    settings: ClassVar = {"scales": [1.0], "iterations": 2, "inference_batch_size": 2, "base_method": "layercam"}
    trains = False


@pytest.mark.parametrize(
    ("base_method", "sentence"),
    [
        ("recam", r"base_method: 'recam' defines no activations\(classifier\); leave it out"),
        ("no.such", "method 'no.such' does not exist"),
        ("", "method '' does not exist"),
        (".layercam", "method '.layercam' does not exist"),
    ],
)
def test_a_module_without_activations_is_an_error(base_method: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("infercam", [f"infercam.base_method={base_method!r}"])


def test_activations_from_a_module_outside_of_the_package(
    make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every piece goes through the module's `activations(classifier)`."""
    (tmp_path / "all_ones.py").write_text("def activations(net): return lambda x: 0 * net.activations(x) + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_method_module("all_ones")
    context = make_context(classifier=earlier_stages["classifier"])
    InferCam(base_method="all_ones", scales=(1.0,)).run(context)
    for sample in context.images.samples:
        np.testing.assert_allclose(ResponseMaps.load(context.folder.maps_path(sample.id)).maps, 1, atol=1e-3)


class Recorder:
    """A network at stride 1 whose activations are the colors. It records its inputs."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.inputs.append(images.clone())
        return images.relu()


def noise_with_square(height: int = 40, width: int = 60) -> Tensor:
    """Return noise below 0 with a red square of value 1 at the upper left, the only activation of class 1."""
    image = -torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) - 0.1
    image[:, 0, 5:15, 8:20] = 1
    return image


def recorded_maps(image: Tensor, tags: tuple[int, ...] = (1,), **settings: Any) -> tuple[np.ndarray, list[Tensor]]:
    """Return the maps of an image at one scale, and the inputs of the network."""
    network = Recorder()
    (maps,) = infercam_maps(network, image, [tags], InferCam(scales=(1.0,), **settings))
    return maps.maps, network.inputs


@pytest.mark.parametrize("stride", [8, 16])
def test_maps_equal_a_plain_loop(stride: int) -> None:
    torch.manual_seed(3)
    classifier = Classifier(Backbone("test_resnet", "none", stride), tuple("abcd")).eval()
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 9, 7), (72, 56), mode="bilinear")
    tags = [(2,), (1, 4), (1, 2, 3), ()]
    results = infercam_maps(classifier.activations, images, tags, InferCam(scales=(1.0, 0.5)))
    for image, ids, maps in zip(images[:3], tags, results, strict=False):
        expected = on_grid(plain_loop(classifier.activations, image, ids, (1.0, 0.5)))
        np.testing.assert_allclose(maps.maps, expected, atol=1e-4)
    assert results[3].maps.shape == (0, 18, 14)


def test_maps_do_not_depend_on_batch_size_and_threads() -> None:
    torch.manual_seed(0)
    classifier = Classifier(Backbone("test_resnet", "none", 8), tuple("abc")).eval()
    images = torch.randn(3, 3, 40, 48)
    tags = [(1,), (1, 2, 3), (2, 3)]
    torch.set_num_threads(2)
    batch = infercam_maps(classifier.activations, images, tags, InferCam(scales=(1.0, 0.5)))
    one_by_one = InferCam(scales=(1.0, 0.5), inference_batch_size=1)
    torch.set_num_threads(1)  # the fixture `_threads` restores it
    alone = [infercam_maps(classifier.activations, images[[i]], [tags[i]], one_by_one)[0] for i in range(3)]
    for a, b in zip(batch, alone, strict=True):
        np.testing.assert_allclose(a.maps, b.maps, atol=1e-4)


def test_quadrants_of_one_class() -> None:
    maps = torch.zeros(1, 100, 120)
    maps[0, 40, 70] = 0.3
    assert quadrants(maps, 10) == [(0, 50, 0, 80), (0, 50, 60, 120), (30, 100, 0, 80), (30, 100, 60, 120)]


def test_quadrants_of_two_classes_include_both_centers() -> None:
    maps = torch.zeros(2, 100, 120)
    maps[0, 40, 70] = 1
    maps[1, 60, 50] = 1  # rows 40 and 60, columns 50 and 70, buffer 20
    assert quadrants(maps, 20) == [(0, 80, 0, 90), (0, 80, 30, 120), (20, 100, 0, 90), (20, 100, 30, 120)]


def test_quadrants_are_clamped_to_the_image() -> None:
    maps = torch.zeros(1, 100, 120)
    maps[0, 4, 118] = 1  # in the public code, −6 counts from the far edge: only rows 94 to 100
    assert quadrants(maps, 10) == [(0, 14, 0, 120), (0, 14, 108, 120), (0, 100, 0, 120), (0, 100, 108, 120)]
    assert quadrants(torch.zeros(2, 8, 8), 20) == [(0, 8, 0, 8)]  # four equal quadrants are one piece


def test_the_found_area_is_flipped_with_the_view() -> None:
    """The public code paints over the same columns in the flipped view."""
    image = noise_with_square()
    _, inputs = recorded_maps(image, split=False)
    plain, flipped = inputs[1].chunk(2)
    torch.testing.assert_close(flipped, plain.flip(3))
    assert (plain[0, :, 5:15, 8:20] < 0).all()
    assert (flipped[0, :, 5:15, 40:52] < 0).all()


def test_the_found_area_has_the_mean_color_of_its_piece_at_every_scale() -> None:
    image = noise_with_square()
    network = Recorder()
    infercam_maps(network, image, [(1,)], InferCam(scales=(1.0, 0.5), found_threshold=0.7))
    mean = image[0, :, :19, :23].mean((1, 2))  # of the upper left quadrant
    full_size = [x for x in network.inputs if x.shape[2:] == (19, 23)]
    torch.testing.assert_close(full_size[1][0, :, 8, 12], mean)
    half_size = [x for x in network.inputs if x.shape[2:] == (10, 12)]
    torch.testing.assert_close(half_size[1][0, :, 5, 7], mean)


def test_tokens_that_cover_an_image_of_any_size_stay_in_place() -> None:
    """A ViT resizes an image of 130 pixels to 8 whole patches of 16, and its tokens cover all of it."""
    position = torch.arange(130.0)
    image = torch.exp(-((position - 99.5) ** 2) / 200).expand(1, 3, 130, 130)
    tokens = partial(torch.nn.functional.interpolate, size=(8, 8), mode="bilinear", antialias=True)
    (maps,) = infercam_maps(tokens, image, [(1,)], InferCam(scales=(1.0,), split=False, iterations=1))
    weights = maps.full_size()[0].sum(0) - maps.full_size()[0].sum(0).min()
    assert float((weights * position.numpy()).sum() / weights.sum()) == pytest.approx(99.5, abs=1)


def test_later_iterations_find_weaker_areas_and_keep_the_earlier_ones() -> None:
    image = noise_with_square()
    image[:, 0, 25:33, 40:50] = 0.3
    first, _ = recorded_maps(image, split=False, iterations=1)
    last, inputs = recorded_maps(image, split=False, iterations=5)
    assert first[0, 2, 3] == pytest.approx(1, abs=1e-4)
    assert first[0, 7, 11] == pytest.approx(0.3, abs=1e-4)
    assert last[0, [2, 7], [3, 11]] == pytest.approx([1, 1], abs=1e-4)
    assert len(inputs) == 3  # the iterations find the square, the weaker square, and nothing


def test_iterations_end_when_less_than_min_growth_is_newly_found() -> None:
    image = noise_with_square()  # the square has 120 of 2,400 pixels, 5 %
    assert len(recorded_maps(image, split=False, min_growth=0.06)[1]) == 1
    assert len(recorded_maps(image, split=False, min_growth=0.05)[1]) == 2
    assert len(recorded_maps(image, split=False, min_growth=0.0)[1]) == 5
    assert len(recorded_maps(image, split=False, min_growth=0.0, iterations=3)[1]) == 3


def test_a_complete_piece_leaves_the_batch() -> None:
    torch.set_num_threads(1)
    network = Recorder()
    empty = torch.full((1, 3, 40, 60), -1.0)
    settings = InferCam(scales=(1.0,), split=False)
    infercam_maps(network, torch.cat([noise_with_square(), empty]), [(1,), (1,)], settings)
    assert [len(x) for x in network.inputs] == [4, 2]  # images and their horizontal flips


def test_images_with_three_tags_are_not_divided_and_pieces_can_be_enlarged() -> None:
    assert {x.shape[2:] for x in recorded_maps(noise_with_square(), (1, 2, 3))[1]} == {(40, 60)}
    assert {x.shape[2:] for x in recorded_maps(noise_with_square(), (1, 2, 3), enlarge=1.5)[1]} == {(60, 90)}
    assert recorded_maps(noise_with_square(), (1, 2, 3), enlarge=1.5)[0].shape == (3, 10, 15)


def test_pieces_are_merged_by_their_maximum() -> None:
    maps, inputs = recorded_maps(noise_with_square(), iterations=1)
    assert len(inputs) == 5  # the whole image for the center of mass, then four quadrants
    inside = np.zeros((10, 15), bool)
    inside[1:4, 2:5] = True
    assert maps[0][2, 3] == pytest.approx(1, abs=1e-4)
    assert maps[0][~inside].max() == 0


def test_images_of_any_size() -> None:
    for size in [(1, 1), (3, 30), (41, 33)]:
        maps, _ = recorded_maps(torch.randn(1, 3, *size), (1, 2))
        assert maps.shape == (2, -(-size[0] // 4), -(-size[1] // 4))
        assert np.isfinite(maps).all()
    assert recorded_maps(-torch.ones(1, 3, 20, 20))[0].max() == 0


def test_maps_are_sampled_at_the_centers_of_cells() -> None:
    ramp = torch.arange(40.0)[None, :, None].expand(1, 40, 8)

    def network(images: Tensor) -> Tensor:
        return ramp[None].expand(len(images), 1, 40, 8) if images.shape[2] == 40 else images

    settings = InferCam(scales=(1.0,), split=False, iterations=1)
    (maps,) = infercam_maps(network, torch.zeros(1, 3, 40, 8), [(1,)], settings)
    np.testing.assert_allclose(maps.maps[0, :, 0] * 39, np.arange(10) * 4 + 1.5, rtol=1e-4)


def test_growth_counts_only_newly_found_pixels() -> None:
    piece = Piece.cut(noise_with_square()[0], 0, [0], (0, 40, 0, 60))
    first, second = torch.zeros(1, 40, 60), torch.zeros(1, 40, 60)
    first[0, :10] = 0.7
    second[0, 5:20] = 0.9
    assert piece.update(first, 0.7) == pytest.approx(0.25)
    assert piece.update(second, 0.7) == pytest.approx(0.25)


def test_pieces_can_be_merged_by_their_mean() -> None:
    image = torch.randn(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    activation = 2 * image[0, :1].relu()  # of the image and of its flip
    total, count = torch.zeros(1, 40, 60), torch.zeros(40, 60)
    for top, bottom, left, right in quadrants(activation / (activation.max() + 1e-5), BUFFERS[0]):
        part = activation[:, top:bottom, left:right]
        total[:, top:bottom, left:right] += part / (part.max() + 1e-5)
        count[top:bottom, left:right] += 1
    assert count.max() == 4
    maps, _ = recorded_maps(image, iterations=1, merge="mean")
    np.testing.assert_allclose(maps, on_grid(total / count).numpy(), atol=1e-6)
