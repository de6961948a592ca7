"""Class-conditional inference: against a plain loop, rules worked by hand, and the public code's two traps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from benchmarks.conditional import on_grid, plain_loop
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.maps import ResponseMaps
from tagmask.methods.infercam import InferCam, Piece, infercam_maps, quadrants
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.recipe import load_recipe
from tests.methods.contract import MakeContext, MethodContract


class TestConditional(MethodContract):
    method = InferCam
    settings: ClassVar = {"scales": [1.0, 0.5], "inference_batch_size": 2}
    trains = False


class TestConditionalOnLayerCam(MethodContract):
    method = InferCam
    settings: ClassVar = {"scales": [1.0], "iterations": 2, "inference_batch_size": 2, "of": "layercam"}
    trains = False


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("recam", r"of: 'recam' defines no activations\(classifier\); leave `of` out"),
        ("no.such", r"of: 'no.such' cannot be imported .*; name a method, such as layercam, or a module on PYTHONPATH"),
        ("", "of: '' cannot be imported"),
        (".layercam", "of: '.layercam' cannot be imported"),
    ],
)
def test_activations_that_do_not_exist_are_one_sentence(of: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("infercam", [f"conditional.of={of!r}"])


def test_activations_of_one_s_own(
    make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module's `activations(classifier)` is what every look at a piece goes through."""
    (tmp_path / "all_ones.py").write_text("def activations(net): return lambda x: 0 * net.activations(x) + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    context = make_context(classifier=earlier["classifier"])
    InferCam(of="all_ones", scales=(1.0,)).run(context)
    for sample in context.images.samples:
        np.testing.assert_allclose(ResponseMaps.load(context.folder.maps_path(sample.id)).maps, 1, atol=1e-3)


class Recorder:
    """A network at stride 1 whose activations are the colours; it keeps what it saw, the probe left out."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, 128, 128):
            self.seen.append(images.clone())
        return images.relu()


def picture(height: int = 40, width: int = 60) -> Tensor:
    """Noise below 0, and a red square of value 1 at the upper left: all that a `Recorder` finds of class 1."""
    image = -torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) - 0.1
    image[:, 0, 5:15, 8:20] = 1
    return image


def look(image: Tensor, tags: tuple[int, ...] = (1,), **settings: object) -> tuple[np.ndarray, list[Tensor]]:
    network = Recorder()
    (maps,) = infercam_maps(network, image, [tags], (1.0,), **settings)  # type: ignore[arg-type]
    return maps.maps, network.seen


@pytest.mark.parametrize("stride", [8, 16])
def test_equals_a_plain_loop(stride: int) -> None:
    torch.manual_seed(3)
    classifier = Classifier(Backbone("resnet18", "none", stride), tuple("abcd")).eval()
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 9, 7), (72, 56), mode="bilinear")
    tags = [(2,), (1, 4), (1, 2, 3), ()]
    ours = infercam_maps(classifier.activations, images, tags, (1.0, 0.5))
    for image, ids, maps in zip(images[:3], tags, ours, strict=False):
        theirs = on_grid(plain_loop(classifier.activations, image, ids, (1.0, 0.5), stride=stride))
        np.testing.assert_allclose(maps.maps, theirs, atol=1e-4)
    assert ours[3].maps.shape == (0, 18, 14)


def test_batches_of_any_size_and_threads_change_nothing() -> None:
    torch.manual_seed(0)
    classifier = Classifier(Backbone("resnet18", "none", 8), tuple("abc")).eval()
    images = torch.randn(3, 3, 40, 48)
    tags = [(1,), (1, 2, 3), (2, 3)]
    together = infercam_maps(classifier.activations, images, tags, (1.0, 0.5))
    torch.set_num_threads(1)
    try:
        alone = [infercam_maps(classifier.activations, images[i : i + 1], tags[i : i + 1], (1.0, 0.5), together=1)[0]
                 for i in range(3)]  # fmt: skip
    finally:
        torch.set_num_threads(2)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.maps, b.maps, atol=1e-4)


def test_quadrants_of_one_class() -> None:
    maps = torch.zeros(1, 100, 120)
    maps[0, 40, 70] = 0.3
    assert quadrants(maps, 10) == [(0, 50, 0, 80), (0, 50, 60, 120), (30, 100, 0, 80), (30, 100, 60, 120)]


def test_quadrants_of_two_classes_lie_around_both_centres() -> None:
    maps = torch.zeros(2, 100, 120)
    maps[0, 40, 70] = 1
    maps[1, 60, 50] = 1  # rows 40 and 60, columns 50 and 70, buffer 20
    assert quadrants(maps, 20) == [(0, 80, 0, 90), (0, 80, 30, 120), (20, 100, 0, 90), (20, 100, 30, 120)]


def test_trap_negative_starts_are_clamped() -> None:
    maps = torch.zeros(1, 100, 120)
    maps[0, 4, 118] = 1  # −6 would count from the far edge: rows 94 to 100 alone
    assert quadrants(maps, 10) == [(0, 14, 0, 120), (0, 14, 108, 120), (0, 100, 0, 120), (0, 100, 108, 120)]
    assert quadrants(torch.zeros(2, 8, 8), 20) == [
        (0, 8, 0, 8)
    ]  # a small image, and no centre: the same piece four times


def test_trap_the_found_area_is_mirrored_with_the_view() -> None:
    image = picture()
    _, seen = look(image, split=False)
    straight, mirrored = seen[1].chunk(2)
    torch.testing.assert_close(mirrored, straight.flip(3))
    assert (straight[0, :, 5:15, 8:20] < 0).all()
    assert (mirrored[0, :, 5:15, 40:52] < 0).all()


def test_the_found_area_gets_the_whole_image_s_mean_colour_at_every_scale() -> None:
    image = picture()
    network = Recorder()
    infercam_maps(network, image, [(1,)], (1.0, 0.5), found=0.7)
    mean = image.mean((2, 3))[0]
    of_piece = [x for x in network.seen if x.shape[2:] == (19, 23)]  # the upper left quadrant, at scale 1
    torch.testing.assert_close(of_piece[1][0, :, 8, 12], mean)
    halved = [x for x in network.seen if x.shape[2:] == (10, 12)]
    torch.testing.assert_close(halved[1][0, :, 5, 7], mean)


def test_what_was_found_stays_and_weaker_things_come_up() -> None:
    image = picture()
    image[:, 0, 25:33, 40:50] = 0.3
    once, _ = look(image, split=False, iterations=1)
    twice, seen = look(image, split=False, iterations=5)
    assert once[0, 2, 3] == pytest.approx(1, abs=1e-4)
    assert once[0, 7, 11] == pytest.approx(0.3, abs=1e-4)
    assert twice[0, [2, 7], [3, 11]] == pytest.approx([1, 1], abs=1e-4)
    assert len(seen) == 3  # the square, the weaker one, nothing


def test_it_stops_when_less_than_the_share_is_new() -> None:
    image = picture()  # the square is 120 of 2,400 pixels, 5 %
    assert len(look(image, split=False, growth=0.06)[1]) == 1
    assert len(look(image, split=False, growth=0.05)[1]) == 2
    assert len(look(image, split=False, growth=0.0)[1]) == 5
    assert len(look(image, split=False, growth=0.0, iterations=3)[1]) == 3


def test_a_piece_that_is_done_leaves_the_batch() -> None:
    torch.set_num_threads(1)
    try:
        network = Recorder()
        nothing = torch.full((1, 3, 40, 60), -1.0)
        infercam_maps(network, torch.cat([picture(), nothing]), [(1,), (1,)], (1.0,), split=False)
    finally:
        torch.set_num_threads(2)
    assert [len(x) for x in network.seen] == [4, 2]  # images and their mirror images


def test_three_tags_are_not_split_and_the_pieces_can_be_enlarged() -> None:
    assert {x.shape[2:] for x in look(picture(), (1, 2, 3))[1]} == {(40, 60)}
    assert {x.shape[2:] for x in look(picture(), (1, 2, 3), enlarge=1.5)[1]} == {(60, 90)}
    assert look(picture(), (1, 2, 3), enlarge=1.5)[0].shape == (3, 10, 15)


def test_pieces_merge_by_their_maximum() -> None:
    maps, seen = look(picture(), iterations=1)
    assert len(seen) == 5  # the whole image for the centre, then four quadrants
    inside = np.zeros((10, 15), bool)
    inside[1:4, 2:5] = True
    assert maps[0][2, 3] == pytest.approx(1, abs=1e-4)
    assert maps[0][~inside].max() == 0


def test_odd_images() -> None:
    for size in [(1, 1), (3, 30), (41, 33)]:
        maps, _ = look(torch.randn(1, 3, *size), (1, 2))
        assert maps.shape == (2, -(-size[0] // 4), -(-size[1] // 4))
        assert np.isfinite(maps).all()
    assert look(-torch.ones(1, 3, 20, 20))[0].max() == 0


def test_the_grid_is_sampled_at_its_cells_centres() -> None:
    ramp = torch.arange(40.0)[None, :, None].expand(1, 40, 8)

    def network(images: Tensor) -> Tensor:
        return ramp[None].expand(len(images), 1, 40, 8) if images.shape[2] == 40 else images

    (maps,) = infercam_maps(network, torch.zeros(1, 3, 40, 8), [(1,)], (1.0,), split=False, iterations=1)
    np.testing.assert_allclose(maps.maps[0, :, 0] * 39, np.arange(10) * 4 + 1.5, rtol=1e-4)


def test_found_counts_what_is_new_alone() -> None:
    piece = Piece.cut(picture()[0], 0, [0], (0, 40, 0, 60))
    first, second = torch.zeros(1, 40, 60), torch.zeros(1, 40, 60)
    first[0, :10] = 0.7
    second[0, 5:20] = 0.9
    assert piece.add(first, 0.7) == pytest.approx(0.25)
    assert piece.add(second, 0.7) == pytest.approx(0.25)
