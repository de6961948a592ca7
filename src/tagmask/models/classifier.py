"""The CAM classifier: a backbone, global average pooling and a 1×1 convolution without bias.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.models.backbone import Backbone, Dilation
from tagmask.models.saved_network import BackboneConfig, ClassesConfig, SavedNetwork


class ClassifierConfig(ClassesConfig):
    """The entries of a classifier's config.json."""

    backbone: BackboneConfig


class Classifier(SavedNetwork):
    """Compute a logit of each class, and the activations whose mean over all pixels is that logit.

    With features f [B, D, h, w] and weights W [K, D], the logits are W · mean(f), and the class activation map of
    class k is W_k · f (Zhou et al., CVPR 2016, section 2, equations 1 and 2).

    Args:
        backbone: computes the features.
        classes: the K class names, without background.

    Attributes:
        weight: W [K, D], a parameter.
        map_weight: [K, D], the weights of the activations: W, unless other weights were assigned (ReCAM does that).
            They are saved with the network, and are not trained.
    """

    kind: ClassVar[str] = "classifier"
    file_name: ClassVar[str] = "classifier.safetensors"
    title: ClassVar[str] = "a classifier"
    config_model = ClassifierConfig

    def __init__(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.weight = nn.Parameter(torch.empty(len(classes), backbone.channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # the initialization of nn.Conv2d
        self.register_buffer("_map_weight", None)
        self._map_weight: Tensor | None

    @property
    def map_weight(self) -> Tensor:
        return self.weight if self._map_weight is None else self._map_weight

    @map_weight.setter
    def map_weight(self, weight: Tensor) -> None:
        self._map_weight = weight.detach().clone()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalized images [B, 3, H, W]."""
        return self.logits(self.backbone(images))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, K] of features [B, D, h, w], also under autocast in the dtype of the weights."""
        with torch.autocast(features.device.type, enabled=False):
            return features.to(self.weight.dtype).mean((2, 3)) @ self.weight.T

    def activations(self, images: Tensor) -> Tensor:
        """Return the class activations of normalized images [B, 3, H, W]: [B, K, h, w] float32, at least 0 (ReLU)."""
        features = self.backbone(images)
        with torch.autocast(features.device.type, enabled=False):
            weight = self.map_weight[:, :, None, None]
            return torch.relu(nn.functional.conv2d(features.to(weight.dtype), weight))

    @property
    def config(self) -> dict[str, Any]:
        return {"backbone": self.backbone.config, "classes": self.classes}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(Backbone(**config["backbone"]), tuple(config["classes"]))

    @classmethod
    def load(cls, folder: Path, output_stride: int | None = None) -> Self:
        """Load the classifier that `save` wrote, on the CPU and in eval mode.

        Args:
            folder: of the stage that saved the classifier.
            output_stride: the stride of the features, 8, 16 or 32. None: the stride that was saved.

        Raises:
            RunError: the folder does not contain a classifier, or a file is damaged.
        """
        weights, config = cls.read(folder)
        if output_stride is not None:
            config["backbone"]["output_stride"] = output_stride
        return cls._from_weights(weights, config, folder)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # PyTorch does not load a buffer that is None: assign it first.
        if (weight := state_dict.get(f"{prefix}_map_weight")) is not None:
            self.map_weight = torch.zeros_like(self.weight, dtype=weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


def backbone_name_and_options(
    saved: Mapping[str, Any], name: str | None, options: dict[str, Any] | None
) -> tuple[str, dict[str, Any] | None]:
    """Return the timm name and the options of a backbone that is the classifier's unless the recipe names another.

    Args:
        saved: the config of the classifier's backbone, `Backbone.config`.
        name: a timm model name. None: the classifier's.
        options: further arguments of `timm.create_model`. None: the classifier's if it has the same name, else none.
    """
    name = name or saved["name"]
    return name, saved["options"] if options is None and name == saved["name"] else options


def initial_backbone(
    classifier_folder: Path,
    name: str | None,
    weights: str,
    output_stride: int,
    options: dict[str, Any] | None,
    dilation: Dilation | None = None,
) -> Backbone:
    """Return the backbone from which a later network of the run starts its training.

    Args:
        classifier_folder: contains the classifier of the run.
        name: a timm model name. None: the classifier's.
        weights: "classifier" for the trained weights of the classifier's backbone, or as in `Backbone`.
        output_stride: the stride of the features, 8, 16 or 32.
        options: further arguments of `timm.create_model`. None: the classifier's if it has the same name, else none.
        dilation: as in `Backbone`. None: the classifier's if the backbone has the same name, else "full".

    Raises:
        RecipeError: the classifier's weights do not fit the backbone, or `Backbone` raises it.
        RunError: the folder does not contain a classifier.
    """
    trained = Classifier.load(classifier_folder).backbone
    name, options = backbone_name_and_options(trained.config, name, options)
    if dilation is None:
        dilation = trained.config["dilation"] if name == trained.config["name"] else "full"
    backbone = Backbone(name, "none" if weights == "classifier" else weights, output_stride, options, dilation)
    if weights != "classifier":
        return backbone
    try:
        backbone.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise RecipeError(
            f"the classifier's weights are of {trained.config['name']!r} and do not fit {name!r}: leave backbone and "
            "options out, or set weights to pretrained, none or a file."
        ) from error
    return backbone
