"""Measure a run and write its reports."""

from __future__ import annotations

from pathlib import Path

from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.evaluate import Evaluation, evaluate_maps, evaluate_run
from tagmask.image_scores import update_image_scores
from tagmask.judge import Recommendation, recommend_stage
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.report.collect import collect_report, collect_threshold_report
from tagmask.report.page import write_report
from tagmask.run_folder import RunFolder


def update_report(
    recipe: Recipe,
    folder: RunFolder,
    images: TaggedImages,
    held_out: TaggedImages | None,
    compute: Compute,
    reporter: Reporter,
    *,
    measure_all: bool = False,
) -> Evaluation:
    """Measure what has changed since the last report, and recommend the stage with the best masks.

    Writes `evaluation.json` and `report.html`, and if a stage makes masks `recommendation.json` and `scores.csv`.

    Args:
        recipe: the stages, all done.
        folder: the run folder.
        images: the training images.
        held_out: images that were not trained on, or None.
        compute: device and processes.
        reporter: prints messages and progress.
        measure_all: measure everything again.
    """
    previous = None
    if folder.evaluation_path.exists() and not measure_all:
        previous = Evaluation.read(folder.evaluation_path)
    evaluation = evaluate_run(recipe, folder, images, held_out, compute, reporter, previous=previous)
    compute.barrier()  # every process has read the previous evaluation
    if compute.is_main_process and (recommendation := recommend_stage(recipe, folder, images, again=measure_all)):
        write_json(folder.recommendation_path, recommendation.model_dump(mode="json"))
    compute.barrier()
    recommendation = Recommendation.read_if_any(folder)
    stage = recommendation.stage if recommendation else None
    scores = [] if stage is None else update_image_scores(recipe, folder, images, compute, reporter, stage=stage)
    if compute.is_main_process:
        write_json(folder.evaluation_path, evaluation.to_json())
        write_report(
            collect_report(recipe, folder, images, held_out, evaluation, scores, recommendation), folder.report_path
        )
    compute.barrier()
    return evaluation


def write_threshold_report(
    recipe: Recipe, folder: RunFolder, images: TaggedImages, page: Path, compute: Compute, reporter: Reporter
) -> Evaluation:
    """Measure the response maps of every stage at every threshold, and write their curves to one HTML page."""
    evaluation = evaluate_maps(recipe, folder, images, compute, reporter)
    if compute.is_main_process:
        write_report(collect_threshold_report(recipe, folder, images, evaluation), page)
    compute.barrier()
    return evaluation
