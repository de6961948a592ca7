"""What to do after a run: what images to look at, how to use the results, and what to try if the figures are low."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagmask.evaluate import Evaluation
from tagmask.formatting import format_percent
from tagmask.image_scores import sort_scores
from tagmask.measure.image_score import ImageScore
from tagmask.recipe import Recipe
from tagmask.region_vote import find_region_stage
from tagmask.report.content import NextStep
from tagmask.report.sections import map_rows
from tagmask.report.training_section import is_loss_falling
from tagmask.text import join_first_names

NUM_NAMED_IMAGES = 8
_NOTABLE = 0.03  # mIoU: a smaller difference is not worth a step
_LOW_MIOU = 0.5


def next_steps(
    recipe: Recipe,
    folder: Path,
    evaluation: Evaluation,
    scores: Sequence[ImageScore],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    set_name: str,
) -> list[NextStep]:
    """Return what to do next with a finished run.

    Args:
        recipe: the stages.
        folder: the run folder, as the user gave it.
        evaluation: the measured figures.
        scores: the scores of the training images; they can be empty.
        histories: the training curves, by stage.
        set_name: the name of the training images in `evaluation`.
    """
    run = shlex.quote(str(folder))
    steps = []
    if doubtful := [score.image for score in sort_scores(scores) if score.doubt > 0]:
        names = ", ".join(doubtful[:NUM_NAMED_IMAGES])
        steps.append(
            NextStep(
                f"Look at the masks that are most likely wrong, found without ground truth: {names}. Correct the tags "
                "of these images if they are wrong. This command lists all images in this order:",
                f"tagmask scores {run}",
            )
        )
    if recipe.latest("masks"):
        steps.append(
            NextStep(
                "Export the masks for other tools; the option --help lists all formats:",
                f"tagmask export {run} --format coco --out exported",
            )
        )
    if segmenter := recipe.latest("segmenter"):
        regions = " --regions" if find_region_stage(recipe, segmenter) else ""
        steps.append(NextStep("Segment new images:", f"tagmask predict {run} NEW_IMAGES --out predictions{regions}"))
    return [*steps, *_improvements(recipe, run, evaluation, histories, set_name)]


def _improvements(
    recipe: Recipe,
    run: str,
    evaluation: Evaluation,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    set_name: str,
) -> list[NextStep]:
    """Return what would probably make the masks better."""
    steps = []
    if not evaluation.scores and recipe.latest("masks"):
        steps.append(
            NextStep(
                "Measure the masks: draw those of about 30 images, and run the same command again with this option. No "
                "stage is repeated.",
                "--masks FOLDER",
            )
        )
    falling = [stage for stage, history in histories.items() if is_loss_falling(history)]
    if falling:
        stage = falling[0]
        name = "steps" if hasattr(recipe.stages[stage], "steps") else "epochs"
        value = 2 * (getattr(recipe.stages[stage], name, None) or len(histories[stage]))
        steps.append(
            NextStep(
                f"Train longer: the loss of {join_first_names(falling, 3)} was still falling at the end. Run the same "
                "command again with:",
                f"--set {stage}.{name}={value} --redo",
            )
        )
    return [*steps, *_threshold_steps(recipe, evaluation, set_name), *_stage_steps(recipe, run, evaluation, set_name)]


def _threshold_steps(recipe: Recipe, evaluation: Evaluation, set_name: str) -> list[NextStep]:
    """Return what to do if other thresholds give better masks."""
    steps = []
    cutters = [
        name
        for name in recipe.stages_making("masks")
        if "maps" in recipe.stages[name].inputs and getattr(recipe.stages[name], "threshold", None) != "per-image"
    ]
    rows = {row.name: row for row in map_rows(evaluation.maps, evaluation.thresholds)}
    for name in cutters:
        row = rows.get(f"{recipe.stages[name].inputs['maps']} ({set_name})")
        if row is None or math.isnan(row.miou) or row.per_image:
            continue
        if row.best_miou - row.miou > _NOTABLE:
            text = (
                f"Try another threshold: the maps of {row.name} reach {format_percent(row.best_miou)} mIoU at "
                f"{row.best_threshold:.2f}, and {format_percent(row.miou)} at the threshold used."
            )
            steps.append(NextStep(text, f"--set {name}.threshold={row.best_threshold:.2f} --redo"))
        elif row.oracle_miou - row.miou > 3 * _NOTABLE:
            text = (
                f"Try one threshold per image: with the best one for each, the maps of {row.name} would reach "
                f"{format_percent(row.oracle_miou)} mIoU instead of {format_percent(row.miou)}. tagmask finds part of "
                "this difference without ground truth."
            )
            steps.append(NextStep(text, f"--set {name}.threshold=per-image --redo"))
    return steps


def _stage_steps(recipe: Recipe, run: str, evaluation: Evaluation, set_name: str) -> list[NextStep]:
    """Return what to do if a network is worse than the masks that it learned from, or if the maps are bad."""
    steps = []
    miou = {name: evaluation.scores[entry].miou for name in recipe.stages_making("masks")
            if (entry := f"{name} ({set_name})") in evaluation.scores}  # fmt: skip
    for name in miou:
        earlier = recipe.stages[name].inputs.get("masks")
        if earlier not in miou or miou[earlier] - miou[name] <= _NOTABLE:
            continue
        figures = f"({format_percent(miou[name])} and {format_percent(miou[earlier])} mIoU)"
        if "segmenter" in recipe.stages[name].makes:
            text = (
                f"The network of {name} is worse than the masks of {earlier} that it learned from {figures}: use those "
                "masks, or train the network longer."
            )
        else:
            text = (
                f"The masks of {name} are worse than those of {earlier} from which it made them {figures}: use those."
            )
        steps.append(NextStep(text, f"tagmask export {run} --stage {earlier} --out exported"))
    best = max((maps.curve.best_miou for maps in evaluation.maps.values()), default=1.0)
    if best < _LOW_MIOU:
        text = (
            f"The response maps are poor at any threshold ({format_percent(best)} mIoU at best). Correct wrong tags, "
            "add images in which the classes occur without each other, or try another method, e.g.:"
        )
        steps.append(NextStep(text, f"tagmask add-stage {run} {_untried_method(recipe)}"))
    return steps


def _untried_method(recipe: Recipe) -> str:
    """Return a method that makes maps, if possible one that the recipe does not have."""
    used = {recipe.method_of(stage) for stage in recipe.stages}
    return next((name for name in ("amn", "layercam", "infercam") if name not in used), "amn")
