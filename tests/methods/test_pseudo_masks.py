"""Test pseudo-masks: thresholds, the dense CRF, ignored pixels, and the cues of thresholds per image."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from tagmask.artifacts import read_json, write_json
from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._threshold import Threshold, doubt_about, record_threshold
from tagmask.methods.pseudo_masks import PseudoMasks
from tagmask.methods.segment import class_probabilities
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries
from tagmask.models.segmenter import Segmenter
from tagmask.progress import Reporter
from tagmask.recipe import load_recipe
from tagmask.refine.dense_crf import dense_crf, unary_from_labels
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, mean_root_num_tags
from tagmask.refine.settings import CrfSettings
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder, ThresholdRecord
from tests.methods.contract import MakeContext, MethodContract

MakeGrayContext = Callable[[int | None], StageContext]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, toy_images: TaggedImages) -> Path:
    """Return the folder of a random segmentation network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segment")
    Segmenter("Unet", "test_resnet", toy_images.classes).save(folder)
    return folder


class TestPseudoMasks(MethodContract):
    method = PseudoMasks
    settings = {"threshold": 0.3}  # noqa: RUF012
    trains = False


class TestPseudoMasksWithoutCrf(MethodContract):
    method = PseudoMasks
    settings = {"refine": "none"}  # noqa: RUF012
    trains = False


class TestThresholdPerImage(MethodContract):
    method = PseudoMasks
    settings = {"threshold": "per-image", "crf": {"steps": 2}}  # noqa: RUF012
    trains = False


class TestThresholdPerImageWithNetwork(MethodContract):
    method = PseudoMasks
    settings = {"threshold": "per-image", "cue": "network", "crf": {"steps": 2}}  # noqa: RUF012
    trains = False

    @pytest.fixture
    def earlier_stages(self, earlier_stages: dict[str, Path], segmenter: Path) -> dict[str, Path]:
        return {**earlier_stages, "segmenter": segmenter}


class TestThresholdPerImageWithBoundaries(MethodContract):
    method = PseudoMasks
    settings = {"threshold": "per-image", "cue": "none", "edges": "boundaries", "crf": {"steps": 2}}  # noqa: RUF012
    trains = False


class TestThresholdPerImageWithNetworkAndBoundaries(TestThresholdPerImageWithNetwork):
    settings = {  # noqa: RUF012
        "threshold": "per-image", "cue": "network", "edges": "boundaries", "crf": {"steps": 2}
    }  # fmt: skip


def constant_maps(size: tuple[int, int], *values: float, classes: tuple[int, ...] | None = None) -> ResponseMaps:
    """Return maps of an image of this size, one constant map per value."""
    maps = np.array(values, np.float32)[:, None, None].repeat(grid_size(size)[0], 1).repeat(grid_size(size)[1], 2)
    return ResponseMaps(np.array(classes or range(1, 1 + len(values)), int), maps, size)


def test_without_refinement_the_masks_are_the_maps_at_the_threshold(
    make_context: MakeContext, earlier_stages: dict[str, Path]
) -> None:
    context = make_context(maps=earlier_stages["maps"])
    PseudoMasks(threshold=0.4, refine="none").run(context)
    for sample in context.images.samples:
        maps = ResponseMaps.load(StageFolder(earlier_stages["maps"]).maps_path(sample.id))
        np.testing.assert_array_equal(read_label_map(context.folder.mask_path(sample.id)), maps.label_map(0.4))


