"""Recommend the stage whose masks of the training images are best, without ground truth.

A segmentation network learns from pseudo-masks. A trained network evens out their errors, and its masks are better. A
network that was trained too little has not learned all classes, and its masks are worse. The two are told apart by
comparing the network's masks with those that it learned from, class by class: docs/results/network.md has the
measurements behind this rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

import tagmask
from tagmask.artifacts import digest, read_model
from tagmask.data.samples import Sample, TaggedImages, evenly_spaced
from tagmask.errors import RunError
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder
from tagmask.text import join_first_names

if TYPE_CHECKING:
    from tagmask.recipe import Recipe
    from tagmask.stage import Method

MAX_IMAGES = 500  # of the training set, evenly spaced; more do not change the agreement by a point
MIN_AGREEMENT = 0.2  # IoU of a class in the network's masks with its pseudo-masks; below it, the class is lost
MAX_LOST = 0.05  # share of the classes that a network can lose and still have the better masks
MIN_IMAGES = 3  # a class that fewer pseudo-masks contain is not judged


class Recommendation(BaseModel):
    """The stage whose masks are probably the best of a run: what `recommendation.json` holds.

    Attributes:
        stage: the name of the stage.
        reason: why, as a clause that completes "recommended masks: STAGE (...)".
        agreement: mIoU, in 0..1, of the last network's masks with the pseudo-masks that it learned from; None if no
            network was trained on masks.
        undertrained: whether this network was trained too little.
        keys: for each stage that makes masks, a digest of its settings, images and inputs.
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
        agreement: mIoU, in 0..1, with the masks that it learned from as the target; NaN if all pixels are ignored.
        lost: name → agreement (IoU, in 0..1) of the classes that the network has not learned.
        num_classes: the number of classes that were judged.
    """

    agreement: float
    lost: Mapping[str, float]
    num_classes: int

    @property
    def is_worse(self) -> bool:
        """Whether the network's masks are probably worse than those that it learned from."""
        return len(self.lost) > MAX_LOST * self.num_classes


def recommend_stage(
    recipe: Recipe, folder: RunFolder, images: TaggedImages, *, again: bool = False
) -> Recommendation | None:
    """Recommend the stage of a finished run whose masks of the training images are best.

    The last stage that makes masks is recommended, unless its network is worse than the masks that it learned from. If
    it changes the masks of an earlier stage, as `regions` can, it stands or falls with that one.
    If nothing has changed since the last recommendation, it is returned. Images with a reviewed mask are not compared,
    because this is their mask in every stage.

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
    samples = evenly_spaced([sample for sample in images.samples if not sample.reviewed_mask], MAX_IMAGES)
    comparisons = []
    while (pair := _network_and_teacher(recipe, stage)) is not None:
        network, teacher = pair
        comparison = compare_masks(samples, folder.stage(network), folder.stage(teacher), images.classes)
        comparisons.append((network, teacher, comparison))
        if not comparison.is_worse:
            break
        stage = teacher
    if not comparisons or math.isnan(comparisons[0][2].agreement):
        return Recommendation(stage=stage, reason="the last masks of the run", keys=keys)
    network, teacher, comparison = comparisons[0]
    if comparison.is_worse:
        reason = f"{_describe_lost(network, teacher, comparison.lost)}; {_advice(network, recipe.stages[network])}"
    else:
        subject = "its network" if network == stage else f"the network of {network}"
        reason = f"{subject} agrees with {teacher}, from which it learned, in {_percent(comparison.agreement)}"
    return Recommendation(
        stage=stage,
        reason=reason,
        agreement=comparison.agreement,
        undertrained=comparison.is_worse,
        keys=keys,
    )


def compare_masks(
    samples: Sequence[Sample],
    network: StageFolder,
    teacher: StageFolder,
    classes: Sequence[str],
) -> Comparison:
    """Compare the masks of a network with those that it learned from.

    Args:
        samples: the images.
        network: the stage with the network's masks.
        teacher: the stage with the masks that the network learned from.
        classes: the class names.

    Raises:
        RunError: a mask is missing or damaged, or two masks of an image do not fit.
    """
    num_labels = len(classes) + 1
    total, num_images = np.zeros((num_labels, num_labels + 1), np.int64), np.zeros(num_labels, int)
    for sample in samples:
        preds, target = network.read_mask(sample.id), teacher.read_mask(sample.id)
        try:
            confusion = confusion_matrix(preds, target, num_labels)
        except ValueError as error:
            raise RunError(
                f"{network.file_address('masks', sample.id)} cannot be compared with "
                f"{teacher.file_address('masks', sample.id)} ({error}): run the stages that made them again."
            ) from error
        total += confusion
        num_images += confusion.sum(axis=1) > 0
    agreement, judged = iou(total), num_images >= MIN_IMAGES
    judged[0] = False
    lost = {
        classes[int(label) - 1]: float(agreement[label])
        for label in np.flatnonzero(judged & (agreement < MIN_AGREEMENT))
    }
    return Comparison(float(mean_iou(agreement)), lost, int(judged.sum()))


def mask_keys(recipe: Recipe, folder: RunFolder) -> dict[str, str]:
    """Return, for each stage that makes masks, a digest of its settings, images and inputs."""
    keys = {name: folder.stage(name).read_key_if_any() for name in recipe.stages_making("masks")}
    return {name: digest([key, tagmask.__version__]) for name, key in keys.items()}


def _network_and_teacher(recipe: Recipe, stage: str) -> tuple[str, str] | None:
    """Return the stage whose network made some masks, and the stage that made those from which it learned.

    The masks of `stage` are those of this network, or were changed afterwards. None if no network made them.
    """
    method = recipe.stages[stage]
    earlier = method.inputs.get("masks")
    if earlier is None:
        return None
    return (stage, earlier) if "segmenter" in method.makes else _network_and_teacher(recipe, earlier)


def _advice(stage: str, method: Method) -> str:
    """Return how to train a network so that it learns all classes."""
    settings = method.model_dump()
    duration = next((name for name in ("epochs", "steps") if settings.get(name)), None)
    if duration is None:
        return "train it longer"
    example = f"--redo --set {stage}.{duration}={2 * settings[duration]}"
    if settings.get("class_balance") == 0:
        return f"train it longer and with more weight for rare classes, e.g. {example} --set {stage}.class_balance=0.5"
    return f"train it longer, e.g. {example}"


def _describe_lost(network: str, teacher: str, lost: Mapping[str, float]) -> str:
    """Return a clause about the classes that a network has not learned."""
    names, highest = join_first_names(list(lost), 3), _percent(max(lost.values()))
    at_most = "" if len(lost) == 1 else "at most "
    return f"the network of {network} has not learned {names}, and agrees with {teacher} there in {at_most}{highest}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
