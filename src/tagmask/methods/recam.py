"""ReCAM: a converged classifier, trained further with softmax cross-entropy on class features.

Chen et al., "Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation", CVPR 2022 (arXiv:2203.00962),
Section 4.1, with the values of its public code.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tagmask.data.loading import TrainingSet
from tagmask.data.transforms import RandomLongSide, training_transform
from tagmask.methods._settings import FROZEN_STRIDE, ClassifierSettings, FrozenStride
from tagmask.methods.cam import EPSILON, prepare_cams
from tagmask.models.classifier import Classifier
from tagmask.stage import ArtifactKind, StageContext
from tagmask.training import ParameterGroup, ParameterGroups, Training, fit, train_once

MapWeights = Literal["product", "first", "second"]


class ReCam(ClassifierSettings):
    """Train a classifier further, together with a second one on its class features, and make maps with both."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    sce_weight: float = Field(
        1.0, ge=0, description="weight λ of the softmax cross-entropy; the paper uses 0.1 on COCO"
    )
    map_weights: MapWeights = Field(
        "product",
        description="the weights of the maps: product (V ∘ W), first (the retrained W, as the public code on COCO) or "
        "second (V)",
    )
    keep_sign: bool = Field(
        False,
        description="make maps with V ∘ ReLU(W) instead of the paper's V ∘ W, so that a channel that is negative in "
        "both classifiers does not count for the class",
    )
    frozen_stride: FrozenStride = Field(0, description=FROZEN_STRIDE)
    epochs: int = Field(4, ge=0, description="passes over the training images")
    lr: float = Field(5e-5, gt=0, description="learning rate of the backbone and of the first classifier W")
    head_lr: float = Field(5e-4, gt=0, description="learning rate of the second classifier V")

    def run(self, context: StageContext) -> None:
        train_once(context, Classifier, lambda: self.train(context))
        context.make_files("maps", partial(prepare_cams, self))

    def train(self, context: StageContext) -> None:
        """Train both classifiers, and write one whose CAM weights combine them to the stage folder."""
        torch.manual_seed(context.seed)
        network = ReCamNetwork(Classifier.load(context.inputs["classifier"].path))
        backbone = network.classifier.backbone
        backbone.freeze(self.frozen_stride, self.freeze_norm)
        transform = training_transform(
            RandomLongSide(*self.long_side_range, self.interpolation), self.crop_size, backbone.mean, backbone.std
        )
        parameter_groups = [
            ParameterGroup(network.classifier.parameters(), self.lr),
            ParameterGroup([network.second_weight], self.head_lr),
        ]
        module = ReCamTraining(network, parameter_groups, self)
        data = TrainingSet(context.images, transform, context.seed)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.combined_classifier(self.map_weights, keep_sign=self.keep_sign).save(context.folder.path)


class ReCamNetwork(nn.Module):
    """A classifier (features f, weights W [K, D]) and a second classifier V [K, D] on its class features.

    Args:
        classifier: the converged classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.second_weight = nn.Parameter(torch.empty_like(classifier.weight))
        nn.init.kaiming_uniform_(self.second_weight, a=5**0.5)  # the default of nn.Conv2d

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, 3, H, W] to the logits of W [B, K], and of V for each class feature [B, K, K]."""
        features = self.classifier.backbone(images)
        with torch.autocast(features.device.type, enabled=False):
            class_features, _ = compute_class_features(features.to(self.second_weight.dtype), self.classifier.weight)
            return self.classifier.logits(features), class_features @ self.second_weight.T

    def combined_classifier(self, map_weights: MapWeights = "product", *, keep_sign: bool = False) -> Classifier:
        """Return the classifier with V ∘ W (or V ∘ ReLU(W) to keep the sign), W or V as the weights of its maps."""
        first, second = self.classifier.weight.detach(), self.second_weight.detach()
        product = second * (first.relu() if keep_sign else first)
        self.classifier.map_weight = {"product": product, "first": first, "second": second}[map_weights]
        return self.classifier


class ReCamTraining(Training):
    """L = L_bce + λ L_sce."""

    network: ReCamNetwork

    def __init__(self, network: ReCamNetwork, parameter_groups: ParameterGroups, settings: ReCam) -> None:
        super().__init__(network, parameter_groups, settings)
        self.sce_weight = settings.sce_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, class_logits = self.network(batch["image"])
        bce = self.mean_over_images(F.multilabel_soft_margin_loss(logits, batch["tags"], reduction="none"))
        sce = self.mean_over_images(softmax_losses(class_logits, batch["tags"]))
        return {"loss": bce + self.sce_weight * sce, "bce": bce, "sce": sce}


def compute_class_features(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the features of each class under its own normalized CAM.

    Args:
        features: f [B, D, h, w].
        weight: W [K, D].

    Returns:
        The class features f_k [B, K, D], which are the plain mean of m_k · f over the grid, and the soft masks m_k
        [B, K, h, w]. Gradients flow through the masks.
    """
    cams = torch.relu(F.conv2d(features, weight[:, :, None, None]))
    masks = cams / (cams.amax((2, 3), keepdim=True) + EPSILON)
    return masks.flatten(2) @ features.flatten(2).mT / masks[0, 0].numel(), masks


def softmax_losses(class_logits: Tensor, tags: Tensor) -> Tensor:
    """Compute L_sce of each image: the softmax cross-entropy of each tagged class's feature, whose label is that class.

    Args:
        class_logits: [B, K, K]; row k holds the K logits of f_k.
        tags: [B, K] of 0 and 1.

    Returns:
        [B]: the mean over the tags of each image, 0 for an image without tags. L_sce is their mean.
    """
    losses = -class_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
    return (losses * tags).sum(1) / tags.sum(1).clamp(min=1)
