"""Run recipes that combine the methods: every producer of maps × infercam × AMN × IRN, each cut by `pseudo_masks`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from pydantic import ValidationError

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.models.segmenter import Segmenter
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, find_method, methods_making
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder
from tests.methods.contract import TOY_CAM
from tests.methods.tiny_sam import write_sam3

TRAINING: dict[str, Any] = {"freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32}
SEGMENT: dict[str, Any] = {**TRAINING, "architecture": "Unet", "scales": [1.0], "crf": None}
IRN: dict[str, Any] = {"seeds": {"crf": None}, "pair_radius": 2, "crop_size": 32, "epochs": 1, "batch_size": 4}
TOY: dict[str, dict[str, Any]] = {
    "cam": {**TOY_CAM, "backbone": "test_resnet", "scales": [1.0]},
    "recam": {**TRAINING, "long_side_range": [40, 48], "scales": [1.0]},
    "layercam": {"scales": [1.0]},
    "pretrained": {"backbone": "test_resnet", "outputs": {"red": [0], "green": [1, 3], "blue": [2]}, "scales": [1.0]},
    "infercam": {"scales": [1.0], "iterations": 2},
    "amn": {**TRAINING, "seeds": {"crf": None}, "scales": [1.0]},
    "affinity": {"of": "features", "output_stride": 8},
    "irn": {**IRN, "walk": {"steps": 16}},
    "pseudo_masks": {"crf": {"steps": 2}},
    "regions": {"region_sizes": [20], "crf": {"steps": 2}},
    "concept": {"classes": ["red", "blue"]},
    "segment": SEGMENT,
    "activation_aware": SEGMENT,
}
FOLLOWERS = ("infercam", "amn", "irn")  # they follow any producer, in this order

PRODUCERS = [name for name in methods_making("maps") if name not in FOLLOWERS]
FOLLOWED = [
    tuple(name for name, used in zip(FOLLOWERS, (infercam, amn, irn), strict=True) if used)
    for infercam in (False, True)
    for amn in (False, True)
    for irn in (False, True)
]
CELLS = [(producer, *followers, "pseudo_masks") for producer in PRODUCERS for followers in FOLLOWED]
CELLS += [(producer, "regions") for producer in PRODUCERS]
CONCEPTS = [("cam", cut, "concept", "segment") for cut in ("pseudo_masks", "regions")]
NETWORKS = [("cam", "pseudo_masks", name) for name in methods_making("segmenter")]


def make_recipe(methods: tuple[str, ...], **changes: Any) -> Recipe:
    """Return the recipe of these methods in order, after a CAM if the first one needs a classifier.

    A stage is named after the methods up to it, so that recipes in one folder share the stages with which they begin.

    Args:
        methods: the names of the methods.
        changes: further settings of the last method, which are part of the name of its stage.
    """
    if "classifier" in find_method(methods[0]).needs:
        methods = ("cam", *methods)
    stages: dict[str, Any] = {}
    for i, name in enumerate(methods):
        if name not in TOY:
            pytest.fail(
                f"method {name!r} takes part in the combinations: add toy settings for it to TOY in "
                f"{Path(__file__).name} (or its name to FOLLOWERS, if it can follow any producer)."
            )
        stages["-".join(methods[: i + 1])] = settings = {"method": name, **TOY[name]}
        if name == "infercam" and hasattr(inspect.getmodule(find_method(methods[i - 1])), "activations"):
            settings["base_method"] = methods[i - 1]
    if changes:
        last = "-".join(methods)
        stages["-".join([last, *map(str, changes.values())])] = {**stages.pop(last), **changes}
    return Recipe.model_validate({"stages": stages})


@pytest.fixture(scope="module")
def images(toy_images: TaggedImages, tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    """Return four toy images, with one, two, no and all tags, in whose saliency maps the squares are salient."""
    folder, samples = tmp_path_factory.mktemp("saliency"), []
    for i in (0, 3, 5, 6):
        sample = toy_images.samples[i]
        assert sample.mask
        Image.fromarray((sample.mask.read() > 0).astype(np.uint8) * 255).save(folder / f"{sample.id}.png")
        samples.append(replace(sample, saliency=folder / f"{sample.id}.png"))
    return replace(toy_images, samples=tuple(samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """Return one run folder for all combinations, so that stages that they share run once."""
    path = tmp_path_factory.mktemp("combinations")
    weights = path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOY["concept"], "sam", str(write_sam3(path / "sam3")))
        patch.setitem(TOY["pretrained"], "weights", str(weights))
        yield RunFolder(path)


def run_recipe(recipe: Recipe, images: TaggedImages, folder: RunFolder) -> StageFolder:
    """Run a recipe, check the maps and masks of all its stages, and return the folder of its last stage."""
    run_stages(recipe, images, folder, compute=Compute(), reporter=Reporter())
    for name, method in recipe.stages.items():
        if "maps" in method.makes:
            check_maps(images, folder.stage(name))
        if "masks" in method.makes:
            check_masks(images, folder.stage(name))
    return folder.stage(list(recipe.stages)[-1])


def check_maps(images: TaggedImages, stage: StageFolder) -> None:
    for sample in images.samples:
        maps = ResponseMaps.load(stage.maps_path(sample.id))
        assert tuple(maps.classes) == sample.tags
        assert maps.size == sample.size
        assert maps.maps.shape[1:] == grid_size(maps.size)
        assert np.isfinite(maps.maps).all()
        assert maps.maps.size == 0 or 0 <= maps.maps.min() <= maps.maps.max() <= 1


def check_masks(images: TaggedImages, stage: StageFolder) -> None:
    for sample in images.samples:
        labels = read_label_map(stage.mask_path(sample.id))
        assert labels.shape == sample.size
        assert set(np.unique(labels)) <= {0, 255, *(sample.tags or ())}


def load_maps(stage: StageFolder, image_id: str) -> np.ndarray:
    return ResponseMaps.load(stage.maps_path(image_id)).maps


@pytest.mark.parametrize("methods", [*CELLS, *CONCEPTS, *NETWORKS], ids="-".join)
def test_combination(methods: tuple[str, ...], images: TaggedImages, folder: RunFolder) -> None:
    recipe = make_recipe(methods)
    run_recipe(recipe, images, folder)
    assert "masks" in list(recipe.stages.values())[-1].makes


@pytest.mark.parametrize("producer", [*PRODUCERS, *FOLLOWERS])
def test_maps_of_any_method_with_a_threshold_per_image(producer: str, images: TaggedImages, folder: RunFolder) -> None:
    run_recipe(make_recipe((producer, "pseudo_masks"), threshold="per-image"), images, folder)


@pytest.mark.parametrize("producer", [*PRODUCERS, *FOLLOWERS])
def test_maps_of_any_method_with_a_network_as_cue(producer: str, images: TaggedImages, folder: RunFolder) -> None:
    methods = (producer, "pseudo_masks", "segment", "pseudo_masks")
    run_recipe(make_recipe(methods, threshold="per-image", cue="network"), images, folder)


def test_all_combinations_are_covered() -> None:
    assert {"cam", "recam", "layercam", "pretrained"} <= set(PRODUCERS)
    assert {"segment", "activation_aware"} <= {name for *_, name in NETWORKS}
    assert set(methods_making("masks")) == {"pseudo_masks", "regions", "concept", *methods_making("segmenter")}
    assert len(set(CELLS)) == 9 * len(PRODUCERS)


def test_infercam_uses_the_activations_of_its_producer(images: TaggedImages, folder: RunFolder) -> None:
    """LayerCAM has its own activations, and ReCAM its own weights, so the maps differ."""
    maps = [
        load_maps(run_recipe(make_recipe((producer, "infercam")), images, folder), "3")
        for producer in ("cam", "recam", "layercam")
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(maps[i] - maps[j]).mean() > 0.001


def test_pseudo_masks_read_the_maps_of_the_named_stage(images: TaggedImages, folder: RunFolder) -> None:
    """By default they read the latest maps."""
    cut = {"method": "pseudo_masks", "threshold": 0.4, "refine": "none"}
    stages = {
        "cam": TOY["cam"],
        "layercam": TOY["layercam"],
        "latest": cut,
        "named": {**cut, "inputs": {"maps": "cam"}},
    }
    run_recipe(Recipe.model_validate({"stages": stages}), images, folder)
    for sample in images.samples:
        for masks, source in (("latest", "layercam"), ("named", "cam")):
            expected = ResponseMaps.load(folder.stage(source).maps_path(sample.id)).label_map(0.4)
            np.testing.assert_array_equal(read_label_map(folder.stage(masks).mask_path(sample.id)), expected)


def test_a_stage_reads_maps_and_classifier_of_the_named_stages(images: TaggedImages, folder: RunFolder) -> None:
    """AMN with the inputs of an earlier stage equals AMN directly after that stage."""
    direct = run_recipe(make_recipe(("cam", "amn")), images, folder)
    amn = {"method": "amn", **TOY["amn"]}
    stages = {
        "cam": TOY["cam"],
        "cam-recam": {"method": "recam", **TOY["recam"]},
        "amn-latest": amn,
        "amn-named": {**amn, "inputs": {"maps": "cam", "classifier": "cam"}},
    }
    named = run_recipe(Recipe.model_validate({"stages": stages}), images, folder)
    for sample in images.samples:
        np.testing.assert_array_equal(load_maps(named, sample.id), load_maps(direct, sample.id))
    assert not np.array_equal(load_maps(folder.stage("amn-latest"), "3"), load_maps(direct, "3"))


def test_a_network_is_trained_on_the_masks_of_the_named_stage(images: TaggedImages, folder: RunFolder) -> None:
    cut = {"method": "pseudo_masks", "refine": "none"}
    segment = {"method": "segment", **TOY["segment"]}
    stages = {
        "cam": TOY["cam"],
        "large": {**cut, "threshold": 0.1},
        "small": {**cut, "threshold": 0.9},
        "segment-latest": segment,
        "segment-small": {**segment, "inputs": {"masks": "small"}},
        "segment-large": {**segment, "inputs": {"masks": "large"}},
    }
    run_recipe(Recipe.model_validate({"stages": stages}), images, folder)
    latest, small, large = (
        safetensors.torch.load_file(Segmenter.weights_path(folder.path / f"segment-{name}"))
        for name in ("latest", "small", "large")
    )
    assert all(torch.equal(latest[name], small[name]) for name in latest)
    assert not all(torch.equal(large[name], small[name]) for name in large)


def test_a_wrong_order_of_methods_is_an_error() -> None:
    for methods in (("pseudo_masks", "cam"), ("cam", "segment"), ("cam", "recam", "activation_aware")):
        with pytest.raises(ValidationError, match="which no earlier stage makes"):
            make_recipe(methods)


def test_a_method_without_toy_settings_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TOY, "layercam")
    with pytest.raises(
        pytest.fail.Exception, match=r"method 'layercam' .* add toy settings for it to TOY in test_comb"
    ):
        make_recipe(("layercam", "pseudo_masks"))
