"""What a run's report shows, collected from its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.artifacts import read_json
from tagmask.data.images import read_image
from tagmask.data.samples import Sample, TaggedImages
from tagmask.evaluate import HELD_OUT, Evaluation, held_out_folder, latest, read_ground_truth
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.methods._threshold import THRESHOLD_FILE, read_threshold
from tagmask.outputs.overlays import overlay
from tagmask.pipeline import RECORD
from tagmask.recipe import Recipe
from tagmask.report.page import Example, Report, StageSummary
from tagmask.stage import ArtifactKind, maps_path, mask_path
from tagmask.training import read_history

EXAMPLES, WORST, HELD_OUT_EXAMPLES = 10, 6, 4
WORST_OF = 2000  # images looked through for the worst


def collect_report(
    recipe: Recipe, folder: Path, images: TaggedImages, held_out: TaggedImages | None, evaluation: Evaluation
) -> Report:
    """Collect a finished run's report: counts, times, curves, scores and example pictures."""
    sources = _Sources.of(recipe, folder)
    examples = [_example(s, sources) for s in _spread([s for s in images.samples if s.tags], EXAMPLES)]
    if held_out is not None and (masks := held_out_folder(folder, held_out)).exists():
        for sample in _spread(held_out.samples, HELD_OUT_EXAMPLES):
            columns = {"final": read_label_map(mask_path(masks, sample))}
            examples.append(_with_pictures(sample, columns, {}, "held out: the network knew no tags"))
    tags = Counter(tag for sample in images.samples for tag in sample.tags or ())
    return Report(
        title=folder.resolve().name,
        description=recipe.description,
        recipe=recipe.to_yaml(),
        classes=images.classes,
        counts={"training images": len(images), "classes": len(images.classes)}
        | ({"held-out images": len(held_out)} if held_out is not None else {})
        | {"images without a tag": sum(not sample.tags for sample in images.samples)},
        tags_per_class={name: tags[id_] for id_, name in enumerate(images.classes, 1)},
        stages=_stages(recipe, folder),
        histories={name: history for name in recipe.stages if (history := read_history(folder / name))},
        maps=evaluation.maps,
        chosen=_chosen(recipe, folder, images, evaluation),
        scores=evaluation.scores,
        examples=examples,
        worst=_worst(sources, images),
        notes=_notes(recipe, folder, images, held_out),
        places=_places(recipe, folder),
    )


def collect_threshold_report(recipe: Recipe, folder: Path, evaluation: Evaluation) -> Report:
    """The report of a run's response maps alone, at every threshold."""
    notes = [f"Seed {recipe.seed}. The threshold used is Otsu's on each stage's own maps."]
    nothing: dict[str, Any] = {"counts": {}, "tags_per_class": {}, "histories": {}, "scores": {}, "chosen": {}}
    return Report(
        title=f"{folder.resolve().name}: thresholds",
        description=recipe.description,
        recipe="",
        classes=evaluation.classes,
        stages=(),
        maps=evaluation.maps,
        examples=(),
        worst=(),
        notes=notes,
        **nothing,
    )


def _makers(recipe: Recipe, kind: ArtifactKind) -> list[str]:
    return [name for name, method in recipe.stages.items() if kind in method.makes]


@dataclass(frozen=True)
class _Sources:
    """The stage folders that an example's columns are from; None where there is no such stage.

    Attributes:
        maps: of the response maps that became the final masks.
        seed: of the response maps that a stage was the last to cut at one threshold for all, and that threshold.
        refined, final: of the last masks but one, and the last.
    """

    maps: Path | None
    seed: tuple[Path, float] | None
    refined: Path | None
    final: Path | None

    @classmethod
    def of(cls, recipe: Recipe, folder: Path) -> _Sources:
        origins = _origins(recipe)
        maskers = list(origins)
        maps = origins[maskers[-1]] if maskers else latest(recipe, "maps")
        seeds = [
            (folder / origin, threshold)
            for name, origin in origins.items()
            if origin and (threshold := read_threshold(folder / name)) is not None
        ]
        return cls(
            maps=folder / maps if maps else None,
            seed=seeds[-1] if seeds else None,
            refined=folder / maskers[-2] if len(maskers) > 1 else None,
            final=folder / maskers[-1] if maskers else None,
        )


def _origins(recipe: Recipe) -> dict[str, str | None]:
    """For each stage that makes masks the one whose maps they come from, perhaps by way of other masks."""
    origins: dict[str, str | None] = {}
    maps, masks = None, ""
    for name, method in recipe.stages.items():
        if "maps" in method.makes:
            maps = name
        if "masks" in method.makes:
            origins[name] = origins[masks] if "masks" in method.needs else maps
            masks = name
    return origins


