"""CAM: class activation maps of a classifier trained on tags (Zhou et al., CVPR 2016), as IRN's code trains it.

The ground that the other methods stand on, with `segment` for what trains or asks a segmentation network: they import
from these two, and from no other method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.data.loading import TrainingSet, whole_images
from tagmask.data.transforms import RandomLongSide, normalize_images, training_transform
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._settings import BackboneName, LongSide, Scales, Stride
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import FILE, Classifier
from tagmask.models.inference import prepare_for_inference, with_hflip
from tagmask.stage import ArtifactKind, Method, StageContext, group_by_size
from tagmask.training import Optimizer, Training, fit, train_once

SCALES = (1.0, 0.5, 1.5, 2.0)
EPSILON = 1e-5  # each map is divided by (its maximum + this)

Activations = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] → non-negative activations [B, K, h, w]."""
MapsOf = Callable[[Activations, Tensor, Sequence[Sequence[int]], Sequence[float]], list[ResponseMaps]]
"""What makes maps of activations, as `response_maps` does."""


class Cam(Method):
    """Train a classifier on the tags and make its class activation maps (methods: CAM, section 1)."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ()
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    backbone: BackboneName = Field("resnet50", description="any timm CNN or ViT")
    weights: str = Field("pretrained", description="pretrained (timm's hub), none, or a local file")
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model")
    output_stride: Stride = Field(16, description="of the features, where the backbone can be dilated")
    frozen_stride: int = Field(8, description="layers up to this stride stay as they are; 0: all learn")
    freeze_norm: bool = Field(True, description="keep the norm layers' running statistics")
    epochs: int = Field(5, ge=0)
    batch_size: int = Field(16, ge=1)
    crop_size: int = Field(512, ge=16, description="pixels")
    long_side_range: LongSide = Field((320, 640), description="resize the long side to a random length in this range")
    optimizer: Optimizer = "sgd"
    lr: float = Field(0.1, gt=0, description="of the backbone")
    head_lr: float = Field(1.0, gt=0, description="of the 1×1 convolution")
    momentum: float = 0.0
    weight_decay: float = 1e-4
    scales: Scales = Field(SCALES, description="of the response maps; each with its mirror image")
    inference_stride: Stride | None = Field(
        None, description="output_stride when mapping, which may be finer than in training; null: the same"
    )
    inference_batch_size: int = Field(16, ge=1, description="images of one size that are mapped together")

    def run(self, context: StageContext) -> None:
        train_once(context, FILE, lambda: self.train(context))
        classifier = Classifier.load(context.folder, output_stride=self.inference_stride)
        make_maps(classifier, context, scales=self.scales, batch_size=self.inference_batch_size)

    def train(self, context: StageContext) -> None:
        """Train the classifier and write it to `work.folder`."""
        torch.manual_seed(context.seed)
        backbone = Backbone(self.backbone, self.weights, self.output_stride, self.options)
        classifier = Classifier(backbone, context.images.classes)
        backbone.freeze(self.frozen_stride, self.freeze_norm)
        transform = training_transform(
            RandomLongSide(*self.long_side_range), self.crop_size, backbone.mean, backbone.std
        )
        groups = [(backbone.parameters(), self.lr), ([classifier.weight], self.head_lr)]
        module = CamTraining(
            classifier,
            groups,
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        data = TrainingSet(context.images, transform, context.seed)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            classifier.save(context.folder, weights=self.weights)


class CamTraining(Training):
    """Multi-label soft margin loss on W · GAP(f)."""

    network: Classifier

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.multilabel_soft_margin_loss(self.network(batch["image"]), batch["tags"])}


def make_maps(
    classifier: Classifier,
    context: StageContext,
    *,
    scales: Sequence[float] = SCALES,
    batch_size: int = 16,
    maps_of: MapsOf | None = None,
) -> None:
    """Write the response maps of every image of the stage that has none yet, made by `maps_of` (`response_maps`)."""
    maps_of = maps_of or response_maps
    groups = context.pending_shard(
        group_by_size(context.images.samples, batch_size, context.compute.batch_pixels), context.maps_path
    )
    classifier = prepare_for_inference(classifier, context.compute)
    backbone = classifier.backbone
    with context.progress("response maps", sum(map(len, groups))) as advance, context.compute.autocast(classifier):
        for samples, pixels in whole_images(groups, context.compute) if groups else ():
            images = normalize_images(pixels.to(context.compute.device), backbone.mean, backbone.std)
            tags = [sample.tags or () for sample in samples]
            for sample, maps in zip(samples, maps_of(classifier.activations, images, tags, scales), strict=True):
                if not context.maps_path(sample).exists():  # the others are here to make the batch what it was
                    maps.save(context.maps_path(sample))
            advance(len(samples))


@torch.inference_mode()
def response_maps(
    activations: Activations, images: Tensor, tags: Sequence[Sequence[int]], scales: Sequence[float] = SCALES
) -> list[ResponseMaps]:
    """Multi-scale, mirrored class activation maps of the tagged classes, at stride 4.

    For each scale, the activations of the image and of its mirror image (mirrored back) are added, brought
    bilinearly to the stride-4 grid and summed over scales; each map is divided by (its maximum + 1e-5).

    Args:
        activations: the network, e.g. `Classifier.activations`.
        images: [B, 3, H, W] normalised, of one size.
        tags: for each image its class ids (1-based).
        scales: of the image.

    Returns:
        One `ResponseMaps` an image. An image without tags has none: maps [0, h, w].
    """
    size = (images.shape[2], images.shape[3])
    grid = grid_size(size)
    image_of = [i for i, ids in enumerate(tags) for _ in ids]
    class_of = [id_ - 1 for ids in tags for id_ in ids]
    summed = torch.zeros(len(image_of), *grid, device=images.device)
    for scale in scales if image_of else ():
        straight, mirrored = activations(with_hflip(images, scale)).float().chunk(2)
        tagged = straight[image_of, class_of] + mirrored.flip(3)[image_of, class_of]
        summed += F.interpolate(tagged[None], grid, mode="bilinear", align_corners=False)[0]
    summed /= summed.amax((1, 2), keepdim=True) + EPSILON
    parts = summed.cpu().numpy()
    starts = np.cumsum([0, *map(len, tags)])
    return [
        ResponseMaps(np.array(sorted(ids), np.int64), parts[a:b][np.argsort(ids, kind="stable")], size)
        for ids, a, b in zip(tags, starts[:-1], starts[1:], strict=True)
    ]
