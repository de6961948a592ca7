"""CAM: class activation maps of a classifier that is trained on tags.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, with the training and the
multi-scale inference of the public code of IRN (Ahn, Cho and Kwak, CVPR 2019). Shared base of the other methods:
methods may import from this module and from `segment`, and from no other method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.data.loading import TrainingSet
from tagmask.data.samples import Sample
from tagmask.data.transforms import RandomLongSide, training_transform
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._batches import write_missing_files
from tagmask.methods._frozen import fit_frozen_classifier
from tagmask.methods._settings import (
    CAM_SCALES,
    DILATION,
    BackboneName,
    ClassifierSettings,
    FeatureSettings,
    MapSettings,
)
from tagmask.models.backbone import Backbone, Dilation
from tagmask.models.classifier import Classifier
from tagmask.models.inference import BILINEAR, Resize, scaled_with_hflip
from tagmask.stage import ArtifactKind, InferenceContext, MakeFiles, StageContext
from tagmask.training import ParameterGroup, Training, fit, train_once

EPSILON = 1e-5  # each map is divided by (its maximum + EPSILON), as in IRN's public code

Activations = Callable[[Tensor], Tensor]
"""A function from normalized images [B, 3, H, W] to non-negative activations [B, K, h, w] of all K classes."""
MapsOf = Callable[[Tensor, Sequence[Sequence[int]]], list[ResponseMaps]]
"""A function from normalized images [B, 3, H, W] of equal size and their tags (class ids) to their response maps."""


class Cam(FeatureSettings, ClassifierSettings):
    """Train a classifier on the tags and make its class activation maps."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ()
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    backbone: BackboneName = Field("resnet50", description="any timm CNN or ViT")
    weights: str = Field(
        "pretrained",
        description="initial weights: pretrained (downloaded by timm), none (random) or the path of a file",
    )
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model")
    dilation: Dilation = Field("full", description=DILATION)
    head_lr: float = Field(1.0, gt=0, description="learning rate of the weights W of the classes")

    def inference_settings(self) -> tuple[str, ...]:
        return () if self.frozen_stride == "all" else super().inference_settings()  # it learns from all views

    def run(self, context: StageContext) -> None:
        train_once(context, Classifier, lambda: self.train(context))
        context.make_files("maps", partial(prepare_cams, self))

    def train(self, context: StageContext) -> None:
        """Train the classifier and write it to the stage folder."""
        torch.manual_seed(context.seed)
        backbone = Backbone(self.backbone, self.weights, self.output_stride, self.options, self.dilation)
        if (weights := self.initial_weights()) and weights.file:
            context.reporter.info(
                f"weights of {weights.file}: images are normalized with mean {backbone.mean} and standard deviation "
                f"{backbone.std}; if the weights were trained with others, set {context.folder.name}.options="
                "'{pretrained_cfg_overlay: {mean: [R, G, B], std: [R, G, B]}}'"
            )
        classifier = Classifier(backbone, context.images.classes)
        backbone.freeze(self.frozen_stride, self.freeze_norm)
        if self.frozen_stride == "all":
            fit_frozen_classifier(classifier, context, self)
        else:
            self._fit(classifier, context)
        if context.compute.is_main_process:
            classifier.save(context.folder.path, weights=self.weights)

    def _fit(self, classifier: Classifier, context: StageContext) -> None:
        backbone = classifier.backbone
        transform = training_transform(
            RandomLongSide(*self.long_side_range, self.interpolation), self.crop_size, backbone.mean, backbone.std
        )
        parameter_groups = [
            ParameterGroup(backbone.parameters(), self.lr),
            ParameterGroup([classifier.weight], self.head_lr),
        ]
        module = CamTraining(classifier, parameter_groups, self)
        data = TrainingSet(context.images, transform, context.seed)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)


class CamTraining(Training):
    """Multi-label soft margin loss of the logits W · GAP(f)."""

    network: Classifier

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = F.multilabel_soft_margin_loss(self.network(batch["image"]), batch["tags"], reduction="none")
        return {"loss": self.mean_over_images(losses)}