def test_the_crf_gets_one_label_per_tagged_class() -> None:
    """The class ids 3 and 9 are labels 1 and 2 of the CRF."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    maps = ResponseMaps(np.array([3, 9]), rng.random((2, 6, 8)).astype(np.float32), (24, 32))
    cut = maps.label_map(0.5)
    crf_labels = np.select([cut == 3, cut == 9], [1, 2]).astype(np.uint8)
    expected = dense_crf(image, unary_from_labels(crf_labels, 3, 0.6), steps=4).argmax(0)
    labels = PseudoMasks(gt_prob=0.6, crf=CrfSettings(steps=4)).label_map(image, maps, 0.5)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.array([0, 3, 9])[expected])


def test_the_crf_moves_the_border_of_a_mask_to_the_edge_of_the_image() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, 24:] = (250, 200, 20)
    maps = ResponseMaps(np.array([2]), np.zeros((1, 8, 12), np.float32), (32, 48))
    maps.maps[:, :, 7:] = 1  # four pixels from the edge
    before, after = maps.label_map(0.5), PseudoMasks().label_map(image, maps, 0.5)
    ground_truth = np.where(np.arange(48) >= 24, 2, 0)[None].repeat(32, 0)
    assert (before != ground_truth).mean() > 0.05
    np.testing.assert_array_equal(after, ground_truth)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_small_images(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    labels = PseudoMasks().label_map(image, constant_maps(size, 0.9, 0.1, classes=(4, 7)), 0.3)
    assert labels.tolist() == np.full(size, 4).tolist()
    assert not PseudoMasks().label_map(image, constant_maps(size), 0.3).any()


def test_the_automatic_threshold_lies_between_object_and_background(make_context: MakeContext, tmp_path: Path) -> None:
    cam = StageFolder(tmp_path / "cam")
    context = make_context(maps=cam.path)
    for sample in context.images.samples:
        assert sample.size is not None
        assert sample.tags is not None
        maps = constant_maps(sample.size, *[0.1] * len(sample.tags), classes=sample.tags)
        if sample.tags:
            maps.maps[0, :3, :3] = 0.8
        maps.save(cam.maps_path(sample.id))
    PseudoMasks(refine="none").run(context)
    record = context.folder.read_threshold_if_any()
    assert record is not None
    assert 0.1 <= record.threshold < 0.8
    labels = read_label_map(context.folder.mask_path("0"))
    assert labels[:8, :8].all()
    assert not labels[16:, 16:].any()


def test_resume_reads_the_recorded_threshold(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(maps=earlier_stages["maps"])
    threshold = record_threshold(context, "auto", context.inputs["maps"])
    assert read_json(context.folder.threshold_path) == {"threshold": threshold, "per_image": False}
    assert record_threshold(context, "auto", StageFolder(Path("missing"))) == threshold


@pytest.mark.parametrize("setting", [0.3, "auto", "per-image"])
def test_the_threshold_is_recorded(
    make_context: MakeContext, earlier_stages: dict[str, Path], setting: Threshold
) -> None:
    context = make_context(maps=earlier_stages["maps"])
    assert context.folder.read_threshold_if_any() is None
    PseudoMasks(threshold=setting, refine="none").run(context)
    record = context.folder.read_threshold_if_any()
    assert record is not None
    assert 0 < record.threshold < 1
    expected = setting if isinstance(setting, float) else record.threshold
    assert record == ThresholdRecord(threshold=expected, per_image=setting == "per-image")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_maps_are_background_at_the_automatic_threshold(
    make_context: MakeContext, tmp_path: Path, value: float
) -> None:
    cam = StageFolder(tmp_path / "cam")
    context = make_context(maps=cam.path)
    for sample in context.images.samples:
        assert sample.size is not None
        assert sample.tags is not None
        maps = constant_maps(sample.size, *[value] * len(sample.tags), classes=sample.tags)
        maps.save(cam.maps_path(sample.id))
    PseudoMasks(refine="none").run(context)
    assert not any(read_label_map(context.folder.mask_path(sample.id)).any() for sample in context.images.samples)


def test_worker_processes_write_the_same_masks(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context, with_workers = (make_context(name, maps=earlier_stages["maps"]) for name in ("stage", "with_workers"))
    PseudoMasks(threshold=0.3).run(context)
    PseudoMasks(threshold=0.3).run(replace(with_workers, compute=Compute(workers=2)))
    assert MethodContract.is_same(context.folder.path, with_workers.folder.path)


def test_masks_have_the_size_of_the_image_file(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(maps=earlier_stages["maps"])
    PseudoMasks(threshold=0.3).run(context)
    for sample in context.images.samples:
        assert read_label_map(context.folder.mask_path(sample.id)).shape == read_image(sample.image).shape[:2]


def test_pixels_within_the_margin_are_ignored() -> None:
    maps = ResponseMaps(np.array([5]), np.linspace(0, 1, 11, dtype=np.float32)[None, None].repeat(2, 1), (8, 44))
    image = np.zeros((8, 44, 3), np.uint8)
    activation = maps.full_size()[0]
    labels = PseudoMasks(refine="none", margin=0.2).label_map(image, maps, 0.5)
    np.testing.assert_array_equal(labels, np.select([activation > 0.7, activation > 0.3], [5, 255], 0))
    labels = PseudoMasks(refine="none", margin=0.4).label_map(image, maps, 0.9)
    np.testing.assert_array_equal(labels == 5, np.zeros((8, 44), bool))


# Threshold per image


def test_the_margin_lies_around_the_threshold_of_the_image() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    maps = ResponseMaps(np.array([1]), rng.random((1, 6, 8)).astype(np.float32), (24, 32))
    threshold = choose_threshold(image, maps, 0.4, None).threshold
    labels = PseudoMasks(refine="none", threshold="per-image", margin=0.1).label_map(image, maps, 0.4)
    expected = PseudoMasks(refine="none", margin=0.1).label_map(image, maps, threshold)
    np.testing.assert_array_equal(labels, expected)
    assert threshold != 0.4


@pytest.fixture
def gray_context(
    make_context: MakeContext, tmp_path: Path, toy_images: TaggedImages, segmenter: Path
) -> MakeGrayContext:
    """Return a function that makes the context of one gray image of 32×64 pixels, named "gray".

    Its map falls from 1 at the left to 0 at the right. Its saliency map, if there is one, is 1 in the columns before
    `saliency_end`.
    """
    size, image = (32, 64), tmp_path / "gray.png"
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(image)
    cam = StageFolder(tmp_path / "cam")
    activation = np.linspace(1, 0, 16, dtype=np.float32)[None, None].repeat(8, 1)
    ResponseMaps(np.array([1]), activation, size).save(cam.maps_path("gray"))

    def make(saliency_end: int | None) -> StageContext:
        saliency = None
        if saliency_end is not None:
            saliency = tmp_path / f"saliency_{saliency_end}.png"
            grey = np.where(np.arange(64) < saliency_end, 255, 0)[None].repeat(32, 0).astype(np.uint8)
            Image.fromarray(grey).save(saliency)
        sample = replace(toy_images.samples[0], id="gray", image=str(image), tags=(1,), size=size, saliency=saliency)
        images = replace(toy_images, samples=(sample,))
        return make_context(f"stage_{saliency_end}", maps=cam.path, segmenter=segmenter, images=images)

    return make


def mask_width(context: StageContext, **settings: Any) -> float:
    """Return the mean number of foreground columns of the pseudo-mask with a threshold per image."""
    PseudoMasks(threshold="per-image", refine="none", **settings).run(context)
    width: float = (read_label_map(context.folder.mask_path("gray")) > 0).sum(1).mean()
    record = context.folder.read_threshold_if_any()
    assert record is not None
    assert record.per_image
    return width


def use_network_with_foreground(monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """Let `PseudoMasks` load a network whose foreground is the columns before `end`."""

    class ConstantSegmenter(Segmenter):
        @classmethod
        def load(cls, folder: Path) -> Segmenter:  # type: ignore[override]
            network = Segmenter.load(folder)

            def forward(images: Tensor) -> Tensor:
                logits = torch.zeros(len(images), len(network.classes) + 1, *images.shape[2:])
                logits[:, 1:] = 20 * (torch.arange(images.shape[3]) < end) - 10
                half = len(images) // 2
                logits[half:] = logits[half:].flip(3)  # the second half of the batch is flipped
                return logits

            network.forward = forward  # type: ignore[method-assign]
            return network

    monkeypatch.setattr("tagmask.methods.pseudo_masks.Segmenter", ConstantSegmenter)


@pytest.mark.parametrize("saliency_end", [24, 40])
def test_the_mask_ends_where_the_saliency_ends(gray_context: MakeGrayContext, saliency_end: int) -> None:
    """On an image without edges, only the saliency decides between the thresholds near the expected one."""
    assert mask_width(gray_context(saliency_end), cue="saliency") == pytest.approx(saliency_end, abs=2)


@pytest.mark.parametrize("network_end", [24, 40])
@pytest.mark.parametrize("saliency_end", [None, 32])
def test_with_a_network_as_cue_the_mask_ends_where_the_network_ends(
    gray_context: MakeGrayContext, monkeypatch: pytest.MonkeyPatch, network_end: int, saliency_end: int | None
) -> None:
    use_network_with_foreground(monkeypatch, network_end)
    assert mask_width(gray_context(saliency_end), cue="network") == pytest.approx(network_end, abs=2)


@pytest.mark.parametrize(
    ("cue", "with_saliency", "message"),
    [
        ("saliency", 3, "saliency maps help to choose the thresholds of all images"),
        ("saliency", 1, "saliency maps help to choose the thresholds of 1 of 3 images; the others have none"),
        ("saliency", 0, "no image has a saliency map, which would help to choose the thresholds"),
        ("network", 3, "the network helps to choose the thresholds; the saliency maps of the images are not used"),
        ("network", 0, "the network helps to choose the thresholds"),
        ("none", 3, None),
    ],
)
def test_a_run_says_what_helps_to_choose_the_thresholds(
    toy_images: TaggedImages, cue: Any, with_saliency: int, message: str | None
) -> None:
    tagged = [sample for sample in toy_images.samples if sample.tags][:3]
    samples = [
        replace(sample, saliency=Path("saliency.png") if i < with_saliency else None) for i, sample in enumerate(tagged)
    ]
    background = replace(tagged[0], tags=(), saliency=None)
    images = replace(toy_images, samples=(*samples, background))
    assert PseudoMasks(threshold="per-image", cue=cue).describe_cues(images) == message


def test_without_cue_saliency_is_ignored(gray_context: MakeGrayContext, tmp_path: Path) -> None:
    without_saliency = gray_context(None)
    expected = mask_width(without_saliency, cue="none")
    assert [mask_width(gray_context(saliency_end), cue="none") for saliency_end in (24, 40)] == [expected, expected]
    other_folder = replace(without_saliency, folder=StageFolder(tmp_path / "other"))
    assert mask_width(other_folder, cue="saliency") == expected


def test_a_change_of_saliency_is_noticed_only_where_it_is_used(gray_context: MakeGrayContext) -> None:
    without, with_saliency = gray_context(None).images, gray_context(24).images
    for settings, uses_saliency in (
        ({}, False),
        ({"threshold": 0.3, "cue": "network"}, False),
        ({"threshold": "per-image"}, True),
        ({"threshold": "per-image", "cue": "none"}, False),
        ({"threshold": "per-image", "cue": "network"}, False),
    ):
        method = PseudoMasks(**settings)
        assert (method.extra_fingerprint(without) != method.extra_fingerprint(with_saliency)) == uses_saliency


def test_a_network_as_cue_needs_an_earlier_segmentation_network(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: {cam: , pseudo_masks: {threshold: per-image, cue: network}}", encoding="utf-8")
    with pytest.raises(
        RecipeError,
        match=r"stage 'pseudo_masks' needs a segmentation network, which no earlier stage makes; add an earlier stage "
        r"with one of these methods: activation_aware, segment\.$",
    ):
        load_recipe(str(recipe))
    assert PseudoMasks(cue="network").required_inputs() == ("maps",)  # only a threshold per image uses the cue
    stages = "cam: , pseudo_masks: , segment: , again: {method: pseudo_masks, threshold: per-image, cue: network}"
    recipe.write_text(f"stages: {{{stages}}}", encoding="utf-8")
    assert load_recipe(str(recipe)).stages["again"].inputs == {"maps": "cam", "segmenter": "segment"}


@pytest.mark.parametrize("cue", ["none", "network"])
def test_masks_with_boundaries_are_chosen_with_those_of_each_image(
    make_context: MakeContext, earlier_stages: dict[str, Path], segmenter: Path, cue: Literal["none", "network"]
) -> None:
    context = make_context(maps=earlier_stages["maps"], segmenter=segmenter, boundary=earlier_stages["boundary"])
    method = PseudoMasks(threshold="per-image", cue=cue, edges="boundaries", crf=CrfSettings(steps=1))
    method.run(context)
    boundary_network = BoundaryNetwork.load(earlier_stages["boundary"]).eval()
    network = Segmenter.load(segmenter).eval()
    record = context.folder.read_threshold_if_any()
    assert record is not None
    typical = mean_root_num_tags(sample.tags for sample in context.images.samples)
    for sample in context.images.samples:
        image, maps = sample.read_image(), ResponseMaps.load(StageFolder(earlier_stages["maps"]).maps_path(sample.id))
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        backbone = boundary_network.backbone
        boundary = predict_boundaries(boundary_network, normalize_images(pixels, backbone.mean, backbone.std))[0][0]
        foreground = None
        if cue == "network":
            images = normalize_images(pixels, network.mean, network.std)
            foreground = 1 - class_probabilities(network, images, [sample.tags])[0][1][0]
        expected = expected_threshold(record.threshold, len(sample.tags or ()), typical)
        choice = choose_threshold(
            image, maps, expected, CrfSettings(steps=1), foreground=foreground, boundary=boundary.numpy()
        )
        labels = choice.labels if sample.tags else np.zeros(sample.size or (0, 0), np.uint8)
        np.testing.assert_array_equal(read_label_map(context.folder.mask_path(sample.id)), labels)


def test_boundaries_come_from_an_earlier_stage(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    per_image = "{threshold: per-image, edges: boundaries}"
    recipe.write_text(f"stages: {{cam: , pseudo_masks: {per_image}}}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"needs a network of boundaries.* one of these methods: irn\.$"):
        load_recipe(str(recipe))
    assert PseudoMasks(edges="boundaries").required_inputs() == ("maps",)  # only a threshold per image uses them
    recipe.write_text(f"stages: {{cam: , irn: {{write_maps: false}}, pseudo_masks: {per_image}}}", encoding="utf-8")
    assert load_recipe(str(recipe)).stages["pseudo_masks"].inputs == {"maps": "cam", "boundary": "irn"}


@pytest.mark.parametrize("cue", ["none", "saliency", "network"])
def test_images_without_tags_are_background(
    make_context: MakeContext, earlier_stages: dict[str, Path], segmenter: Path, cue: str
) -> None:
    context = make_context(maps=earlier_stages["maps"], segmenter=segmenter)
    PseudoMasks(threshold="per-image", cue=cue, refine="none").run(context)
    assert [sample.id for sample in context.images.samples if not sample.tags] == ["5"]
    assert not read_label_map(context.folder.mask_path("5")).any()


@pytest.mark.parametrize("value", ["automatic", -0.1, 1.1, True])
def test_a_wrong_threshold_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a threshold; give auto, per-image or a number from 0 to 1"):
        PseudoMasks(threshold=value)


@pytest.mark.parametrize(
    ("threshold", "losses", "warning"),
    [
        (0.0, [0.7, 0.3], "the threshold 0.00 lies at the border of its range"),
        (0.99, [], "the threshold 0.99 lies at the border"),
        (0.4, [0.7, 0.69], r"loss of cam has hardly fallen \(from 0.7 to 0.69\): train longer \(e.g. --set cam.epochs"),
        (0.4, [0.7, 0.3], None),
        (0.4, [0.7], None),
    ],
)
def test_a_threshold_of_a_network_that_has_hardly_learned_is_doubted(
    tmp_path: Path, threshold: float, losses: list[float], warning: str | None
) -> None:
    maps = StageFolder(tmp_path / "cam")
    maps.begin({"method": "tagmask.methods.cam"}, Compute())
    write_json(maps.path / "history.json", [{"epoch": i + 1, "loss": loss} for i, loss in enumerate(losses)])
    doubt = doubt_about(threshold, maps)
    assert doubt is None if warning is None else re.search(warning, doubt or "")


def test_the_warning_about_a_threshold_is_printed(make_context: MakeContext, tmp_path: Path) -> None:
    """Maps that are nowhere active, as those of a network that has learned nothing."""
    context = make_context(maps=tmp_path / "maps")
    for sample in context.images.samples:
        size, tags = sample.size or (1, 1), np.array(sample.tags)
        ResponseMaps(tags, np.zeros((len(tags), *grid_size(size))), size).save(
            context.inputs["maps"].maps_path(sample.id)
        )
    lines: list[str] = []
    reporter = Reporter()
    reporter.info = lines.append  # type: ignore[method-assign]
    record_threshold(replace(context, reporter=reporter), "auto", context.inputs["maps"])
    assert len(lines) == 2
    assert lines[1].startswith("  warning: the threshold 0.00 lies at the border of its range")


def test_a_power_of_the_background_takes_the_place_of_the_threshold(
    make_context: MakeContext, earlier_stages: dict[str, Path]
) -> None:
    context = make_context(maps=earlier_stages["maps"])
    PseudoMasks(alpha=16, refine="none").run(context)
    assert context.folder.read_threshold_if_any().threshold == pytest.approx(0.1228, abs=1e-4)  # type: ignore[union-attr]
    for sample in context.images.samples:
        maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
        np.testing.assert_array_equal(read_label_map(context.folder.mask_path(sample.id)), maps.label_map(alpha=16))
    with pytest.raises(ValidationError, match="alpha takes the place of threshold and margin"):
        PseudoMasks(alpha=16, threshold=0.3)
