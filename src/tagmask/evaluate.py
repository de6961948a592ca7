"""Measure a run against ground truth: curves of its response maps, scores of its masks and of its network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

import tagmask
from tagmask.artifacts import REMOVE, digest, read_json
from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.verify import ground_truth_fingerprint
from tagmask.errors import DataError, RunError
from tagmask.image_metrics import measure_images
from tagmask.label_map import read_label_map
from tagmask.measure import ActivationStats, SegmentationReport, ThresholdReport
from tagmask.measure.reports import json_number, number_from_json
from tagmask.pipeline import fingerprint
from tagmask.progress import Reporter
from tagmask.run_folder import RunFolder
from tagmask.stage_files import discard_damaged_files
from tagmask.stage_folder import StageFolder
from tagmask.text import shorten

if TYPE_CHECKING:
    from tagmask.recipe import Recipe


class MapScores(NamedTuple):
    """The figures of one stage's response maps.

    Attributes:
        curve: mIoU as a function of the threshold.
        auto_threshold: Otsu's threshold of these maps, chosen without ground truth; NaN if no pixel is active.
        activation: how even the activation is inside objects, and how far it is above that of the background.
    """

    curve: ThresholdReport
    auto_threshold: float
    activation: ActivationStats

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the figures as JSON values."""
        auto = json_number(self.auto_threshold)
        return {"auto_threshold": auto, **self.activation.to_json(), **self.curve.to_json(classes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the figures that `to_json` gave."""
        auto = number_from_json(data["auto_threshold"])
        return cls(ThresholdReport.from_json(data), auto, ActivationStats.from_json(data))


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Everything is empty if no ground truth is known.

    Attributes:
        classes: the class names.
        maps: the figures of response maps, by "stage (images)".
        scores: the scores of masks, by "stage (images)".
        thresholds: for those of `maps` that were cut, the threshold; NaN if each image has its own.
        keys: for every entry, a digest of what it was measured from.
    """

    classes: tuple[str, ...]
    maps: dict[str, MapScores] = field(default_factory=dict)
    scores: dict[str, SegmentationReport] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "classes": list(self.classes),
            "maps": {name: scores.to_json(self.classes) for name, scores in self.maps.items()},
            "scores": {name: scores.to_json(self.classes) for name, scores in self.scores.items()},
            "thresholds": {name: json_number(threshold) for name, threshold in self.thresholds.items()},
            "keys": self.keys,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the evaluation that `to_json` gave."""
        evaluation = cls(
            classes=tuple(map(_as_text, data["classes"])),
            maps={name: MapScores.from_json(scores) for name, scores in data["maps"].items()},
            scores={name: SegmentationReport.from_json(scores) for name, scores in data["scores"].items()},
            thresholds={name: number_from_json(threshold) for name, threshold in data["thresholds"].items()},
            keys={name: _as_text(key) for name, key in data["keys"].items()},
        )
        num_labels = {len(scores.iou) for scores in evaluation.scores.values()}
        num_labels |= {len(maps.curve.class_best) for maps in evaluation.maps.values()}
        if num_labels - {len(evaluation.classes) + 1}:
            raise ValueError("figures of another number of classes")
        return evaluation

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an evaluation. Raises RunError if the file does not exist or is damaged."""
        try:
            return cls.from_json(read_json(path))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunError(f"{path} is damaged ({shorten(str(error))}): {REMOVE}.") from error


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shorten(repr(value))} is not a text")
    return value


def evaluate_run(
    recipe: Recipe,
    folder: RunFolder,
    images: TaggedImages,
    held_out: TaggedImages | None,
    compute: Compute,
    reporter: Reporter,
    *,
    previous: Evaluation | None = None,
) -> Evaluation:
    """Measure the maps and masks of every stage on the training images, and the last network on the held-out images.

    Images without ground truth are left out.

    Args:
        recipe: the stages, all done.
        folder: the run folder; the network's masks of the held-out images are written to it.
        images: the training images.
        held_out: images that were not trained on, or None.
        compute: device and processes.
        reporter: prints messages and progress.
        previous: an earlier evaluation of this run; what has not changed since is taken from it.
    """
    evaluation = Evaluation(images.classes)
    labeled = _select_with_ground_truth(images)
    for name, method in recipe.stages.items():
        stage, entry = folder.stage(name), f"{name} ({images.name})"
        if "masks" in method.made_artifacts() and "maps" in method.inputs:
            _add_threshold(evaluation, f"{method.inputs['maps']} ({images.name})", stage)
        if not len(labeled):
            continue
        key = _entry_key(stage, labeled)
        if "maps" in method.made_artifacts():
            key_of_maps = f"maps of {entry}"
            evaluation.keys[key_of_maps] = key
            reusable = previous is not None and previous.keys.get(key_of_maps) == key and entry in previous.maps
            evaluation.maps[entry] = (
                previous.maps[entry] if previous and reusable else score_maps(labeled, stage, compute, reporter)
            )
        if "masks" in method.made_artifacts():
            _add_scores(evaluation, previous, entry, key, labeled, stage, compute, reporter)
    if held_out is not None and (segmenter := recipe.latest("segmenter")):
        masks = segment_held_out(folder, segmenter, held_out, compute, reporter)
        labeled = _select_with_ground_truth(held_out)
        if len(labeled):
            entry = f"{segmenter} ({held_out.name})"
            _add_scores(evaluation, previous, entry, _entry_key(masks, labeled), labeled, masks, compute, reporter)
    return evaluation


def _add_threshold(evaluation: Evaluation, entry: str, stage: StageFolder) -> None:
    """Add the threshold at which a stage cut maps; one threshold for all images goes before one per image."""
    if (threshold := stage.read_threshold_if_any()) is None:
        return
    if threshold.per_image:
        evaluation.thresholds.setdefault(entry, math.nan)
    else:
        evaluation.thresholds[entry] = threshold.threshold


def _add_scores(
    evaluation: Evaluation,
    previous: Evaluation | None,
    entry: str,
    key: str,
    images: TaggedImages,
    stage: StageFolder,
    compute: Compute,
    reporter: Reporter,
) -> None:
    """Add the scores of a stage's masks to an evaluation, measured now or taken from an earlier one."""
    evaluation.keys[f"masks of {entry}"] = key
    if previous is not None and previous.keys.get(f"masks of {entry}") == key and entry in previous.scores:
        evaluation.scores[entry] = previous.scores[entry]
    else:
        evaluation.scores[entry] = score_masks(images, stage, compute, reporter)


def _entry_key(stage: StageFolder, images: TaggedImages) -> str:
    """Return a digest of all inputs that a measurement of a stage depends on."""
    return digest([stage.read_key_if_any(), fingerprint(images), ground_truth_fingerprint(images), tagmask.__version__])


def _select_with_ground_truth(images: TaggedImages) -> TaggedImages:
    return images.select(lambda sample: sample.mask is not None)


def evaluate_maps(
    recipe: Recipe, folder: RunFolder, images: TaggedImages, compute: Compute, reporter: Reporter
) -> Evaluation:
    """Measure the response maps of every stage on those of its images that have ground truth.

    Raises:
        DataError: no image has both maps and ground truth.
        RunError: a stage is not done.
    """
    evaluation = Evaluation(images.classes)
    for name in recipe.stages_making("maps"):
        stage = folder.stage(name)
        if not stage.is_done:
            raise RunError(f"stage {name!r} of {folder.path} has not made all its maps yet: finish the run first.")
        labeled = _select_with_ground_truth(images).select(lambda sample, at=stage: at.has_file("maps", sample.id))  # type: ignore[misc]
        if not len(labeled):
            raise DataError(
                f"no image of {images.name} has both a ground-truth mask and maps in {stage.path}: give --data, and "
                "--masks."
            )
        evaluation.maps[f"{name} ({images.name})"] = score_maps(labeled, stage, compute, reporter)
    return evaluation


def score_maps(images: TaggedImages, stage: StageFolder, compute: Compute, reporter: Reporter) -> MapScores:
    """Measure the response maps of a stage against the ground truth of the images."""
    from tagmask.measure.metrics import ActivationHistogram, ActivationStatsMetric, ThresholdCurveMetric

    num_classes = len(images.classes)

    def make_metrics() -> Sequence[Any]:
        return ThresholdCurveMetric(num_classes + 1), ActivationStatsMetric(), ActivationHistogram()

    def update(metrics: Sequence[Any], sample: Sample) -> None:
        curve, stats, histogram = metrics
        maps = stage.read_maps(sample.id, size=sample.size, num_classes=num_classes)
        full_size, target = maps.full_size(), read_ground_truth(sample, maps.size)
        curve.update(full_size, maps.classes, target)
        stats.update(full_size, maps.classes, target)
        histogram.update(maps.maps)

    description = f"measuring the maps of {stage.name}"
    curve, stats, histogram = measure_images(make_metrics, update, images, description, compute, reporter)
    auto_threshold = histogram.otsu() if histogram.compute().any() else math.nan  # type: ignore[operator]
    return MapScores(curve.compute(), auto_threshold, stats.compute())


def score_masks(
    images: TaggedImages,
    stage: StageFolder,
    compute: Compute,
    reporter: Reporter,
    boundary: bool = True,
) -> SegmentationReport:
    """Measure the masks of a stage; otherwise as `score_label_maps`."""
    return score_label_maps(images, partial(_read_mask, stage), compute, reporter, boundary)


def score_label_maps(
    images: TaggedImages,
    read_mask: Callable[[str], np.ndarray],
    compute: Compute,
    reporter: Reporter,
    boundary: bool = True,
) -> SegmentationReport:
    """Measure label maps against the ground truth of the images.

    Args:
        images: all with ground truth.
        read_mask: reads the label map [H, W] uint8 of an image id; picklable by cloudpickle.
        compute: device and processes.
        reporter: prints messages and progress.
        boundary: whether to measure the boundary F-score, which takes most of the time; otherwise it is NaN.

    Raises:
        DataError: an image has no label map, or one of another size.
    """
    from tagmask.measure.metrics import SegmentationMetric

    def update(metrics: Sequence[Any], sample: Sample) -> None:
        preds = read_mask(sample.id)
        target = read_ground_truth(sample, (preds.shape[0], preds.shape[1]))
        try:
            metrics[0].update(preds, target)
        except ValueError as error:
            raise DataError(
                f"the mask of {sample.id} cannot be measured: {error}; are its classes those of the data?"
            ) from error

    num_labels = len(images.classes) + 1
    (metric,) = measure_images(
        lambda: [SegmentationMetric(num_labels, boundary)], update, images, "measuring masks", compute, reporter
    )
    return metric.compute()


def _read_mask(stage: StageFolder, image_id: str) -> np.ndarray:
    """Read the label map of an image, [H, W] uint8. Raises DataError if there is none, RunError if it is damaged."""
    if not stage.has_file("masks", image_id):
        raise _no_mask(stage.mask_path(image_id), image_id)
    return stage.read_mask(image_id)


def read_mask_in_folder(folder: Path, image_id: str) -> np.ndarray:
    """Read the label map `<id>.png` in a folder; otherwise as `_read_mask`."""
    path = folder / f"{image_id}.png"
    if not path.exists():
        raise _no_mask(path, image_id)
    return read_label_map(path)


def _no_mask(path: Path, image_id: str) -> DataError:
    return DataError(f"there is no mask {path} for image {image_id}; make it, or evaluate other images.")


def read_ground_truth(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """Read the ground-truth mask of a sample, [H, W] uint8.

    Raises:
        DataError: there is none, or its size is not `size` (H, W).
    """
    if sample.mask is None:
        raise DataError(f"image {sample.id} has no ground-truth mask.")
    target = sample.mask.read()
    if target.shape != size:
        raise DataError(
            f"the ground-truth mask of {sample.id} has {target.shape[1]}×{target.shape[0]} pixels, its prediction "
            f"{size[1]}×{size[0]}; they must have the same size."
        )
    return target


def segment_held_out(
    folder: RunFolder, segmenter: str, held_out: TaggedImages, compute: Compute, reporter: Reporter
) -> StageFolder:
    """Segment held-out images with the network of a stage, without their tags; returns the folder of the masks."""
    from tagmask.predict import Predictor

    target = held_out_folder(folder, held_out)
    stage = folder.stage(segmenter)
    key = {"stage": segmenter, "network": digest(stage.read_key_if_any()), "images": fingerprint(held_out)}
    if compute.is_main_process:
        discard_damaged_files(target, ("masks",), held_out, reporter.progress)
    compute.barrier()
    if target.begin(key, compute, redo=True):
        start = time.time()
        untagged = replace(held_out, samples=tuple(replace(sample, tags=None) for sample in held_out.samples))
        Predictor.load(stage.path, compute).write_missing_masks(target, untagged, reporter)
        target.mark_done(compute, time.time() - start, len(held_out))
    return target


def held_out_folder(folder: RunFolder, held_out: TaggedImages) -> StageFolder:
    """Return where a run keeps its network's masks of these images."""
    return StageFolder(folder.held_out_path / fingerprint(held_out)[:8])