def prepare_cams(settings: MapSettings, context: StageContext) -> MakeFiles:
    """Load the classifier of a stage, and return the function that makes its CAMs."""
    classifier = Classifier.load(context.folder.path, output_stride=settings.inference_stride)
    return partial(make_missing_maps, classifier, settings=settings)


def make_missing_maps(
    classifier: Classifier, context: InferenceContext, settings: MapSettings, maps_of: MapsOf | None = None
) -> None:
    """Write the response maps of every image that has none yet.

    Args:
        classifier: the network; it must not be trained or saved afterwards (see `prepare_for_inference_inplace`).
        context: the images, and the folder to write to.
        settings: scales and batch size.
        maps_of: makes the maps of a batch; None: the classifier's CAMs by `response_maps`.
    """
    if maps_of is None:

        def maps_of(images: Tensor, tags: Sequence[Sequence[int]]) -> list[ResponseMaps]:
            resize = settings.resize(classifier.backbone)
            return response_maps(classifier.activations, images, tags, settings.scales, resize)

    make = maps_of
    write_missing_maps(
        classifier,
        context,
        lambda images, samples: make(images, [sample.tags or () for sample in samples]),
        settings.inference_batch_size,
    )


def write_missing_maps(
    network: Any,
    context: InferenceContext,
    maps_of_batch: Callable[[Tensor, Sequence[Sample]], list[ResponseMaps]],
    batch_size: int,
) -> None:
    """Write the response maps of every image that has none yet, batch by batch.

    The maps of a large image are computed on a reduced one (`tagmask.large_images`), and are then enlarged.

    Args:
        network: a `Backbone`, or a network with a `backbone`; it is prepared for inference in place.
        context: the images, and the folder to write to.
        maps_of_batch: makes the maps from normalized images [B, 3, H, W] and their samples.
        batch_size: the largest number of images in a batch.
    """
    write_missing_files(
        network,
        context,
        "response maps",
        context.folder.maps_path,
        maps_of_batch,
        lambda maps, sample, path: maps.resized(sample.size or maps.size).save(path),
        batch_size,
    )


@torch.inference_mode()
def response_maps(
    activations: Activations,
    images: Tensor,
    tags: Sequence[Sequence[int]],
    scales: Sequence[float] = CAM_SCALES,
    resize: Resize = BILINEAR,
) -> list[ResponseMaps]:
    """Compute multi-scale class activation maps of the tagged classes at stride 4.

    For each scale, the activations of the image and of its horizontal flip (flipped back) are added, resized
    bilinearly to the stride-4 grid, and summed over the scales. Each map is divided by (its maximum + 1e-5).

    Args:
        activations: e.g. `Classifier.activations`.
        images: [B, 3, H, W] normalized, of equal size.
        tags: the class ids (from 1) of each image.
        scales: factors by which the images are resized.
        resize: how they are resized.

    Returns:
        One `ResponseMaps` per image; an image without tags has maps [0, h, w].
    """
    size = (images.shape[2], images.shape[3])
    grid = grid_size(size)
    image_indices = [i for i, ids in enumerate(tags) for _ in ids]
    channels = [class_id - 1 for ids in tags for class_id in ids]
    summed = torch.zeros(len(image_indices), *grid, device=images.device)
    for scale in scales if image_indices else ():
        plain, flipped = activations(scaled_with_hflip(images, scale, resize)).float().chunk(2)
        tagged = plain[image_indices, channels] + flipped.flip(3)[image_indices, channels]
        summed += F.interpolate(tagged[None], grid, mode="bilinear", align_corners=False)[0]
    summed /= summed.amax((1, 2), keepdim=True) + EPSILON
    maps = summed.cpu().numpy()
    starts = np.cumsum([0, *map(len, tags)])
    return [
        ResponseMaps(np.array(sorted(ids), np.int64), maps[start:end][np.argsort(ids, kind="stable")], size)
        for ids, start, end in zip(tags, starts[:-1], starts[1:], strict=True)
    ]
