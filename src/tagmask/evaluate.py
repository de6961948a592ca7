"""Figures of a run where the truth is known: curves of its maps, scores of its masks and of its network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tagmask.artifacts import digest, read_json
from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError, RunError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure import (
    ActivationFigures,
    ActivationHistogram,
    MeanActivationFigures,
    SegmentationReport,
    SegmentationScores,
    ThresholdCurve,
    ThresholdReport,
)
from tagmask.measure.validation import number
from tagmask.methods._threshold import read_threshold
from tagmask.pipeline import RECORD, claim, fingerprint, finish, is_done
from tagmask.predict import Predictor
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.stage import StageContext, maps_path, mask_path

HELD_OUT = "held_out"


class MapScores(NamedTuple):
    """Figures of a stage's response maps.

    Attributes:
        curve: mIoU against the threshold.
        auto: the threshold that Otsu's criterion chooses on these maps, without truth.
        activation: how even the activation is inside an object, and how far above the background.
    """

    curve: ThresholdReport
    auto: float
    activation: ActivationFigures

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        single = {"auto_threshold": self.auto, **self.activation._asdict()}
        return {**{name: number(value) for name, value in single.items()}, **self.curve.to_json(classes)}


@dataclass(frozen=True)
class Evaluation:
    """What was measured; empty where no truth is known.

    Attributes:
        classes: the class names.
        maps: figures of each stage's response maps, by "stage (split)".
        chosen: the threshold that the run cut those maps at, if it was one for all images.
        scores: of each stage's masks, by "stage (split)".
    """

    classes: tuple[str, ...]
    maps: dict[str, MapScores] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    scores: dict[str, SegmentationReport] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "maps": {name: scores.to_json(self.classes) for name, scores in self.maps.items()},
            "chosen": self.chosen,
            "scores": {name: scores.to_json(self.classes) for name, scores in self.scores.items()},
        }


def evaluate_run(
    recipe: Recipe,
    folder: Path,
    images: TaggedImages,
    held_out: TaggedImages | None,
    compute: Compute,
    reporter: Reporter,
) -> Evaluation:
    """Measure every stage's maps and masks on the training images, and the network on the held-out ones.

    Images without truth are left out; with none at all the evaluation is empty.
    """
    found = Evaluation(images.classes)
    known = images.select(lambda sample: sample.mask is not None)
    for name, method in recipe.stages.items():
        key = f"{name} ({images.name})"
        if len(known) and "maps" in method.makes:
            found.maps[key] = score_maps(known, folder / name, compute, reporter)
        if len(known) and "masks" in method.makes:
            found.scores[key] = score_masks(known, lambda s, at=folder / name: mask_path(at, s), compute, reporter)  # type: ignore[misc]
            if found.maps and (threshold := read_threshold(folder / name)) is not None:
                found.chosen[list(found.maps)[-1]] = threshold
    if held_out is not None and (segmenter := latest(recipe, "segmenter")):
        masks = segment_held_out(recipe, folder, segmenter, held_out, compute, reporter)
        known = held_out.select(lambda sample: sample.mask is not None)
        if len(known):
            key = f"{segmenter} ({held_out.name})"
            found.scores[key] = score_masks(known, lambda s: mask_path(masks, s), compute, reporter)
    return found


def evaluate_maps(
    recipe: Recipe, folder: Path, images: TaggedImages, compute: Compute, reporter: Reporter
) -> Evaluation:
    """Measure the maps of every stage of a run on those of its images whose truth is known.

    Raises DataError if there is none, RunError if a stage has not finished.
    """
    found = Evaluation(images.classes)
    for name, method in recipe.stages.items():
        if "maps" not in method.makes:
            continue
        if not is_done(folder / name / RECORD):
            raise RunError(f"stage {name!r} of {folder} has not made all its maps yet: finish the run first.")
        known = images.select(lambda s, at=folder / name: s.mask is not None and maps_path(at, s).exists())  # type: ignore[misc]
        if not len(known):
            raise DataError(
                f"no image of {images.name} has both a true mask and maps in {folder / name}: give --data, and --masks."
            )
        found.maps[f"{name} ({images.name})"] = score_maps(known, folder / name, compute, reporter)
    return found


def latest(recipe: Recipe, kind: str) -> str | None:
    """The last stage of a recipe that makes this kind of thing."""
    return next((name for name, method in reversed(recipe.stages.items()) if kind in method.makes), None)


def score_maps(images: TaggedImages, folder: Path, compute: Compute, reporter: Reporter) -> MapScores:
    """The figures of a stage's response maps against the images' truth."""
    curve, activations, figures = ThresholdCurve(len(images.classes)), ActivationHistogram(), MeanActivationFigures()

    def add(sample: Sample) -> None:
        maps = ResponseMaps.load(maps_path(folder, sample))
        full, ground_truth = maps.full_size(), read_ground_truth(sample, maps.size)
        curve.update(full, maps.classes, ground_truth)
        figures.update(full, maps.classes, ground_truth)
        activations.update(maps.maps)

    _over_images(add, images, f"measuring {folder.name}'s maps", compute, reporter)
    auto = activations.otsu() if activations.compute().any() else math.nan
    return MapScores(curve.compute(), auto, figures.compute())


def score_masks(
    images: TaggedImages, file: Callable[[Sample], Path], compute: Compute, reporter: Reporter
) -> SegmentationReport:
    """Scores of label maps against the images' truth.

    Raises DataError if a sample has no label map, or one of another size.
    """

    scores = SegmentationScores(len(images.classes))

    def add(sample: Sample) -> None:
        path = file(sample)
        if not path.exists():
            raise DataError(f"there is no mask {path} for image {sample.id}; make it, or evaluate another set.")
        labels = read_label_map(path)
        ground_truth = read_ground_truth(sample, (labels.shape[0], labels.shape[1]))
        try:
            scores.update(ground_truth, labels)
        except ValueError as error:
            raise DataError(f"{path} cannot be measured: {error}; are its classes those of the data?") from error

    _over_images(add, images, "measuring masks", compute, reporter)
    return scores.compute()


def read_ground_truth(sample: Sample, size: tuple[int, int]) -> Any:
    """A sample's ground truth [H, W] uint8. Raises DataError if it has not the size of what it is compared with."""
    if sample.mask is None:
        raise DataError(f"image {sample.id} has no ground truth mask.")
    ground_truth = sample.mask.read()
    if ground_truth.shape != size:
        raise DataError(
            f"the truth of {sample.id} is {ground_truth.shape[1]}×{ground_truth.shape[0]} pixels, its mask {size[1]}×{size[0]}; "
            "they must be of one size."
        )
    return ground_truth


