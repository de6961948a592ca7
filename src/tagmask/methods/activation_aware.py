"""The activation-aware mask refinement loss: saliency refines the training of the segmentation network.

After Sun, Zhang and Barnes, "Inferring the Class Conditional Response Map for Weakly Supervised Semantic Segmentation",
WACV 2022 (arXiv:2110.14309): saliency sharpens the foreground but must not suppress tagged objects that are not
salient. The formula is ours, not the paper's equation: activation first completes the saliency, and pixels where the
two contradict each other are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from joblib import delayed
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor

from tagmask.data.loading import ExtraTargets
from tagmask.data.saliency import read_and_resize_saliency, saliency_fingerprint
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.transforms import downsample_labels
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX, write_label_map
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.methods.segment import PseudoMaskTargets, Segment, SegmentTraining, pixel_loss
from tagmask.models.segmenter import Segmenter
from tagmask.stage import ArtifactKind, StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import ParameterGroups


class Completion(BaseModel):
    """The thresholds by which activation completes saliency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    salient: float = Field(0.5, ge=0, le=1, description="saliency from which a pixel is salient")
    percentile: float = Field(
        90,
        ge=0,
        le=100,
        description="percentile of the positive activations of a class in the image; the class claims the pixels above "
        "it",
    )
    active: float = Field(
        0.1,
        ge=0,
        le=1,
        description="activation from which a pixel can belong to a tagged object; a connected salient region with a "
        "lower mean activation counts as an object without a tag",
    )


COMPLETION = Completion()


class ActivationAware(Segment):
    """Train the segmentation network on the pseudo-masks, and on saliency where activation does not contradict it."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("masks", "classifier", "maps")

    saliency_weight: float = Field(0.1, ge=0, description="weight λ of the saliency term of the loss")
    completion: Completion = Field(
        COMPLETION, description="thresholds by which the response maps complete the saliency"
    )

    def check_images(self, images: TaggedImages) -> None:
        if not any(sample.saliency for sample in images.samples):
            raise DataError(
                f"no image of {images.name} has a saliency map, which the activation-aware loss needs: "
                "give --saliency FOLDER, or make them with `tagmask saliency`."
            )

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return saliency_fingerprint(images)

    def extra_targets(self, context: StageContext) -> ExtraTargets:
        context.make_files("saliency", lambda stage: partial(write_missing_saliency_targets, self.completion))
        return SaliencyTargets(PseudoMaskTargets(context.inputs["masks"]), context.folder)

    def make_training(self, network: Segmenter, parameter_groups: ParameterGroups) -> SegmentTraining:
        return ActivationAwareTraining(network, parameter_groups, self)


class ActivationAwareTraining(SegmentTraining):
    """Cross-entropy against the pseudo-mask, plus λ times that of the foreground against the completed saliency."""

    def __init__(self, network: Segmenter, parameter_groups: ParameterGroups, settings: ActivationAware) -> None:
        super().__init__(network, parameter_groups, settings)
        self.saliency_weight = settings.saliency_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        (logits, labels), *others = self.logits_and_labels(batch)
        saliency = downsample_labels(batch["saliency"], (logits.shape[2], logits.shape[3]))
        losses = activation_aware_loss(
            logits, labels, saliency, self.saliency_weight, self.mean_over_processes, self.label_weights
        )
        return losses | {"loss": losses["loss"] + sum(self.pixel_loss(*pair) for pair in others)}


def activation_aware_loss(
    logits: Tensor,
    labels: Tensor,
    saliency_target: Tensor,
    saliency_weight: float = 0.1,
    reduce_mean: Callable[[Tensor], Tensor] = Tensor.float,
    label_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute L = CE(p, labels) + λ · Σ w BCE(p_fg, S') / Σ w, with the foreground probability p_fg = 1 − p_bg.

    Args:
        logits: [B, K + 1, H, W], background first.
        labels: [B, H, W] uint8, the pseudo-masks: 0 background, 1..K classes, 255 ignored.
        saliency_target: [B, H, W] uint8, from `make_saliency_target`: S', or 255 where the weight w is 0.
        saliency_weight: λ.
        reduce_mean: as in `pixel_loss`.
        label_weights: as in `pixel_loss`.

    Returns:
        "loss" and its two terms before λ, "ce" and "saliency"; a term without pixels is 0.
    """
    ce = pixel_loss(logits, labels, reduce_mean, label_weights)
    foreground_logit = logits[:, 1:].logsumexp(1) - logits[:, 0]
    weight = (saliency_target != IGNORE_INDEX).float()
    bce = F.binary_cross_entropy_with_logits(foreground_logit, (saliency_target == 1).float(), weight, reduction="sum")
    count = reduce_mean(weight.sum())
    saliency = bce / count.where(count > 0, 1)
    return {"loss": ce + saliency_weight * saliency, "ce": ce, "saliency": saliency}


