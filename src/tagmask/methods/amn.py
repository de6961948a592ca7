"""AMN: per-pixel activations that depend little on the threshold.

Lee, Kim and Shim, "Threshold Matters in WSSS: Manipulating the Activation for the Robust and Accurate Segmentation
Model Against Thresholds", CVPR 2022 (arXiv:2203.16045), Section 4, with the values of its public code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.data.loading import TrainingSet, multi_hot
from tagmask.data.samples import Sample
from tagmask.data.transforms import RandomScale, downsample_labels, training_transform
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._seeds import SeedFolder, make_seeds
from tagmask.methods._settings import (
    CAM_SCALES,
    FROZEN_STRIDE,
    FeatureSettings,
    FrozenStride,
    InferenceSettings,
    ScaleRange,
)
from tagmask.methods.cam import EPSILON, write_missing_maps
from tagmask.models.classifier import initial_backbone
from tagmask.models.inference import BILINEAR, Resize, scaled_with_hflip
from tagmask.models.label_conditioned import LabelConditionedNetwork
from tagmask.refine.settings import SeedSettings
from tagmask.stage import ArtifactKind, MakeFiles, StageContext
from tagmask.training import Optimizer, ParameterGroup, ParameterGroups, Training, TrainingSettings, fit, train_once

Renormalize = Literal["seed", "everywhere", "nowhere"]


class Amn(FeatureSettings, TrainingSettings, InferenceSettings):
    """Learn per-pixel activations from confident seeds, conditioned on the tags, and make new response maps."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    learns_from_pixels: ClassVar[bool] = True

    seeds: SeedSettings = Field(SeedSettings(), description="the labels that the network learns from")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the head, in training only")
    label_conditioning: bool = Field(
        True, description="weight the features by the tags of the image; false: an ablation of the paper"
    )
    balance: bool = Field(
        True,
        description="background and foreground pixels each make half of the loss; false: each pixel counts the same, "
        "an ablation of the paper",
    )
    label_smoothing: float = Field(
        0.4,
        ge=0,
        lt=1,
        description="ε: the share of the target that is divided among the other labels; 0: an ablation of the paper",
    )
    frozen_stride: FrozenStride = Field(0, description=FROZEN_STRIDE)
    freeze_norm: bool = Field(True, description="keep the running statistics of batch norms fixed")
    scale_range: ScaleRange = Field((0.5, 1.5), description="range of the random factor by which images are resized")
    optimizer: Optimizer = Field("adam", description="the optimizer")
    lr: float = Field(5e-6, gt=0, description="learning rate of the backbone")
    head_lr: float = Field(1e-4, gt=0, description="learning rate of the new layers")
    poly_power: float = Field(
        0.0,
        ge=0,
        description="exponent p of the decay: at step t of T the learning rates are multiplied by (1 − t/T)^p; 0: no "
        "decay, as the paper states none",
    )
    renormalize: Renormalize = Field(
        "seed",
        description="the pixels at which maps are stretched to 0..1: seed (where the seed is not background, as in the "
        "paper's code), everywhere, or nowhere; at the others the probability stays",
    )

    def inference_settings(self) -> tuple[str, ...]:
        return (*super().inference_settings(), "renormalize")

    def run(self, context: StageContext) -> None:
        seeds = make_seeds(self.seeds, context)
        train_once(context, LabelConditionedNetwork, lambda: self.train(context, seeds))
        context.make_files("maps", self.prepare_maps, uses=["seeds"])

    def train(self, context: StageContext, seeds: SeedFolder) -> None:
        """Train the network on the seeds and write it to the stage folder."""
        torch.manual_seed(context.seed)
        classifier = context.inputs["classifier"].path
        backbone = initial_backbone(
            classifier, self.backbone, self.weights, self.output_stride, self.options, self.dilation
        )
        backbone.freeze(self.frozen_stride, self.freeze_norm)
        network = LabelConditionedNetwork(
            backbone, context.images.classes, self.dropout, conditioned=self.label_conditioning
        )
        resize = RandomScale(*self.scale_range, self.interpolation)
        transform = training_transform(resize, self.crop_size, backbone.mean, backbone.std)
        parameter_groups = [
            ParameterGroup(backbone.parameters(), self.lr),
            ParameterGroup(network.head_parameters(), self.head_lr),
        ]
        module = AmnTraining(network, parameter_groups, self)
        data = TrainingSet(context.images, transform, context.seed, seeds)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.save(context.folder.path)

    def prepare_maps(self, context: StageContext) -> MakeFiles:
        """Load the network, and return the function that makes the maps."""
        network = LabelConditionedNetwork.load(context.folder.path)
        return lambda part: self.make_missing_maps(network, part, SeedFolder(part.folder))

    def make_missing_maps(self, network: LabelConditionedNetwork, context: StageContext, seeds: SeedFolder) -> None:
        """Write the response maps of every image that has none yet."""
        resize = Resize(self.interpolation, network.backbone.mean, network.backbone.std)

        def maps_of_batch(images: Tensor, samples: Sequence[Sample]) -> list[ResponseMaps]:
            tags = torch.stack([multi_hot(sample.tags, len(network.classes)) for sample in samples])
            logits = mean_logits(network, images, tags.to(images.device), self.scales, resize)
            size = (images.shape[2], images.shape[3])  # of the seeds, too
            maps = []
            for sample, probabilities in zip(samples, logits.softmax(1).cpu(), strict=True):
                classes = sorted(sample.tags or ())
                not_background = torch.from_numpy(seeds(sample)["labels"]) != 0
                kept = renormalize_maps(probabilities[[0, *classes]], not_background, self.renormalize).numpy()
                maps.append(ResponseMaps(np.array(classes, np.int64), kept[1:], size, background=kept[0]))
            return maps

        write_missing_maps(network, context, maps_of_batch, self.inference_batch_size)


