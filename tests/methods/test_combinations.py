"""Every producer of response maps × class-conditional inference × AMN × refinement, as recipes that are carried out."""

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
from PIL import Image
from pydantic import ValidationError

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, find_method, makers
from tagmask.stage import maps_path, mask_path
from tests.methods.contract import TOY_CAM

TRAINING: dict[str, Any] = {"freeze_norm": False, "epochs": 1, "batch_size": 4, "crop_size": 32}
SEGMENT: dict[str, Any] = {**TRAINING, "architecture": "Unet", "scales": [1.0], "crf": None}
TOY: dict[str, dict[str, Any]] = {
    "cam": {**TOY_CAM, "backbone": "test_resnet", "scales": [1.0]},
    "recam": {**TRAINING, "long_side_range": [40, 48], "scales": [1.0]},
    "layercam": {"scales": [1.0]},
    "pretrained": {"backbone": "test_resnet", "outputs": {"red": [0], "green": [1, 3], "blue": [2]}, "scales": [1.0]},
    "infercam": {"scales": [1.0], "iterations": 2},
    "amn": {**TRAINING, "seeds": {"crf": None}, "scales": [1.0]},
    "crf": {"crf": {"steps": 2}},
    "irn": {
        "seeds": {"crf": None},
        "pair_radius": 2,
        "crop_size": 32,
        "epochs": 1,
        "batch_size": 4,
        "walk": {"steps": 16},
    },
    "segment": SEGMENT,
    "activation_aware": SEGMENT,
    "per_image": {"crf": {"steps": 2}},
}
ON_TOP = ("infercam", "amn")  # of any producer, in this order


PRODUCERS = [name for name in makers("maps") if name not in ON_TOP]
TOPS = [(), ON_TOP[:1], ON_TOP[1:], ON_TOP]
REFINEMENTS = [name for name in makers("masks") if {"maps", "classifier"}.issuperset(find_method(name).needs)]
CELLS = [(producer, *top, refinement) for producer in PRODUCERS for top in TOPS for refinement in REFINEMENTS]
LEARNERS = [("cam", "crf", name) for name in makers("segmenter")]
EACH_IMAGE = [(producer, "crf", "segment", "per_image") for producer in (*PRODUCERS, "infercam", "amn")]


def recipe(methods: tuple[str, ...]) -> Recipe:
    """The methods in order, after a CAM if the first one needs a classifier.

    A stage is named after the methods up to it, so that recipes in one folder share what they begin with.
    """
    if "classifier" in find_method(methods[0]).needs:
        methods = ("cam", *methods)
    stages: dict[str, Any] = {}
    for i, name in enumerate(methods):
        if name not in TOY:
            pytest.fail(
                f"method {name!r} takes part in the combinations: add toy settings for it to TOY in "
                f"{Path(__file__).name} (or its name to ON_TOP, if it works on top of any producer)."
            )
        stages["-".join(methods[: i + 1])] = settings = {"method": name, **TOY[name]}
        if name == "infercam" and hasattr(inspect.getmodule(find_method(methods[i - 1])), "activations"):
            settings["of"] = methods[i - 1]
    return Recipe.model_validate({"stages": stages})


@pytest.fixture(scope="module")
def images(toy_images: TaggedImages, tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    """Four toy pictures, of one, two, no and all tags, with their squares as saliency."""
    folder, samples = tmp_path_factory.mktemp("saliency"), []
    for i in (0, 3, 5, 6):
        sample = toy_images.samples[i]
        assert sample.mask
        Image.fromarray((sample.mask.read() > 0).astype(np.uint8) * 255).save(folder / f"{sample.id}.png")
        samples.append(replace(sample, saliency=folder / f"{sample.id}.png"))
    return replace(toy_images, samples=tuple(samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all combinations: what several begin with is made once."""
    folder = tmp_path_factory.mktemp("combinations")
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOY["pretrained"], "weights", str(weights))
        yield folder


@pytest.mark.parametrize("methods", [*CELLS, *LEARNERS, *EACH_IMAGE], ids="-".join)
def test_combination(methods: tuple[str, ...], images: TaggedImages, folder: Path) -> None:
    chosen = recipe(methods)
    folders = run_stages(chosen, images, folder, compute=Compute(), reporter=Reporter(None))
    for name, method in chosen.stages.items():
        if "maps" in method.makes:
            check_maps(images, folders[name])
        if "masks" in method.makes:
            check_masks(images, folders[name])
    assert "masks" in list(chosen.stages.values())[-1].makes


@pytest.mark.parametrize("producer", [*PRODUCERS, *ON_TOP])
def test_a_threshold_for_each_image(producer: str, images: TaggedImages, folder: Path) -> None:
    chosen = recipe((producer, "crf")).model_dump()
    settings = {"method": "crf", "threshold": "per-image", "crf": {"steps": 2}}
    stages = {name: {"method": name.split("-")[-1], **of} for name, of in list(chosen["stages"].items())[:-1]}
    made = run_stages(
        Recipe.model_validate({"stages": {**stages, f"{producer}-each": settings}}),
        images, folder, compute=Compute(), reporter=Reporter(None),
    )  # fmt: skip
    check_masks(images, list(made.values())[-1])


def check_maps(images: TaggedImages, folder: Path) -> None:
    for sample in images.samples:  # among them one without a tag, and one with all
        maps = ResponseMaps.load(maps_path(folder, sample))
        assert tuple(maps.classes) == sample.tags
        assert maps.size == sample.size
        assert maps.maps.shape[1:] == grid_size(maps.size)
        assert np.isfinite(maps.maps).all()
        assert maps.maps.size == 0 or 0 <= maps.maps.min() <= maps.maps.max() <= 1


def check_masks(images: TaggedImages, folder: Path) -> None:
    for sample in images.samples:
        labels = read_label_map(mask_path(folder, sample))
        assert labels.shape == sample.size
        assert set(np.unique(labels)) <= {0, 255, *(sample.tags or ())}


def test_the_matrix_is_whole() -> None:
    assert {"cam", "recam", "layercam"} <= set(PRODUCERS)
    assert {"crf", "irn"} <= set(REFINEMENTS)
    assert len(set(CELLS)) == 4 * len(PRODUCERS) * len(REFINEMENTS)


def test_conditional_inference_looks_through_the_producer(images: TaggedImages, folder: Path) -> None:
    """LayerCAM has activations of its own, ReCAM has its weights: on top of each the maps are others."""
    found = []
    for producer in ("cam", "recam", "layercam"):
        chosen = recipe((producer, "infercam"))
        stage = list(run_stages(chosen, images, folder, compute=Compute(), reporter=Reporter(None)).values())[-1]
        found.append(ResponseMaps.load(maps_path(stage, images.samples[3])).maps)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[i] - found[j]).mean() > 0.001


def test_a_combination_in_a_wrong_order_is_refused() -> None:
    for methods in (("crf", "cam"), ("cam", "segment"), ("cam", "recam", "activation_aware")):
        with pytest.raises(ValidationError, match="which no stage before it makes"):
            recipe(methods)


def test_a_method_without_toy_settings_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TOY, "layercam")
    with pytest.raises(
        pytest.fail.Exception, match=r"method 'layercam' .* add toy settings for it to TOY in test_comb"
    ):
        recipe(("layercam", "crf"))
