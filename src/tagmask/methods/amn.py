"""AMN: activation manipulation against threshold sensitivity (Lee, Kim and Shim, CVPR 2022; methods, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.data.loading import TrainingSet, multi_hot, whole_images
from tagmask.data.transforms import RandomScale, labels_on_grid, normalize_images, training_transform
from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._seeds import SeedFolder, write_seeds
from tagmask.methods._settings import BackboneName, ScaleRange, Scales, Stride
from tagmask.methods.cam import SCALES
from tagmask.models.classifier import initial_backbone
from tagmask.models.inference import prepare_for_inference, with_hflip
from tagmask.models.label_conditioned import FILE, LabelConditioned
from tagmask.refine.label_maps import ConfidentSeeds
from tagmask.stage import ArtifactKind, Method, StageContext, group_by_size
from tagmask.training import Optimizer, Training, fit, train_once

Renormalize = Literal["seed", "everywhere", "nowhere"]


class Amn(Method):
    """Learn per-pixel activations from confident seeds, with the tags as a condition, and make new maps of them."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    seeds: ConfidentSeeds = Field(ConfidentSeeds(), description="what the network learns from")
    # The classifier's backbone, because it is there without a download and whatever network the run is on.
    backbone: BackboneName | None = Field(None, description="any timm network; null: the classifier's")
    weights: str = Field("classifier", description="start from: classifier (this run's), pretrained, none, or a file")
    options: dict[str, Any] | None = Field(None, description="further arguments of timm.create_model")
    output_stride: Stride = 16
    dropout: float = Field(0.1, ge=0, lt=1, description="before the head, in training alone")
    label_smoothing: float = Field(0.4, ge=0, lt=1, description="ε: the share of the target that the other classes get")
    freeze_norm: bool = Field(True, description="keep the norm layers' running statistics")
    epochs: int = Field(5, ge=0)
    batch_size: int = Field(16, ge=1)
    crop_size: int = Field(512, ge=16, description="pixels")
    scale: ScaleRange = Field((0.5, 1.5), description="images are resized by a random factor in this range")
    optimizer: Optimizer = "adam"
    lr: float = Field(5e-6, gt=0, description="of the backbone")
    head_lr: float = Field(1e-4, gt=0, description="of the new layers")
    weight_decay: float = 1e-4
    power: float = Field(0.0, ge=0, description="of the learning rate's decay; 0: none, as the paper states none")
    scales: Scales = Field(SCALES, description="of the maps; each with its mirror image")
    renormalize: Renormalize = Field(
        "seed",
        description="where a map is stretched to 0..1 (min-max): seed: where the seed is not background, so that "
        "the maps depend on the seeds once more (the paper's code); everywhere; nowhere: probabilities as they are",
    )
    inference_batch_size: int = Field(16, ge=1, description="images of one size that are mapped together")

    def run(self, context: StageContext) -> None:
        seeds = write_seeds(self.seeds, context)
        train_once(context, FILE, lambda: self.train(context, seeds))
        self.make_maps(LabelConditioned.load(context.folder), context, seeds)

    def train(self, context: StageContext, seeds: SeedFolder) -> None:
        """Train the network on the seeds and write it to `work.folder`."""
        torch.manual_seed(context.seed)
        classifier = context.inputs["classifier"]
        backbone = initial_backbone(classifier, self.backbone, self.weights, self.output_stride, self.options)
        backbone.freeze_norm = self.freeze_norm
        network = LabelConditioned(backbone, context.images.classes, self.dropout)
        transform = training_transform(RandomScale(*self.scale), self.crop_size, backbone.mean, backbone.std)
        module = AmnTraining(
            network,
            [(backbone.parameters(), self.lr), (network.new_parameters(), self.head_lr)],
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            power=self.power,
        )
        module.label_smoothing = self.label_smoothing
        data = TrainingSet(context.images, transform, context.seed, seeds)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.save(context.folder)

    def make_maps(self, network: LabelConditioned, context: StageContext, seeds: SeedFolder) -> None:
        """Write the maps of every image of the stage that has none yet."""
        groups = context.pending_shard(
            group_by_size(context.images.samples, self.inference_batch_size, context.compute.batch_pixels),
            context.maps_path,
        )
        network = prepare_for_inference(network, context.compute)
        backbone = network.backbone
        with context.progress("response maps", sum(map(len, groups))) as advance, context.compute.autocast(network):
            for samples, pixels in whole_images(groups, context.compute) if groups else ():
                images = normalize_images(pixels.to(context.compute.device), backbone.mean, backbone.std)
                tags = torch.stack([multi_hot(sample.tags, len(network.classes)) for sample in samples])
                logits = mean_logits(network, images, tags.to(context.compute.device), self.scales)
                for sample, probabilities in zip(samples, logits.softmax(1).cpu(), strict=True):
                    classes = sorted(sample.tags or ())
                    known = torch.from_numpy(seeds(sample)["labels"]) != 0
                    maps = renormalize_maps(probabilities[[0, *classes]], known, self.renormalize).numpy()
                    size = (pixels.shape[2], pixels.shape[3])
                    found = ResponseMaps(np.array(classes, np.int64), maps[1:], size, background=maps[0])
                    found.save(context.maps_path(sample))
                advance(len(samples))


