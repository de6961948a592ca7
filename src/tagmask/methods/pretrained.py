"""A ready classifier as it is: response maps of the classes that it already knows, nothing trained.

For single-label networks such as ImageNet's, whose logits are a linear layer of the mean of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from timm.data import ImageNetInfo
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.methods._settings import BackboneName, Scales, Stride
from tagmask.methods.cam import SCALES, make_maps
from tagmask.models.backbone import Backbone, create_network, load_weights
from tagmask.models.classifier import FILE, Classifier
from tagmask.stage import ArtifactKind, Method, StageContext
from tagmask.text import did_you_mean

PROBE = 224  # pixels: the size that most networks of a fixed size take, and a multiple of the usual patches


class Pretrained(Method):
    """Make response maps with a timm network's own classes, found by their names or given by their numbers."""

    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    backbone: BackboneName = Field("resnet50", description="any timm classifier")
    weights: str = Field("pretrained", description="pretrained (timm's hub), or a local file")
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model")
    output_stride: Stride = 16
    num_outputs: int | None = Field(None, ge=1, description="of a weights file's network; null: timm's number for it")
    outputs: dict[str, list[int]] = Field(
        {}, description="class → numbers (from 0) of the outputs that mean it; others: by the names of ImageNet's"
    )
    scales: Scales = Field(SCALES, description="of the maps; each with its mirror image")
    inference_batch_size: int = Field(16, ge=1, description="images of one size that are mapped together")

    @model_validator(mode="after")
    def _outputs_are_those_of_the_weights(self) -> Self:
        if "num_classes" in self.options:
            raise RecipeError("leave num_classes out of the options; num_outputs says how many outputs a file has.")
        if self.num_outputs is not None and self.weights == "pretrained":
            raise RecipeError(
                "num_outputs goes with a weights file: timm's own weights keep the outputs that they have "
                "(with another number of them timm would put a random layer in their place); leave it out."
            )
        return self

    def run(self, context: StageContext) -> None:
        if context.compute.is_main_process and not (context.folder / FILE).exists():
            self.classifier(context.images.classes).save(context.folder, weights=self.weights)
        context.compute.barrier()
        make_maps(Classifier.load(context.folder), context, scales=self.scales, batch_size=self.inference_batch_size)

    def classifier(self, classes: tuple[str, ...]) -> Classifier:
        """The network, with a row of weights for each class.

        A class of several outputs has the mean of their rows. What all rows have in common is taken off: it changes
        no probability of a softmax, but it would change which activations are above 0.

        Raises:
            RecipeError: a class is not among the network's, or its head is more than a linear layer.
        """
        options = self.options | ({"num_classes": self.num_outputs} if self.num_outputs else {})
        net: Any = create_network(self.backbone, self.weights == "pretrained", self.output_stride, options, head=True)
        if self.weights not in ("pretrained", "none"):  # none: for a rehearsal
            load_weights(net, Path(self.weights))
        rows = linear_head(net.eval(), self.backbone)
        found = outputs_of(classes, len(rows), self.outputs)
        backbone = Backbone(self.backbone, "none", self.output_stride, self.options)
        own = backbone.net.state_dict()
        backbone.net.load_state_dict({name: value for name, value in net.state_dict().items() if name in own})
        classifier = Classifier(backbone, classes)
        with torch.no_grad():
            centred = rows - rows.mean(0)
            classifier.weight.copy_(torch.stack([centred[numbers].mean(0) for numbers in found]))
        return classifier


@torch.inference_mode()
def linear_head(net: Any, name: str) -> Tensor:
    """The weights [N, D] of a timm network's last layer. Raises RecipeError if its logits are not W · GAP(f) + b."""
    try:
        features = net.forward_features(torch.randn(2, 3, PROBE, PROBE))
        grid = (1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        last = net.get_classifier()
        weight: Tensor = last.weight.detach().flatten(1)
        logits = F.linear(features.mean(grid), weight, last.bias)
        if not torch.allclose(logits, net.forward_head(features), rtol=1e-3, atol=1e-4):
            raise ValueError("the head does more than that")
    except Exception as error:  # a size that it does not take, features without a grid, a head of several layers, ...
        raise RecipeError(
            f"the logits of {name!r} are not a linear layer of its mean features, so it has no class activation maps: "
            "choose another, e.g. resnet50, or train one with the cam method."
        ) from error
    return weight.clone()


def outputs_of(classes: tuple[str, ...], num_outputs: int, given: Mapping[str, list[int]]) -> list[list[int]]:
    """For each class the numbers of the outputs that mean it: those given, or else the ImageNet class of this name.

    Raises:
        RecipeError: a number that the network has not, or a class that is no name of ImageNet's.
    """
    names: dict[str, list[int]] = {}
    info = ImageNetInfo()
    if num_outputs == info.num_classes():
        for number in range(num_outputs):
            for name in info.index_to_description(number).split(","):
                names.setdefault(name.strip().lower(), []).append(number)
    names |= {name.lower(): numbers for name, numbers in given.items()}
    for name in classes:
        numbers = names.get(name.lower())
        if not numbers:
            raise RecipeError(
                f"class {name!r} is not one that the network knows by this name{did_you_mean(name, names)}; "
                f"say which outputs mean it, e.g. pretrained.outputs={{{name}: [7, 8]}}."
            )
        if not 0 <= min(numbers) <= max(numbers) < num_outputs:
            raise RecipeError(f"outputs of {name!r} are {numbers}, but the network has 0 to {num_outputs - 1}.")
    return [names[name.lower()] for name in classes]
