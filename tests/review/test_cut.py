"""Cutting the maps of an image at other thresholds, through the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagmask
from tagmask.maps import ResponseMaps
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.settings import CrfSettings
from tagmask.review.cutting import Cutting
from tagmask.run_folder import RunSources
from tests.report.fake_run import FakeRun
from tests.review.conftest import Tab


@pytest.fixture
def maps(folder: Path) -> ResponseMaps:
    """Maps of image 3 at random."""
    maps = ResponseMaps(np.array([2, 3]), np.random.default_rng(0).random((2, 10, 12)), (40, 48))
    path = folder / "cam" / "maps" / "3.safetensors"
    maps.save(path)
    return ResponseMaps.load(path)


def cut(tab: Tab, thresholds: dict[str, float], crf: bool = False) -> np.ndarray:
    answer = tab.post("/cut", thresholds=thresholds, crf=crf)
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, np.uint8).reshape(40, 48)


def test_thresholds(tab: Tab, maps: ResponseMaps) -> None:
    np.testing.assert_array_equal(cut(tab, {"2": 0.4, "3": 0.4}), maps.label_map(0.4))
    np.testing.assert_array_equal(cut(tab, {"2": 0.3, "3": 0.7}), maps.label_map([0.3, 0.7]))


def test_classes_without_a_threshold_take_no_part(tab: Tab, maps: ResponseMaps) -> None:
    alone = ResponseMaps(maps.classes[1:], maps.maps[1:], maps.size)
    np.testing.assert_array_equal(cut(tab, {"3": 0.4}), alone.label_map(0.4))
    for crf in (False, True):
        assert not cut(tab, {}, crf).any()


def test_the_crf_has_the_settings_of_the_stage_that_cut_the_maps(
    folder: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    crf = CrfSettings(steps=3, bilateral_srgb=20)
    recipe = (folder / "recipe.yaml").read_text().replace("gt_prob: 0.7", "gt_prob: 0.6")
    recipe = recipe.replace("steps: 10", "steps: 3", 1).replace("bilateral_srgb: 5.0", "bilateral_srgb: 20.0", 1)
    (folder / "recipe.yaml").write_text(recipe)
    maps: ResponseMaps = request.getfixturevalue("maps")
    tab: Tab = request.getfixturevalue("tab")
    image = tagmask.read_image(data / "3.png")
    np.testing.assert_array_equal(cut(tab, {"2": 0.3, "3": 0.6}, crf=True), cut_maps(image, maps, [0.3, 0.6], crf, 0.6))


@pytest.mark.parametrize(
    "content",
    [{}, {"thresholds": {"1": 0.5}}, {"thresholds": {"2": 1.5}}, {"thresholds": {"2": -0.1}}, {"thresholds": [0.5]},
     {"thresholds": {"x": 0.5}}, {"thresholds": {"2": "nan"}}, {"thresholds": {"2": None}}, {"thresholds": {"255": 0}},
     {"thresholds": {"2": 0.5}, "crf": "maybe"}, {"thresholds": {"2": 0.5}, "stage": "cam"}],
)  # fmt: skip
def test_requests_that_are_not_valid(tab: Tab, content: dict[str, Any]) -> None:
    refused = tab.post("/cut", **content)
    assert refused.status_code == 400
    assert refused.json()["error"].endswith(".")


def cutting(tmp_path: Path, images: Any, methods: dict[str, Any], stage: str, **thresholds: Any) -> Cutting:
    records = {name: {"threshold": 0.3, **value} for name, value in thresholds.items()}
    run = FakeRun(tmp_path / "run", images, methods, {}, {}, records)
    run.folder.write_record(RunSources(images=tagmask.DataSource(root=".")), images.classes)
    (run.folder.path / "recipe.yaml").write_text(run.recipe.to_yaml())
    return Cutting.of_run(tagmask.load(run.folder.path, device="cpu"), stage)


def test_what_masks_were_cut_from(tmp_path: Path, toy_images: Any) -> None:
    methods = {"cam": "cam", "pseudo_masks": "pseudo_masks", "segment": "segment", "infercam": "infercam"}
    of_network = cutting(tmp_path / "a", toy_images, methods, "segment", pseudo_masks={})
    assert (of_network.maps and of_network.maps.name, of_network.expected_threshold(2, 1.0)) == ("cam", 0.3)
    per_image = cutting(tmp_path / "b", toy_images, methods, "pseudo_masks", pseudo_masks={"per_image": True})
    assert per_image.expected_threshold(4, 1.0) != per_image.expected_threshold(1, 1.0)
    assert cutting(tmp_path / "c", toy_images, methods, "segment").expected_threshold(1, 1.0) is None
