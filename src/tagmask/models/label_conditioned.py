"""The network of AMN: per-pixel logits of features that are weighted channel by channel, depending on the image's tags.

Lee, Kim and Shim, "Threshold Matters in WSSS: Manipulating the Activation for the Robust and Accurate Segmentation
Model Against Thresholds", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from tagmask.models.backbone import Backbone
from tagmask.models.saved_network import BackboneConfig, ClassesConfig, SavedNetwork
from tagmask.models.segmenter import DilatedHead


class LabelConditionedConfig(ClassesConfig):
    """The entries of a label-conditioned network's config.json."""

    dropout: float = Field(ge=0, le=1)
    conditioned: bool = True
    backbone: BackboneConfig


class LabelConditionedNetwork(SavedNetwork):
    """Compute per-pixel logits from images [B, 3, H, W] and their tags [B, K].

    The logits are DilatedHead(dropout(f ⊙ e)) with the features f [B, D, h, w] and the condition e = Linear(tags)
    [B, D], which is the same at every pixel.

    Args:
        backbone: computes the features.
        classes: the K class names, without background.
        dropout: the probability of dropping a feature in training.
        conditioned: False: e = 1, an ablation of the paper.
    """

    kind: ClassVar[str] = "label_conditioned"
    file_name: ClassVar[str] = "label_conditioned.safetensors"
    title: ClassVar[str] = "a label-conditioned network"
    config_model = LabelConditionedConfig

    def __init__(
        self, backbone: Backbone, classes: tuple[str, ...], dropout: float = 0.1, *, conditioned: bool = True
    ) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        self.condition = nn.Linear(len(classes), backbone.channels) if conditioned else None
        self.dropout = nn.Dropout(dropout)
        self.head = DilatedHead(backbone.channels, len(classes) + 1)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "classes": self.classes,
            "dropout": self.dropout.p,
            "conditioned": self.condition is not None,
            "backbone": self.backbone.config,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        backbone, conditioned = Backbone(**config["backbone"]), config.get("conditioned", True)
        return cls(backbone, tuple(config["classes"]), config["dropout"], conditioned=conditioned)

    def forward(self, images: Tensor, tags: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: [B, 3, H, W] float, normalized.
            tags: [B, K] float, 1 for the classes of the image, else 0.

        Returns:
            [B, K + 1, h, w] at the stride of the backbone, background first.
        """
        features = self.backbone(images)
        if self.condition is not None:
            features = features * self.condition(tags)[:, :, None, None]
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that do not belong to the backbone."""
        condition = [] if self.condition is None else self.condition.parameters()
        return [*condition, *self.head.parameters()]