class AmnTraining(Training):
    """The balanced per-pixel cross-entropy with label smoothing against the seeds."""

    network: LabelConditionedNetwork

    def __init__(self, network: LabelConditionedNetwork, parameter_groups: ParameterGroups, settings: Amn) -> None:
        super().__init__(network, parameter_groups, settings)
        self.label_smoothing, self.balance = settings.label_smoothing, settings.balance

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.network(batch["image"], batch["tags"]).float()
        labels = downsample_labels(batch["labels"], (logits.shape[2], logits.shape[3]))
        return {"loss": smoothed_loss(logits, labels, self.label_smoothing, self.mean_over_processes, self.balance)}


def smoothed_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.4,
    reduce_mean: Callable[[Tensor], Tensor] = Tensor.float,
    balance: bool = True,
) -> Tensor:
    """Compute the balanced cross-entropy with label smoothing.

    The loss is half the mean over the background pixels plus half the mean over the foreground pixels.

    Args:
        logits: [B, K + 1, h, w], background first.
        labels: [B, h, w] int: 0 background, class ids, 255 ignored pixels, which count in neither mean.
        label_smoothing: ε; the target is 1 − ε for the label and ε / K for each of the K other channels.
        reduce_mean: returns the mean of the pixel counts over the processes that share a batch
            (`Training.mean_over_processes`).
        balance: False: the mean over all pixels that are not ignored instead, an ablation of the paper.

    Returns:
        A scalar. The half of a kind without pixels in the batch is 0.
    """
    log_probabilities = logits.log_softmax(1)
    of_label = log_probabilities.gather(1, labels.where(labels != IGNORE_INDEX, 0)[:, None])[:, 0]
    of_others = (log_probabilities.sum(1) - of_label) / (logits.shape[1] - 1)
    losses = -(1 - label_smoothing) * of_label - label_smoothing * of_others
    known = labels != IGNORE_INDEX
    kinds = torch.stack([labels == 0, (labels != 0) & known] if balance else [known])
    counts = reduce_mean(kinds.sum((1, 2, 3)))
    means = (losses * kinds).sum((1, 2, 3)) / counts.where(counts > 0, 1)
    return means.sum() / len(kinds)


@torch.inference_mode()
def mean_logits(
    network: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    tags: Tensor,
    scales: Sequence[float] = CAM_SCALES,
    resize: Resize = BILINEAR,
) -> Tensor:
    """Compute the logits at stride 4, averaged over scales and horizontal flips.

    Args:
        network: a `LabelConditionedNetwork` in eval mode.
        images: [B, 3, H, W] normalized.
        tags: [B, K] of 0 and 1.
        scales: factors by which the images are resized.
        resize: how they are resized.

    Returns:
        [B, K + 1, ceil(H / 4), ceil(W / 4)] float32.
    """
    size = (images.shape[2], images.shape[3])
    summed = torch.zeros(1, device=images.device)
    for scale in scales:
        logits = network(scaled_with_hflip(images, scale, resize), torch.cat([tags, tags])).float()
        plain, flipped = logits.chunk(2)
        mean = (plain + flipped.flip(3)) / 2
        summed = summed + F.interpolate(mean, grid_size(size), mode="bilinear", align_corners=False)
    return summed / len(scales)


def renormalize_maps(maps: Tensor, not_background: Tensor, where: Renormalize = "seed") -> Tensor:
    """Stretch each map to 0..1: (map − minimum) / (maximum − minimum + 1e-5).

    Args:
        maps: [L, h, w] probabilities.
        not_background: [H, W] bool at the image's size, True where the seed is not background.
        where: at which pixels the stretched value replaces the probability: "seed" (those of `not_background`),
            "everywhere" or "nowhere".

    Returns:
        [L, h, w].
    """
    if where == "nowhere":
        return maps
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = (maps - low) / (high - low + EPSILON)
    if where == "everywhere":
        return stretched
    on_grid = downsample_labels(not_background[None], (maps.shape[1], maps.shape[2]))[0] == 1
    return torch.where(on_grid, stretched, maps)
