"""What the report advises, for runs with known figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.conftest import TARGET

from tagmask.evaluate import Evaluation, MapScores
from tagmask.measure import ActivationStats, SegmentationReport
from tagmask.measure.image_score import ImageScore
from tagmask.measure.metrics import SegmentationMetric, ThresholdCurveMetric
from tagmask.recipe import Recipe, recipe_with_stage
from tagmask.report.content import NextStep
from tagmask.report.next_steps import next_steps
from tagmask.report.training_section import is_loss_falling

RECIPE = Recipe.model_validate({"stages": {"cam": {}, "pseudo_masks": {}, "segment": {"steps": 100}}})


def measure(num_wrong_rows: int) -> SegmentationReport:
    metric = SegmentationMetric(3)
    preds = TARGET.copy()
    preds[:num_wrong_rows] = 0
    metric.update(preds, TARGET)
    return metric.compute()


def maps_best_at(*thresholds: float) -> MapScores:
    """Return the figures of one image per threshold; its maps are right just above this threshold."""
    metric = ThresholdCurveMetric(3)
    for threshold in thresholds:
        maps = np.where(np.stack([TARGET == 1, TARGET == 2]), threshold + 0.05, threshold - 0.005)
        metric.update(maps.astype(np.float32), np.array([1, 2]), TARGET)
    return MapScores(metric.compute(), 0.4, ActivationStats(1.0, 0.0, 0.5))


def steps_of(
    evaluation: Evaluation, histories: dict[str, Any] | None = None, recipe: Recipe = RECIPE, **scores: float
) -> list[NextStep]:
    images = [ImageScore(name, doubt, 0, 0, 0, 0, 0, 0, (), 0, 0, math.nan) for name, doubt in scores.items()]
    return next_steps(recipe, Path("my run"), evaluation, images, histories or {}, set_name="toy")


def test_what_to_look_at_and_how_to_use_the_results() -> None:
    first, second, third, fourth = steps_of(Evaluation(("cat", "cow")), a=0.1, b=0.9, c=0.0)
    assert "without ground truth: b, a. Correct the tags" in first.text
    assert first.command == "tagmask scores 'my run'"
    assert second.command.startswith("tagmask export 'my run'")
    assert third.command == "tagmask predict 'my run' NEW_IMAGES --out predictions"
    assert (fourth.text[:17], fourth.command) == ("Measure the masks", "--masks FOLDER")


def test_run_of_maps_alone() -> None:
    recipe = Recipe.model_validate({"stages": {"cam": {}}})
    assert steps_of(Evaluation(("cat", "cow")), recipe=recipe) == []


def test_longer_training() -> None:
    evaluation = Evaluation(("cat", "cow"), scores={"segment (toy)": measure(0)})
    falling = [{"epoch": i, "loss": 10 - i} for i in range(1, 6)]
    level = [{"epoch": i, "loss": 2.0**-i} for i in range(1, 9)]
    step = steps_of(evaluation, {"cam": level, "segment": falling})[-1]
    assert "the loss of segment was still falling" in step.text
    assert step.command == "--set segment.steps=200 --redo"
    assert steps_of(evaluation, {"cam": falling})[-1].command == "--set cam.epochs=10 --redo"
    assert "Train longer" not in steps_of(evaluation, {"cam": level})[-1].text


@pytest.mark.parametrize(
    ("losses", "falling"),
    [([3, 2], False), ([3, 2, 1], True), ([1, 1, 1], False), ([1, 2, 3], False), ([3, math.nan, 1], False),
     ([1, 0.5, 0.25, 0.125, 0.06, 0.03, 0.015, 0.007], False), ([8, 7, 6, 5, 4, 3, 2, 1], True)],
)  # fmt: skip
def test_is_loss_falling(losses: list[float], falling: bool) -> None:
    assert is_loss_falling([{"epoch": i, "loss": loss} for i, loss in enumerate(losses)]) == falling


def test_another_threshold() -> None:
    scores = {"segment (toy)": measure(0)}
    maps = {"cam (toy)": maps_best_at(0.7)}
    best = maps["cam (toy)"].curve.best_threshold
    assert 0.69 < best < 0.76
    step = steps_of(Evaluation(("cat", "cow"), maps, scores, {"cam (toy)": 0.3}))[-1]
    assert f"Try another threshold: the maps of cam (toy) reach 100.0 % mIoU at {best:.2f}" in step.text
    assert step.command == f"--set pseudo_masks.threshold={best:.2f} --redo"
    used = Evaluation(("cat", "cow"), maps, scores, {"cam (toy)": 0.71})
    assert "threshold" not in steps_of(used)[-1].text


def test_one_threshold_per_image() -> None:
    maps = {"cam (toy)": maps_best_at(0.3, 0.7)}
    scores = {"segment (toy)": measure(0)}
    best = maps["cam (toy)"].curve.best_threshold
    step = steps_of(Evaluation(("cat", "cow"), maps, scores, {"cam (toy)": best}))[-1]
    assert "the maps of cam (toy) would reach 100.0 % mIoU" in step.text
    assert step.command == "--set pseudo_masks.threshold=per-image --redo"
    per_image = Evaluation(("cat", "cow"), maps, scores, {"cam (toy)": math.nan})
    assert "threshold" not in steps_of(per_image)[-1].text


def test_a_network_that_is_worse_than_its_pseudo_masks() -> None:
    scores = {"pseudo_masks (toy)": measure(0), "segment (toy)": measure(3)}
    step = steps_of(Evaluation(("cat", "cow"), scores=scores))[-1]
    assert "The network of segment is worse than the masks of pseudo_masks" in step.text
    assert "--stage pseudo_masks" in step.command
    swapped = {"pseudo_masks (toy)": measure(3), "segment (toy)": measure(0)}
    assert "worse" not in steps_of(Evaluation(("cat", "cow"), scores=swapped))[-1].text


def test_changed_masks_that_are_worse_than_before() -> None:
    recipe = recipe_with_stage(RECIPE, "regions", ["vote_on=masks"])
    scores = {"segment (toy)": measure(0), "regions (toy)": measure(3)}
    step = steps_of(Evaluation(("cat", "cow"), scores=scores), recipe=recipe)[-1]
    assert "The masks of regions are worse than those of segment from which it made them (" in step.text
    assert "--stage segment" in step.command
    commands = [step.command for step in steps_of(Evaluation(("cat", "cow")), recipe=recipe)]
    assert "tagmask predict 'my run' NEW_IMAGES --out predictions --regions" in commands


def test_a_stage_with_thresholds_per_image_needs_no_other_threshold() -> None:
    recipe = recipe_with_stage(RECIPE, "pseudo_masks", ["threshold=per-image"], name="second_masks")
    maps = {"cam (toy)": maps_best_at(0.7)}
    steps = steps_of(Evaluation(("cat", "cow"), maps, {"segment (toy)": measure(0)}, {"cam (toy)": 0.3}), recipe=recipe)
    assert [step.command for step in steps if "threshold" in step.text] == [
        f"--set pseudo_masks.threshold={maps['cam (toy)'].curve.best_threshold:.2f} --redo"
    ]


def test_poor_maps() -> None:
    metric = ThresholdCurveMetric(3)
    metric.update(np.stack([TARGET == 2, TARGET == 0]).astype(np.float32), np.array([1, 2]), TARGET)
    maps = {"cam (toy)": MapScores(metric.compute(), 0.4, ActivationStats(1.0, 0.0, 0.5))}
    step = steps_of(Evaluation(("cat", "cow"), maps, {"segment (toy)": measure(0)}))[-1]
    assert "poor at any threshold" in step.text
    assert step.command == "tagmask add-stage 'my run' amn"
    with_amn = recipe_with_stage(RECIPE, "amn", [])
    evaluation = Evaluation(("cat", "cow"), maps, {"segment (toy)": measure(0)})
    assert steps_of(evaluation, recipe=with_amn)[-1].command == "tagmask add-stage 'my run' layercam"
