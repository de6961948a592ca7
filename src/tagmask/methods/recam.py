"""ReCAM: a converged CAM, re-activated with softmax cross-entropy (Chen et al., CVPR 2022; methods, section 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tagmask.data.loading import TrainingSet
from tagmask.data.transforms import RandomLongSide, training_transform
from tagmask.methods._settings import LongSide, Scales, Stride
from tagmask.methods.cam import EPSILON, SCALES, make_maps
from tagmask.models.classifier import FILE, Classifier
from tagmask.stage import ArtifactKind, Method, StageContext
from tagmask.training import Optimizer, Training, fit, train_once


class ReCam(Method):
    """Go on training a classifier with a second one on its class features, and make maps with both."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    sce_weight: float = Field(1.0, ge=0, description="λ of the softmax cross-entropy; 0.1 in the paper's COCO setting")
    keep_sign: bool = Field(
        False,
        description="a channel that speaks against a class in both classifiers does not speak for it: the maps' "
        "weights are V ∘ ReLU(W), not the paper's V ∘ W (docs/claims.md)",
    )
    frozen_stride: int = Field(0, description="layers up to this stride stay as they are; 0: all learn")
    freeze_norm: bool = Field(True, description="keep the norm layers' running statistics")
    epochs: int = Field(4, ge=0)
    batch_size: int = Field(16, ge=1)
    crop_size: int = Field(512, ge=16, description="pixels")
    long_side_range: LongSide = Field((320, 640), description="resize the long side to a random length in this range")
    optimizer: Optimizer = "sgd"
    lr: float = Field(5e-5, gt=0, description="of the backbone and the first classifier W")
    head_lr: float = Field(5e-4, gt=0, description="of the second classifier V")
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
        """Train both classifiers and write the one whose maps are of both to `work.folder`."""
        torch.manual_seed(context.seed)
        network = ReCamNetwork(Classifier.load(context.inputs["classifier"]))
        backbone = network.classifier.backbone
        backbone.freeze(self.frozen_stride, self.freeze_norm)
        transform = training_transform(
            RandomLongSide(*self.long_side_range), self.crop_size, backbone.mean, backbone.std
        )
        module = ReCamTraining(
            network,
            [(network.classifier.parameters(), self.lr), ([network.second], self.head_lr)],
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        module.sce_weight = self.sce_weight
        data = TrainingSet(context.images, transform, context.seed)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.reactivated(self.keep_sign).save(context.folder)


class ReCamNetwork(nn.Module):
    """A classifier (f and W), and the second classifier V [K, D] that sees its class features."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.second = nn.Parameter(torch.empty_like(classifier.weight))
        nn.init.kaiming_uniform_(self.second, a=5**0.5)  # as nn.Conv2d's own

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] → W's logits [B, K], and V's logits of each class feature [B, K, K]."""
        features = self.classifier.backbone(images)
        of_classes, _ = class_features(features, self.classifier.weight)
        return self.classifier.logits(features), of_classes @ self.second.T

    def reactivated(self, keep_sign: bool = False) -> Classifier:
        """The classifier, with V ∘ W (or V ∘ ReLU(W)) as the weights of its response maps."""
        first = self.classifier.weight
        self.classifier.map_weight = self.second * (first.relu() if keep_sign else first)
        return self.classifier


class ReCamTraining(Training):
    """L_bce + λ L_sce."""

    network: ReCamNetwork
    sce_weight: float

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, class_logits = self.network(batch["image"])
        bce = F.multilabel_soft_margin_loss(logits, batch["tags"])
        sce = softmax_loss(class_logits, batch["tags"])
        return {"loss": bce + self.sce_weight * sce, "bce": bce, "sce": sce}


def class_features(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees of each class: its features under the class's own normalised CAM.

    Args:
        features: f [B, D, h, w].
        weight: W [K, D].

    Returns:
        f_k [B, K, D], the plain mean of m_k · f over the grid, and the soft masks m_k [B, K, h, w].
    """
    cams = torch.relu(F.conv2d(features, weight[:, :, None, None]))
    masks = cams / (cams.amax((2, 3), keepdim=True) + EPSILON)  # not detached: L_sce shapes the masks, too
    return masks.flatten(2) @ features.flatten(2).mT / masks[0, 0].numel(), masks


def softmax_loss(class_logits: Tensor, tags: Tensor) -> Tensor:
    """L_sce: softmax cross-entropy of each tagged class's feature, whose one label is that class.

    Args:
        class_logits: [B, K, K]; row k are the K logits of f_k.
        tags: [B, K] of 0 and 1.

    Returns:
        The mean over an image's tags, summed over images / B. An image without tags adds nothing, but counts in B.
    """
    losses = -class_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
    return ((losses * tags).sum(1) / tags.sum(1).clamp(min=1)).mean()
