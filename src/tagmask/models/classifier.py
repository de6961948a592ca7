"""The CAM classifier: a backbone, global average pooling, a 1×1 convolution without bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagmask.errors import RecipeError, RunError
from tagmask.models.backbone import Backbone
from tagmask.models.saved_network import read_weights, write_weights

FILE = "classifier.safetensors"


class Classifier(nn.Module):
    """Images [B, 3, H, W] → logits [B, K], and the activations that they are the mean of.

    Attributes:
        backbone: gives features f [B, D, h, w].
        weight: W [K, D]; logits = W · GAP(f).
        map_weight: [K, D] the weights that response maps are made with; W itself, unless a method
            (ReCAM) set others.
    """

    def __init__(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.weight = nn.Parameter(torch.empty(len(classes), backbone.channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Conv2d's own
        self.register_buffer("_map_weight", None)
        self._map_weight: Tensor | None

    @property
    def map_weight(self) -> Tensor:
        return self.weight if self._map_weight is None else self._map_weight

    @map_weight.setter
    def map_weight(self, weight: Tensor) -> None:
        self._map_weight = weight.detach().clone()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.backbone(images))

    def logits(self, features: Tensor) -> Tensor:
        """Features [B, D, h, w] → logits [B, K]."""
        return features.mean((2, 3)) @ self.weight.T

    def activations(self, images: Tensor) -> Tensor:
        """ReLU of the class activations: [B, 3, H, W] → [B, K, h, w]."""
        features = self.backbone(images)
        return torch.relu(nn.functional.conv2d(features, self.map_weight[:, :, None, None].to(features.dtype)))

    def save(self, folder: Path, **notes: Any) -> None:
        """Write classifier.safetensors and config.json; `notes` are added to the latter."""
        config = {"kind": "classifier", "backbone": self.backbone.config, "classes": self.classes, **notes}
        write_weights(folder / FILE, self.state_dict(), config)

    @classmethod
    def load(cls, folder: Path, output_stride: int | None = None) -> Classifier:
        """Load what `save` wrote, its features at another stride if asked. Raises RunError if it is not there."""
        weights, config = read_weights(folder / FILE)
        if config.get("kind") != "classifier":
            raise RunError(f"{folder} does not hold a classifier but a {config.get('kind')}.")
        stride = {} if output_stride is None else {"output_stride": output_stride}
        network = cls(Backbone(**{**config["backbone"], **stride}), tuple(config["classes"]))
        if "_map_weight" in weights:
            network.map_weight = weights["_map_weight"]
        network.load_state_dict(weights)
        return network.eval()


def initial_backbone(
    folder: Path, name: str | None, weights: str, output_stride: int, options: dict[str, Any] | None
) -> Backbone:
    """The backbone that another network of the run begins with.

    Args:
        folder: of the run's classifier.
        name: a timm model name; None: the classifier's.
        weights: "classifier", or as `Backbone`'s.
        output_stride: of the features.
        options: as `Backbone`'s; None: the classifier's, if it is the same network.

    Raises:
        RecipeError: the classifier's weights are of another network, or as `Backbone`.
        RunError: there is no classifier.
    """
    own = Classifier.load(folder).backbone
    of: dict[str, Any] = own.config
    name = name or of["name"]
    options = of["options"] if options is None and name == of["name"] else options
    if weights != "classifier":
        return Backbone(name, weights, output_stride, options)
    backbone = Backbone(name, "none", output_stride, options)
    try:
        backbone.load_state_dict(own.state_dict())
    except RuntimeError as error:
        raise RecipeError(
            f"the classifier's weights are of {of['name']!r} and do not fit {name!r}: leave backbone and options out, "
            "or set weights to pretrained, none or a file."
        ) from error
    return backbone
