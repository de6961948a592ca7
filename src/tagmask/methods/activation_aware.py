"""The activation-aware mask refinement loss: saliency refines the segmentation network (methods, section 4).

After Sun, Zhang and Barnes, "Inferring the Class Conditional Response Map for Weakly Supervised Semantic Segmentation",
WACV 2022: saliency sharpens the foreground, and must not suppress tagged objects that are not salient. The formula is
ours, not the paper's equation: saliency is first completed by activation, and left out where the two disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from joblib import delayed
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor

from tagmask.data.loading import ExtraTargets
from tagmask.data.saliency import read_saliency, saliency_hash
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX, read_label_map, write_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods.segment import PseudoMasks, Segment, SegmentTraining, pixel_loss
from tagmask.stage import ArtifactKind, StageContext, maps_path


class Completion(BaseModel):
    """What counts as salient, as claimed by a tagged class, and as active."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    salient: float = Field(0.5, ge=0, le=1, description="saliency from which a pixel is salient")
    percentile: float = Field(
        90, ge=0, le=100, description="of a class's positive activations in the image: above it, it claims a pixel"
    )
    active: float = Field(
        0.1, ge=0, le=1, description="activation from which a pixel, or on average a salient component, may be tagged"
    )


COMPLETION = Completion()


class ActivationAware(Segment):
    """Train the segmentation network on the pseudo-masks and on saliency, where activation does not contradict it."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("masks", "classifier", "maps")

    saliency_weight: float = Field(0.1, ge=0, description="λ of the saliency's part of the loss")
    completion: Completion = COMPLETION

    def check(self, images: TaggedImages) -> None:
        if not any(sample.saliency for sample in images.samples):
            raise DataError(
                f"no image of {images.name} has saliency, which the activation-aware loss needs: "
                "give --saliency FOLDER, or make it with `tagmask saliency DATA --out FOLDER`."
            )

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return saliency_hash(images)

    def layers(self, context: StageContext) -> ExtraTargets:
        write_targets(context, self.completion)
        return SaliencyTargets(PseudoMasks(context.inputs["masks"]), context.folder)

    def training(self, *arguments: Any, **settings: Any) -> SegmentTraining:
        module = ActivationAwareTraining(*arguments, **settings)
        module.saliency_weight = self.saliency_weight
        return module


class ActivationAwareTraining(SegmentTraining):
    """Cross-entropy against the pseudo-mask + λ times that of the foreground as a whole against the saliency."""

    saliency_weight: float

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.logits(batch)
        return activation_aware_loss(logits, batch["labels"], batch["saliency"], self.saliency_weight, self.all_mean)


def activation_aware_loss(
    logits: Tensor,
    labels: Tensor,
    target: Tensor,
    weight: float = 0.1,
    over_processes: Callable[[Tensor], Tensor] = Tensor.float,
) -> dict[str, Tensor]:
    """L = CE(p, labels) + λ · Σ w BCE(p_fg, S') / Σ w, with the foreground's mass p_fg = 1 − p_bg.

    Args:
        logits: [B, K + 1, H, W], background first.
        labels: [B, H, W] uint8, the pseudo-masks: 0 background, 1..K classes, 255 unsure.
        target: [B, H, W] uint8, as `saliency_target` gives it: S', or 255 where w is 0.
        weight: λ.
        over_processes: as in `pixel_loss`.

    Returns:
        "loss" and its two parts before λ, "ce" and "saliency"; a part without pixels is 0.
    """
    ce = pixel_loss(logits, labels, over_processes)
    foreground = logits[:, 1:].logsumexp(1) - logits[:, 0]  # the logit of p_fg
    counted = (target != IGNORE_INDEX).float()
    bce = F.binary_cross_entropy_with_logits(foreground, (target == 1).float(), counted, reduction="sum")
    n = over_processes(counted.sum())
    saliency = bce / n.where(n > 0, 1)
    return {"loss": ce + weight * saliency, "ce": ce, "saliency": saliency}


def saliency_target(saliency: np.ndarray | None, maps: ResponseMaps, completion: Completion = COMPLETION) -> np.ndarray:
    """What saliency, completed by activation, says of each pixel of an image.

    A tagged class claims the pixels where its activation is above the 90th percentile of its positive values. (The
    numbers here are `completion`'s defaults.)

    Args:
        saliency: [H, W] float, 0..1, at the image's size; None: there is none.
        maps: the image's response maps A_k.
        completion: the limits.

    Returns:
        [H, W] uint8. 1: foreground, for it is salient (S ≥ 0.5) or claimed by a class. 255: left out (w = 0), for it
        is claimed by several classes; or in a salient component (of 4-neighbours) whose mean of max A_k is below 0.1,
        an untagged object; or neither salient nor claimed, but active (max A_k ≥ 0.1); or there is no saliency.
        0: background, which is all the rest.

    Raises:
        ValueError: the saliency is of another size than the image.
    """
    if saliency is None:
        return np.full(maps.size, IGNORE_INDEX, np.uint8)
    if saliency.shape != maps.size:
        raise ValueError(f"saliency is {list(saliency.shape)}, its image {list(maps.size)}")
    activations = maps.full_size()
    strongest = activations.max(0, initial=0)
    claims = np.zeros(maps.size, np.uint8)
    for activation in activations:
        if (activation > 0).any():
            claims += activation > np.percentile(activation[activation > 0], completion.percentile)
    salient = saliency >= completion.salient
    components, _ = ndimage.label(salient)
    sums = np.bincount(components.ravel(), strongest.ravel())
    untagged = (sums < completion.active * np.bincount(components.ravel()))[components] & salient
    foreground = salient | (claims > 0)
    left_out = (claims > 1) | untagged | (~foreground & (strongest >= completion.active))
    return np.where(left_out, IGNORE_INDEX, foreground).astype(np.uint8)


@dataclass(frozen=True)
class SaliencyTargets:
    """The pseudo-masks, and `saliency/<id>.png` of a stage as the layer "saliency" (`Layers`)."""

    masks: PseudoMasks
    stage: Path

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {**self.masks(sample), "saliency": read_label_map(target_file(self.stage, sample))}


def target_file(stage: Path, sample: Sample) -> Path:
    return stage / "saliency" / f"{sample.id}.png"


def write_targets(context: StageContext, completion: Completion) -> None:
    """Write the `saliency_target` of every image that has none yet, in parallel.

    Raises:
        DataError: a saliency map cannot be read, or has not its image's shape.
    """
    samples = context.images.samples
    without = sum(sample.saliency is None for sample in samples)
    if without:
        context.info(f"{without} of {len(samples)} images have no saliency: they are learnt from their masks alone")
    groups = context.pending_shard([[sample] for sample in samples], lambda sample: target_file(context.folder, sample))
    jobs = (
        delayed(_write)(
            completion, sample.saliency, maps_path(context.inputs["maps"], sample), target_file(context.folder, sample)
        )
        for (sample,) in groups
    )
    context.run_parallel("saliency and activation", jobs, len(groups))
    context.compute.barrier()


def _write(completion: Completion, saliency: Path | None, maps_path: Path, path: Path) -> None:
    maps = ResponseMaps.load(maps_path)
    salient = read_saliency(saliency, maps.size) if saliency else None
    write_label_map(path, saliency_target(salient, maps, completion))