def make_saliency_target(
    saliency: np.ndarray | None, maps: ResponseMaps, completion: Completion = COMPLETION
) -> np.ndarray:
    """Complete the saliency of an image by the activation of its tagged classes.

    A class claims the pixels where its activation is above the 90th percentile of its positive values. (The numbers
    here are the defaults of `completion`.) A pixel is

    - 1 (foreground) if it is salient (S ≥ 0.5) or claimed by one class;
    - 255 (left out, w = 0) if several classes claim it; if it lies in a salient component (of 4-neighbors) whose mean
      of max_k A_k is below 0.1, which is taken for an untagged object; if it is neither salient nor claimed, but active
      (max_k A_k ≥ 0.1); or if there is no saliency map;
    - 0 (background) otherwise.

    The target of an image with a reviewed mask is not made here: it is the foreground of this mask.

    Args:
        saliency: S [H, W] float, 0..1, at the size of the image; None: there is none.
        maps: the response maps A_k of the image.
        completion: the thresholds.

    Returns:
        [H, W] uint8.

    Raises:
        ValueError: the saliency has another size than the image.
    """
    if saliency is None:
        return np.full(maps.size, IGNORE_INDEX, np.uint8)
    if saliency.shape != maps.size:
        raise ValueError(f"saliency is {list(saliency.shape)}, its image {list(maps.size)}")
    activations = maps.full_size()
    max_activation = activations.max(0, initial=0)
    num_claims = np.zeros(maps.size, np.uint8)
    for activation in activations:
        if (activation > 0).any():
            num_claims += activation > np.percentile(activation[activation > 0], completion.percentile)
    salient = saliency >= completion.salient
    components, _ = ndimage.label(salient)
    sums = np.bincount(components.ravel(), max_activation.ravel())
    untagged = (sums < completion.active * np.bincount(components.ravel()))[components] & salient
    foreground = salient | (num_claims > 0)
    left_out = (num_claims > 1) | untagged | (~foreground & (max_activation >= completion.active))
    return np.where(left_out, IGNORE_INDEX, foreground).astype(np.uint8)


@dataclass(frozen=True)
class SaliencyTargets:
    """The pseudo-masks ("labels") and `saliency/<id>.png` of a stage ("saliency") as `ExtraTargets`."""

    masks: PseudoMaskTargets
    stage: StageFolder

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {**self.masks(sample), "saliency": self.stage.read_label_map("saliency", sample.id)}


def write_missing_saliency_targets(completion: Completion, context: StageContext) -> None:
    """Write the completed saliency of every image that has none yet, in parallel.

    Raises:
        DataError: a saliency map cannot be read, or its aspect ratio is not that of its image.
    """
    samples = context.images.samples
    if num_without := sum(sample.saliency is None and sample.reviewed is None for sample in samples):
        context.reporter.info(
            f"  {num_without} of {len(samples)} images have no saliency map: their masks alone are learned"
        )

    path = partial(context.folder.file_path, "saliency")
    groups = context.pending_shard([[sample] for sample in samples], path)
    jobs = (
        delayed(_write_saliency_target)(
            completion, sample, context.inputs["maps"].maps_path(sample.id), path(sample.id)
        )
        for (sample,) in groups
    )
    context.run_in_workers("saliency and activation", jobs, len(groups))


def _write_saliency_target(completion: Completion, sample: Sample, maps_path: Path, target_path: Path) -> None:
    if (labels := sample.read_reviewed_labels(sample.size) if sample.size else None) is not None:
        write_label_map(target_path, np.where(labels == IGNORE_INDEX, labels, labels > 0).astype(np.uint8))
        return
    maps = ResponseMaps.load(maps_path)
    reduced = maps.resized(reduced_size(maps.size))
    saliency = read_and_resize_saliency(sample.saliency, reduced.size) if sample.saliency else None
    write_label_map(target_path, resize_labels(make_saliency_target(saliency, reduced, completion), maps.size))