def segment_held_out(
    recipe: Recipe, folder: Path, stage: str, held_out: TaggedImages, compute: Compute, reporter: Reporter
) -> Path:
    """Segment held-out images with a stage's network, as if nothing were known of them; returns the folder."""
    target = held_out_folder(folder, held_out)
    key = {"stage": stage, "made": digest(read_json(folder / stage / RECORD)["key"]), "images": fingerprint(held_out)}
    if not claim(target, key, compute, redo=True):
        started = time.time()
        untagged = replace(held_out, samples=tuple(replace(sample, tags=None) for sample in held_out.samples))
        context = StageContext(target, untagged, {}, recipe.seed, compute, reporter.progress, reporter.info)
        Predictor.load(folder / stage, compute).write_masks(context)
        finish(target, compute, time.time() - started, len(held_out))
    return target


def held_out_folder(folder: Path, held_out: TaggedImages) -> Path:
    """Where a run keeps its network's masks of these images."""
    return folder / HELD_OUT / fingerprint(held_out)[:8]


def _over_images(
    add: Callable[[Sample], None], images: TaggedImages, what: str, compute: Compute, reporter: Reporter
) -> None:
    """Add this process's images to metrics, which are summed over the processes when they compute."""
    samples = compute.shard(images.samples)
    with reporter.progress(what, len(samples)) as advance, torch.inference_mode():
        for sample in samples:
            add(sample)
            advance(1)
