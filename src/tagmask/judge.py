"""Recommend the stage whose masks of the training images are best, without ground truth.

A segmentation network learns from pseudo-masks. A trained network evens out their errors, and its masks are better. An
undertrained one misses objects or blurs their outlines, and its masks are worse. The two are told apart by comparing
the network's masks with the pseudo-masks that it learned from. The measurements behind the rule are in
docs/results/network.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

import tagmask
from tagmask.artifacts import digest, read_model
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.run_folder import RunFolder

if TYPE_CHECKING:
    from tagmask.recipe import Recipe
    from tagmask.stage import Method

MAX_IMAGES = 500  # of the training set, evenly spaced; more do not change the agreement by a point
MIN_AGREEMENT = 0.65  # mIoU of a network's masks with its pseudo-masks below which the pseudo-masks are better
MIN_FOUND = 0.5  # share of the images with an object of a class in which the network must find it
MIN_SHARE = 0.01  # of an image; smaller pieces of a class are not counted as objects


class Recommendation(BaseModel):
    """The stage whose masks are probably the best of a run: what `recommendation.json` holds.

    Attributes:
        stage: the name of the stage.
        reason: why, as a clause that completes "recommended masks: STAGE (...)".
        agreement: mIoU, in 0..1, of the last network's masks with the pseudo-masks that it learned from; None if no
            network was trained on masks.
        undertrained: whether this network was trained too little.
        keys: for each stage that makes masks, a digest of everything that its masks depend on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    reason: str
    agreement: float | None = Field(None, ge=0, le=1)
    undertrained: bool = False
    keys: dict[str, str]

    @model_validator(mode="after")
    def _check_stage(self) -> Self:
        if self.stage not in self.keys:
            raise ValueError(f"{self.stage!r} is not a stage that makes masks")
        return self

    @classmethod
    def read_if_any(cls, folder: RunFolder) -> Self | None:
        """Read the recommendation of a run, or return None if there is none. Raises RunError if it is damaged."""
        path = folder.recommendation_path
        return read_model(path, cls) if path.exists() else None


@dataclass(frozen=True)
class Comparison:
    """How a network's masks compare with those that it learned from.

    Attributes:
        agreement: mIoU, in 0..1, with the masks that it learned from as the target.
        missed: names of the classes that the network misses in most of the images that have them.
    """

    agreement: float
    missed: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """What is wrong with the network, after "the network ..."; None if its masks are probably the better ones."""
        if self.missed:
            return f"misses most objects of {', '.join(self.missed[:3])}"
        if self.agreement < MIN_AGREEMENT:
            return f"agrees with its pseudo-masks in only {_percent(self.agreement)}"
        return None


def recommend_stage(
    recipe: Recipe, folder: RunFolder, images: TaggedImages, *, again: bool = False
) -> Recommendation | None:
    """Recommend the stage of a finished run whose masks of the training images are best.

    The last stage that makes masks is recommended, unless its network is worse than the masks that it learned from.
    If nothing has changed since the last recommendation, it is returned.

    Args:
        recipe: the stages, all done.
        folder: the run folder.
        images: the training images; at most `MAX_IMAGES` of them are compared.
        again: compare the masks again, even if nothing has changed.

    Returns:
        The recommendation; None if no stage makes masks.

    Raises:
        RunError: a mask is missing or damaged.
    """
    stage = recipe.latest("masks")
    if stage is None:
        return None
    keys = mask_keys(recipe, folder)
    previous = Recommendation.read_if_any(folder)
    if previous is not None and previous.keys == keys and not again:
        return previous
    samples = evenly_spaced(images.samples, MAX_IMAGES)
    network, pairs = stage, []
    while (teacher := _teacher(recipe.stages[stage])) is not None:
        comparison = compare_masks(
            samples, folder.stage(stage).mask_path, folder.stage(teacher).mask_path, images.classes
        )
        pairs.append((teacher, comparison))
        if comparison.fault is None:
            break
        stage = teacher
    if not pairs:
        return Recommendation(stage=stage, reason="the last masks of the run", keys=keys)
    teacher, comparison = pairs[0]
    if comparison.fault is None:
        reason = f"the network agrees in {_percent(comparison.agreement)} with {teacher}, whose masks it learned from"
    else:
        reason = f"the network of {network} {comparison.fault}; {_advice(network, recipe.stages[network])}"
    return Recommendation(
        stage=stage,
        reason=reason,
        agreement=None if math.isnan(comparison.agreement) else comparison.agreement,
        undertrained=comparison.fault is not None,
        keys=keys,
    )


def compare_masks(
    samples: Sequence[Sample],
    network_path: Callable[[str], Path],
    teacher_path: Callable[[str], Path],
    classes: Sequence[str],
) -> Comparison:
    """Compare the masks of a network with those that it learned from.

    Args:
        samples: the images.
        network_path: maps an image id to the path of the network's label map.
        teacher_path: maps an image id to the path of the label map that the network learned from.
        classes: the class names.

    Raises:
        RunError: a mask is missing or damaged, or two masks of an image do not fit.
    """
    num_labels = len(classes) + 1
    total = np.zeros((num_labels, num_labels + 1), np.int64)
    num_images, num_found = np.zeros(num_labels), np.zeros(num_labels)
    for sample in samples:
        try:
            confusion = confusion_matrix(
                read_label_map(network_path(sample.id)), read_label_map(teacher_path(sample.id)), num_labels
            )
        except ValueError as error:
            raise RunError(
                f"{network_path(sample.id)} cannot be compared: {error}; remove its stage, and run again."
            ) from error
        total += confusion
        has_class = confusion.sum(axis=1) >= MIN_SHARE * confusion.sum()
        num_images += has_class
        num_found += has_class & (confusion.diagonal() > 0)
    with np.errstate(invalid="ignore"):
        found = num_found / num_images
    missed = tuple(name for name, share in zip(classes, found[1:], strict=True) if share < MIN_FOUND)
    return Comparison(float(mean_iou(iou(total))), missed)


def mask_keys(recipe: Recipe, folder: RunFolder) -> dict[str, str]:
    """Return, for each stage that makes masks, a digest of everything that its masks depend on."""
    records = {name: folder.stage(name).read_record_if_any() for name in recipe.stages_making("masks")}
    return {name: digest([record and record.key, tagmask.__version__]) for name, record in records.items()}


def evenly_spaced(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Return at most `limit` samples, evenly spaced in their order."""
    count = min(limit, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _teacher(method: Method) -> str | None:
    """Return the stage whose masks a network was trained on; None if the method trains no network on masks."""
    return method.inputs.get("masks") if "segmenter" in method.makes else None


def _advice(stage: str, method: Method) -> str:
    """Return how to train a network twice as long."""
    settings = method.model_dump()
    name = "epochs" if settings.get("epochs") else "steps"
    if not settings.get(name):
        return "train it longer"
    return f"train it longer, e.g. --redo --set {stage}.{name}={2 * settings[name]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
