"""Collect the content of a run's report from its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tagmask.data.samples import TaggedImages, evenly_spaced
from tagmask.data.tag_warnings import tag_warnings
from tagmask.evaluate import Evaluation, held_out_folder
from tagmask.formatting import format_percent
from tagmask.image_scores import SCORES_FILE, sort_scores
from tagmask.judge import Recommendation
from tagmask.measure.image_score import ImageScore
from tagmask.recipe import Recipe
from tagmask.report.content import Example, Report, StageSummary
from tagmask.report.examples import (
    NUM_EXAMPLES,
    NUM_WORST,
    ExampleStages,
    held_out_examples,
)
from tagmask.report.next_steps import next_steps
from tagmask.reviews import count_reviewed_masks
from tagmask.run_folder import RunFolder
from tagmask.stage import ArtifactKind
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history


def collect_report(
    recipe: Recipe,
    folder: RunFolder,
    images: TaggedImages,
    held_out: TaggedImages | None,
    evaluation: Evaluation,
    scores: Sequence[ImageScore] = (),
    recommendation: Recommendation | None = None,
) -> Report:
    """Collect the report of a run: counts, times, curves, scores and example pictures.

    Args:
        recipe: the stages.
        folder: the run folder.
        images: the training images.
        held_out: images that were not trained on, or None.
        evaluation: the measured figures.
        scores: the scores of the training images; empty if the run makes no masks.
        recommendation: the stage whose masks are recommended; None: not known.
    """
    stages = ExampleStages.of_run(recipe, folder)
    tagged = [sample for sample in images.samples if sample.tags]
    examples = [stages.example(sample) for sample in evenly_spaced(tagged, NUM_EXAMPLES)]
    counts = {"training images": len(images), "classes": len(images.classes)}
    if held_out is not None:
        counts["held-out images"] = len(held_out)
        examples += held_out_examples(stages, folder, held_out)
    if num_reviewed := count_reviewed_masks(images):
        counts["reviewed masks"] = num_reviewed
    counts["images without a tag"] = sum(not sample.tags for sample in images.samples)
    num_tagged = Counter(tag for sample in images.samples for tag in sample.tags or ())
    histories = {name: history for name in recipe.stages if (history := read_history(folder.stage(name)))}
    return Report(
        title=folder.path.resolve().name,
        description=recipe.description,
        classes=images.classes,
        recipe=recipe.to_yaml(),
        counts=counts,
        images_per_class={name: num_tagged[class_id] for class_id, name in enumerate(images.classes, 1)},
        stages=_summarize_stages(recipe, folder, held_out),
        histories=histories,
        maps=evaluation.maps,
        thresholds=evaluation.thresholds,
        scores=evaluation.scores,
        columns=stages.captions(recommendation.stage if recommendation else None),
        examples=examples,
        worst=worst_examples(stages, images, scores),
        notes=_notes(recipe, folder, images, held_out),
        warnings=tag_warnings(images),
        outputs=_outputs(recipe, folder, scores),
        training_set=images.name,
        recommended=recommendation.stage if recommendation else "",
        recommendation=_describe_recommendation(recommendation),
        next_steps=next_steps(recipe, folder.path, evaluation, scores, histories, set_name=images.name),
    )


def collect_threshold_report(recipe: Recipe, folder: RunFolder, images: TaggedImages, evaluation: Evaluation) -> Report:
    """Collect a report of nothing but the run's response maps at every threshold.

    Args:
        recipe: the stages.
        folder: the run folder.
        images: the images that were measured.
        evaluation: the figures of the response maps.
    """
    return Report(
        title=f"{folder.path.resolve().name}: thresholds",
        description=recipe.description,
        classes=evaluation.classes,
        counts={"training images": len(images)},
        maps=evaluation.maps,
        thresholds=evaluation.thresholds,
        notes=[f"Seed {recipe.seed}. The threshold used is Otsu's threshold of the maps of each stage."],
    )


def worst_examples(stages: ExampleStages, images: TaggedImages, scores: Sequence[ImageScore]) -> list[Example]:
    """Return the images with the lowest mIoU; without ground truth, those with the largest doubt."""
    samples = {sample.id: sample for sample in images.samples if sample.tags}
    scores = [score for score in scores if score.image in samples]
    measured = [score for score in scores if not math.isnan(score.miou)]
    examples = []
    for score in sort_scores(measured or scores, "miou" if measured else "doubt")[:NUM_WORST]:
        note = f"mIoU {format_percent(score.miou)}" if measured else f"doubt {score.doubt:.2f}"
        examples.append(stages.example(samples[score.image], note))
    return examples


def _describe_recommendation(recommendation: Recommendation | None) -> str:
    if recommendation is None:
        return ""
    return f"Recommended masks: those of the stage {recommendation.stage} ({recommendation.reason})."


def _summarize_stages(recipe: Recipe, folder: RunFolder, held_out: TaggedImages | None) -> list[StageSummary]:
    summaries = []
    for name, method in recipe.stages.items():
        summaries.append(_summarize(folder.stage(name), name, recipe.method_of(name), method.inputs))
    segmenter = recipe.latest("segmenter")
    if held_out is not None and segmenter:
        masks = held_out_folder(folder, held_out)
        summaries.append(_summarize(masks, "held-out images", "", {"segmenter": segmenter}))
    return summaries


def _summarize(folder: StageFolder, name: str, method: str, inputs: Mapping[ArtifactKind, str]) -> StageSummary:
    record = folder.read_record_if_any()
    if record is None:
        return StageSummary(name, method, inputs, 0.0, 0, "not started")
    return StageSummary(name, method, inputs, record.seconds, record.num_images, record.status)


def _outputs(recipe: Recipe, folder: RunFolder, scores: Sequence[ImageScore]) -> dict[str, str]:
    """Return what the run made → its path relative to the run folder."""
    outputs = {f"Masks of {name}": f"{name}/masks" for name in reversed(recipe.stages_making("masks"))}
    if segmenter := recipe.latest("segmenter"):
        outputs["Segmentation network"] = segmenter
    outputs |= {f"Response maps of {name}": f"{name}/maps" for name in recipe.stages_making("maps")}
    if scores:
        outputs["Scores of each image"] = SCORES_FILE
    return {**outputs, "All figures": folder.evaluation_path.name, "Recipe": folder.recipe_path.name}


def _notes(recipe: Recipe, folder: RunFolder, images: TaggedImages, held_out: TaggedImages | None) -> list[str]:
    record = folder.stage(next(iter(recipe.stages))).read_record_if_any()
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items()) if record else ""
    notes = [f"Run folder {folder.path.resolve()}. Seed {recipe.seed}." + f" Versions: {versions}." * bool(versions)]
    if num_reviewed := count_reviewed_masks(images):
        notes.append(
            f"Reviewed masks: {num_reviewed:,} of {len(images):,}. A reviewed mask is the mask of its image in every "
            "stage, so the scores of the training images count it, too."
        )
    if not any(sample.mask for sample in images.samples):
        notes.append("The training images have no ground truth, so the quality of their masks is unknown.")
    if held_out is None:
        notes.append("No held-out images were given, so the quality of the network on new images is unknown.")
    errors = [problem for problem in images.problems if problem.severity == "error"]
    if len(errors) == 1:
        notes.append(f"1 bad image was left out: {errors[0]}")
    elif errors:
        notes.append(f"{len(errors)} bad images were left out. The first one: {errors[0]}")
    return notes
