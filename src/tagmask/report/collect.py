"""Collect the content of a run's report from its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tagmask.data.images import read_image
from tagmask.data.samples import Sample, TaggedImages
from tagmask.evaluate import Evaluation, held_out_folder, read_ground_truth
from tagmask.formatting import format_percent
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.outputs.overlays import overlay
from tagmask.recipe import Recipe
from tagmask.report.content import Example, Report, StageSummary
from tagmask.run_folder import RunFolder, StageFolder
from tagmask.stage import ArtifactKind
from tagmask.training import read_history

NUM_EXAMPLES, NUM_WORST, NUM_HELD_OUT = 10, 6, 4
MAX_SCORED = 2000  # images among which the worst ones are searched


def collect_report(
    recipe: Recipe, folder: RunFolder, images: TaggedImages, held_out: TaggedImages | None, evaluation: Evaluation
) -> Report:
    """Collect the report of a run: counts, times, curves, scores and example pictures.

    Args:
        recipe: the stages.
        folder: the run folder.
        images: the training images.
        held_out: images that were not trained on, or None.
        evaluation: the measured figures.
    """
    stages = _ExampleStages.of_run(recipe, folder)
    tagged = [sample for sample in images.samples if sample.tags]
    examples = [_example(sample, stages) for sample in _evenly_spaced(tagged, NUM_EXAMPLES)]
    counts = {"training images": len(images), "classes": len(images.classes)}
    if held_out is not None:
        counts["held-out images"] = len(held_out)
        examples += _held_out_examples(held_out_folder(folder, held_out), held_out)
    counts["images without a tag"] = sum(not sample.tags for sample in images.samples)
    num_tagged = Counter(tag for sample in images.samples for tag in sample.tags or ())
    histories = {name: read_history(folder.stage(name)) for name in recipe.stages}
    return Report(
        title=folder.path.resolve().name,
        description=recipe.description,
        classes=images.classes,
        recipe=recipe.to_yaml(),
        counts=counts,
        images_per_class={name: num_tagged[class_id] for class_id, name in enumerate(images.classes, 1)},
        stages=_summarize_stages(recipe, folder, held_out),
        histories={name: history for name, history in histories.items() if history},
        maps=evaluation.maps,
        thresholds=evaluation.thresholds,
        scores=evaluation.scores,
        columns=stages.captions(),
        examples=examples,
        worst=_worst_examples(stages, images),
        notes=_notes(recipe, folder, images, held_out),
        outputs=_outputs(recipe, folder),
    )


def collect_threshold_report(recipe: Recipe, folder: RunFolder, evaluation: Evaluation) -> Report:
    """Collect a report of nothing but the run's response maps at every threshold.

    Args:
        recipe: the stages.
        folder: the run folder.
        evaluation: the figures of the response maps.
    """
    return Report(
        title=f"{folder.path.resolve().name}: thresholds",
        description=recipe.description,
        classes=evaluation.classes,
        maps=evaluation.maps,
        thresholds=evaluation.thresholds,
        notes=[f"Seed {recipe.seed}. The threshold used is Otsu's threshold of the maps of each stage."],
    )


@dataclass(frozen=True)
class _ExampleStages:
    """The stages whose results the examples show; None where the run has no such stage.

    Attributes:
        maps: the response maps that became the final masks.
        cut_stage: the response maps that were last cut at one threshold for all images.
        cut_threshold: this threshold.
        refined: the last masks before the final ones.
        final: the final masks.
    """

    maps: StageFolder | None = None
    cut_stage: StageFolder | None = None
    cut_threshold: float = 0.0
    refined: StageFolder | None = None
    final: StageFolder | None = None

    @classmethod
    def of_run(cls, recipe: Recipe, folder: RunFolder) -> _ExampleStages:
        maskers = recipe.stages_making("masks")
        maps = recipe.maps_behind(maskers[-1]) if maskers else recipe.latest("maps")
        cut_stage, cut_threshold = None, 0.0
        for name in maskers:
            cut, record = recipe.maps_behind(name), folder.stage(name).read_threshold_if_any()
            if cut and record and not record.per_image:
                cut_stage, cut_threshold = folder.stage(cut), record.threshold
        return cls(
            maps=folder.stage(maps) if maps else None,
            cut_stage=cut_stage,
            cut_threshold=cut_threshold,
            refined=folder.stage(maskers[-2]) if len(maskers) > 1 else None,
            final=folder.stage(maskers[-1]) if maskers else None,
        )

    def captions(self) -> dict[str, str]:
        """Return the caption of each column."""
        captions = {"image": ""}
        if self.maps:
            captions["map"] = f"response maps of {self.maps.name}; red is the strongest activation"
        if self.cut_stage:
            captions["cut map"] = f"maps of {self.cut_stage.name}, cut at the threshold {self.cut_threshold:.2f}"
        if self.refined:
            captions["refined"] = f"masks of {self.refined.name}"
        if self.final:
            captions["final"] = f"masks of {self.final.name}, the result"
        return {**captions, "ground truth": "the correct mask, given for comparison"}


def _example(sample: Sample, stages: _ExampleStages, note: str = "") -> Example:
    image = read_image(sample.image)
    pictures, label_maps = {}, {}
    if stages.maps:
        pictures["map"] = np.array(ResponseMaps.load(stages.maps.maps_path(sample.id)).figure(image))
    if stages.cut_stage:
        maps = ResponseMaps.load(stages.cut_stage.maps_path(sample.id))
        label_maps["cut map"] = maps.label_map(stages.cut_threshold)
    if stages.refined:
        label_maps["refined"] = read_label_map(stages.refined.mask_path(sample.id))
    if stages.final:
        label_maps["final"] = read_label_map(stages.final.mask_path(sample.id))
    return Example(sample.id, note, {"image": image, **pictures, **_overlays(sample, image, label_maps)})


def _held_out_examples(folder: StageFolder, held_out: TaggedImages) -> list[Example]:
    """Return examples of the masks that the final network predicted; none if there is no network."""
    if not folder.is_done:
        return []
    examples = []
    for sample in _evenly_spaced(held_out.samples, NUM_HELD_OUT):
        image = read_image(sample.image)
        masks = _overlays(sample, image, {"final": read_label_map(folder.mask_path(sample.id))})
        examples.append(Example(sample.id, "held-out image, segmented without its tags", {"image": image, **masks}))
    return examples


def _overlays(sample: Sample, image: np.ndarray, label_maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draw label maps, and the ground truth if there is one, over their image."""
    if sample.mask is not None:
        label_maps = {**label_maps, "ground truth": sample.mask.read()}
    return {column: overlay(image, labels) for column, labels in label_maps.items()}


