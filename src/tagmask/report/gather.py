"""What a run's report shows, collected from its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.artifacts import read_json, read_label_map
from tagmask.data.images import read_image
from tagmask.data.samples import Sample, TaggedImages
from tagmask.evaluate import HELD_OUT, Evaluation, held_out_folder, read_truth
from tagmask.maps import ResponseMaps
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.methods.crf import THRESHOLD_FILE
from tagmask.outputs.overlays import overlay
from tagmask.pipeline import RECORD
from tagmask.recipe import Recipe
from tagmask.report.page import Example, Report, StageSummary
from tagmask.stage import Kind, maps_file, mask_file
from tagmask.training import read_history

EXAMPLES, WORST, HELD_OUT_EXAMPLES = 10, 6, 4
WORST_OF = 2000  # images looked through for the worst


def gather(
    recipe: Recipe, folder: Path, images: TaggedImages, held_out: TaggedImages | None, evaluation: Evaluation
) -> Report:
    """Collect a finished run's report: counts, times, curves, scores and example pictures."""
    threshold = next((t for name in recipe.stages if (t := _threshold(folder / name)) is not None), None)
    examples = [
        _example(s, recipe, folder, threshold) for s in _spread([s for s in images.samples if s.tags], EXAMPLES)
    ]
    if held_out is not None and (masks := held_out_folder(folder, held_out)).exists():
        for sample in _spread(held_out.samples, HELD_OUT_EXAMPLES):
            columns = {"final": read_label_map(mask_file(masks, sample))}
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
        chosen=evaluation.chosen,
        scores=evaluation.scores,
        examples=examples,
        worst=_worst(recipe, folder, images, threshold),
        notes=_notes(recipe, folder, images, held_out),
        places=_places(recipe, folder),
    )


def gather_maps(recipe: Recipe, folder: Path, evaluation: Evaluation) -> Report:
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


def _threshold(stage: Path) -> float | None:
    file = stage / THRESHOLD_FILE
    return float(read_json(file)["threshold"]) if file.exists() else None


def _makers(recipe: Recipe, kind: Kind) -> list[str]:
    return [name for name, method in recipe.stages.items() if kind in method.makes]


def _example(sample: Sample, recipe: Recipe, folder: Path, threshold: float | None, note: str = "") -> Example:
    labels: dict[str, np.ndarray] = {}
    pictures: dict[str, np.ndarray] = {}
    if mappers := _makers(recipe, "maps"):
        maps = ResponseMaps.load(maps_file(folder / mappers[-1], sample))
        pictures["map"] = np.array(maps.figure(read_image(sample.image)))
        if threshold is not None:
            labels["seed"] = maps.label_map(threshold)
    maskers = _makers(recipe, "masks")
    for column, stages in (("refined", maskers[:-1]), ("final", maskers)):
        if stages:
            labels[column] = read_label_map(mask_file(folder / stages[-1], sample))
    return _with_pictures(sample, labels, pictures, note)


def _with_pictures(
    sample: Sample, labels: dict[str, np.ndarray], pictures: dict[str, np.ndarray], note: str
) -> Example:
    image = read_image(sample.image)
    if sample.mask is not None:
        labels = {**labels, "truth": sample.mask.read()}
    columns = {"image": image, **pictures, **{name: overlay(image, value) for name, value in labels.items()}}
    return Example(sample.id, note, columns)


def _worst(recipe: Recipe, folder: Path, images: TaggedImages, threshold: float | None) -> list[Example]:
    maskers = _makers(recipe, "masks")
    known = [sample for sample in images.samples if sample.mask is not None and sample.tags][:WORST_OF]
    if not maskers:
        return []
    rated = []
    for sample in known:
        labels = read_label_map(mask_file(folder / maskers[-1], sample))
        truth = read_truth(sample, labels.shape)
        rated.append((mean_iou(iou(confusion_matrix(truth, labels, len(images.classes)))), sample))
    rated.sort(key=lambda pair: pair[0])
    return [_example(s, recipe, folder, threshold, f"mIoU {100 * value:.0f} %") for value, s in rated[:WORST]]


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
    made: list[tuple[str, Kind, str]] = [
        ("Masks of the training images", "masks", "masks"),
        ("Segmentation network", "segmenter", ""),
        ("Response maps", "maps", "maps"),
    ]
    return {words: str(folder / makers[-1] / part) for words, kind, part in made if (makers := _makers(recipe, kind))}


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