class AmnTraining(Training):
    """The balanced, smoothed per-pixel loss against the seeds."""

    network: LabelConditioned
    label_smoothing: float

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.network(batch["image"], batch["tags"]).float()
        labels = labels_on_grid(batch["labels"], (logits.shape[2], logits.shape[3]))
        return {"loss": balanced_loss(logits, labels, self.label_smoothing, self.all_mean)}


def balanced_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.4,
    over_processes: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:
    """Half the mean over background pixels plus half that over foreground pixels, whichever are more.

    Args:
        logits: [B, K + 1, h, w], background first.
        labels: [B, h, w] int: 0, class ids, 255 unsure (in neither mean).
        smoothing: ε; the target is 1 − ε at the label and ε / K at each of the other K channels.
        over_processes: the counts' mean, for processes whose common batch this is a part of (`Training.all_mean`).

    Returns:
        A scalar. The half of a kind that has no pixel in the batch is 0.
    """
    log_probabilities = logits.log_softmax(1)
    label = log_probabilities.gather(1, labels.where(labels != IGNORE_INDEX, 0)[:, None])[:, 0]
    others = (log_probabilities.sum(1) - label) / (logits.shape[1] - 1)
    losses = -(1 - label_smoothing) * label - label_smoothing * others
    kinds = torch.stack([labels == 0, (labels != 0) & (labels != IGNORE_INDEX)])
    counts = over_processes(kinds.sum((1, 2, 3)))
    halves = (losses * kinds).sum((1, 2, 3)) / counts.where(counts > 0, 1)
    return halves.sum() / 2


@torch.inference_mode()
def mean_logits(
    network: Callable[[Tensor, Tensor], Tensor], images: Tensor, tags: Tensor, scales: Sequence[float] = SCALES
) -> Tensor:
    """The network's logits at stride 4, averaged over scales and mirror images.

    Args:
        network: `LabelConditioned`, in eval mode.
        images: [B, 3, H, W] normalised.
        tags: [B, K] of 0 and 1.
        scales: of the image.

    Returns:
        [B, K + 1, ceil(H / 4), ceil(W / 4)] float32.
    """
    size = (images.shape[2], images.shape[3])
    summed = torch.zeros(1, device=images.device)
    for scale in scales:
        logits = network(with_hflip(images, scale), torch.cat([tags, tags])).float()
        straight, mirrored = logits.chunk(2)
        pair = (straight + mirrored.flip(3)) / 2
        summed = summed + F.interpolate(pair, grid_size(size), mode="bilinear", align_corners=False)
    return summed / len(scales)


def renormalize_maps(maps: Tensor, known: Tensor, where: Renormalize = "seed") -> Tensor:
    """Stretch each map to 0..1 (min-max over the whole map); a map that is the same everywhere stays as it is.

    Args:
        maps: [L, h, w] probabilities.
        known: [H, W] bool at the image's size, where the seed is not background.
        where: at the pixels of `known`, at all, or at none.
    """
    if where == "nowhere":
        return maps
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (maps - low) / (high - low), maps)
    if where == "everywhere":
        return stretched
    here = labels_on_grid(known[None], (maps.shape[1], maps.shape[2]))[0] == 1
    return torch.where(here, stretched, maps)