def _chosen(recipe: Recipe, folder: Path, images: TaggedImages, evaluation: Evaluation) -> dict[str, float]:
    """The threshold at which each stage's maps were cut; nan where it was one for each image."""
    cut = [maps for name, maps in _origins(recipe).items() if maps and (folder / name / THRESHOLD_FILE).exists()]
    return {**{f"{maps} ({images.name})": math.nan for maps in cut}, **evaluation.chosen}


def _example(sample: Sample, sources: _Sources, note: str = "") -> Example:
    labels: dict[str, np.ndarray] = {}
    pictures: dict[str, np.ndarray] = {}
    if sources.maps:
        maps = ResponseMaps.load(maps_path(sources.maps, sample))
        pictures["map"] = np.array(maps.figure(read_image(sample.image)))
    if sources.seed:
        cut, threshold = sources.seed
        labels["seed"] = ResponseMaps.load(maps_path(cut, sample)).label_map(threshold)
    for column, stage in (("refined", sources.refined), ("final", sources.final)):
        if stage:
            labels[column] = read_label_map(mask_path(stage, sample))
    return _with_pictures(sample, labels, pictures, note)


def _with_pictures(
    sample: Sample, labels: dict[str, np.ndarray], pictures: dict[str, np.ndarray], note: str
) -> Example:
    image = read_image(sample.image)
    if sample.mask is not None:
        labels = {**labels, "truth": sample.mask.read()}
    columns = {"image": image, **pictures, **{name: overlay(image, value) for name, value in labels.items()}}
    return Example(sample.id, note, columns)


def _worst(sources: _Sources, images: TaggedImages) -> list[Example]:
    if sources.final is None:
        return []
    known = [sample for sample in images.samples if sample.mask is not None and sample.tags][:WORST_OF]
    rated = []
    for sample in known:
        labels = read_label_map(mask_path(sources.final, sample))
        ground_truth = read_ground_truth(sample, labels.shape)
        rated.append((mean_iou(iou(confusion_matrix(ground_truth, labels, len(images.classes)))), sample))
    rated.sort(key=lambda pair: pair[0])
    return [_example(s, sources, f"mIoU {100 * value:.0f} %") for value, s in rated[:WORST]]


def _spread(samples: Sequence[Sample], n: int) -> list[Sample]:
    """At most n samples, evenly over the whole."""
    places = np.linspace(0, len(samples) - 1, min(n, len(samples))).round().astype(int)
    return [samples[i] for i in places]


def _stages(recipe: Recipe, folder: Path) -> list[StageSummary]:
    places = {name: (folder / name, type(method).__name__) for name, method in recipe.stages.items()}
    places |= {
        f"{HELD_OUT} {file.parent.name}": (file.parent, "Predictor") for file in folder.glob(f"{HELD_OUT}/*/{RECORD}")
    }
    summaries = []
    for name, (place, method) in places.items():
        record = read_json(place / RECORD)
        summaries.append(
            StageSummary(name, method, record.get("seconds", 0.0), record.get("images", 0), record["status"])
        )
    return summaries


def _places(recipe: Recipe, folder: Path) -> dict[str, str]:
    made: dict[str, tuple[list[str], str]] = {
        "Masks of the training images": (_makers(recipe, "masks")[-1:], "masks"),
        "Segmentation network": (_makers(recipe, "segmenter")[-1:], ""),
        "Response maps": (_makers(recipe, "maps"), "maps"),
    }
    return {
        words: ", ".join(str(folder / stage / part) for stage in stages)
        for words, (stages, part) in made.items()
        if stages
    }


def _notes(recipe: Recipe, folder: Path, images: TaggedImages, held_out: TaggedImages | None) -> list[str]:
    first = read_json(folder / next(iter(recipe.stages)) / RECORD)
    notes = [f"Seed {recipe.seed}; " + ", ".join(f"{name} {v}" for name, v in first["versions"].items()) + "."]
    if not any(sample.mask for sample in images.samples):
        notes.append("No true masks of the training images are known, so how good their masks are cannot be said.")
    if held_out is None:
        notes.append("No held-out images were given (--val), so how good the network is on new images cannot be said.")
    bad = [problem for problem in images.problems if problem.severity == "error"]
    if bad:
        notes.append(f"{len(bad)} bad images were left out, first: {bad[0]}")
    return notes