def _worst_examples(stages: _ExampleStages, images: TaggedImages) -> list[Example]:
    if stages.final is None:
        return []
    labeled = [sample for sample in images.samples if sample.mask is not None and sample.tags][:MAX_SCORED]
    scored = []
    for sample in labeled:
        preds = read_label_map(stages.final.mask_path(sample.id))
        target = read_ground_truth(sample, (preds.shape[0], preds.shape[1]))
        scored.append((float(mean_iou(iou(confusion_matrix(preds, target, len(images.classes) + 1)))), sample))
    scored.sort(key=lambda pair: pair[0])
    return [_example(sample, stages, f"mIoU {format_percent(miou)}") for miou, sample in scored[:NUM_WORST]]


def _evenly_spaced(samples: Sequence[Sample], n: int) -> list[Sample]:
    """Return at most n samples, evenly spaced over the whole sequence."""
    indices = np.linspace(0, len(samples) - 1, min(n, len(samples))).round().astype(int)
    return [samples[i] for i in indices]


def _summarize_stages(recipe: Recipe, folder: RunFolder, held_out: TaggedImages | None) -> list[StageSummary]:
    summaries = []
    for name, method in recipe.stages.items():
        method_name = type(method).__module__.removeprefix("tagmask.methods.")
        summaries.append(_summarize(folder.stage(name), name, method_name, method.inputs))
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


def _outputs(recipe: Recipe, folder: RunFolder) -> dict[str, str]:
    outputs = {}
    if masks := recipe.latest("masks"):
        outputs["Masks of the training images"] = str(folder.stage(masks).path / "masks")
    if segmenter := recipe.latest("segmenter"):
        outputs["Segmentation network"] = str(folder.stage(segmenter).path)
    if makers := recipe.stages_making("maps"):
        outputs["Response maps"] = ", ".join(str(folder.stage(name).path / "maps") for name in makers)
    return outputs


def _notes(recipe: Recipe, folder: RunFolder, images: TaggedImages, held_out: TaggedImages | None) -> list[str]:
    record = folder.stage(next(iter(recipe.stages))).read_record_if_any()
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items()) if record else ""
    notes = [f"Seed {recipe.seed}." + f" Versions: {versions}." * bool(versions)]
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
