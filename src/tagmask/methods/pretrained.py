"""Response maps of a ready classifier: the classes that a network such as an ImageNet classifier knows already.

Nothing is trained. The network must be a single-label classifier whose logits are a linear layer of its mean features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from timm.data import ImageNetInfo
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.methods._settings import BackboneName, BackboneSettings, MapSettings
from tagmask.methods.cam import prepare_cams
from tagmask.models.backbone import Backbone, create_timm_model, load_weights
from tagmask.models.classifier import Classifier
from tagmask.stage import ArtifactKind, StageContext
from tagmask.text import did_you_mean

PROBE_SIZE = 224  # pixels; most networks of a fixed size take it, and it is a multiple of the usual patch sizes


class Pretrained(BackboneSettings, MapSettings):
    """Make response maps with the classes of a timm network, found by their names or given by their outputs."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ()
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("classifier", "maps")

    backbone: BackboneName = Field("resnet50", description="any timm classifier")
    weights: str = Field("pretrained", description="pretrained (downloaded by timm) or the path of a file")
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model")
    num_outputs: int | None = Field(
        None, ge=1, description="number of outputs of the network in a weights file; null: that of timm's model"
    )
    outputs: dict[str, list[int]] = Field(
        {},
        description="for a class, the numbers (from 0) of the outputs that mean it; other classes are looked up among "
        "the names of ImageNet's classes",
    )

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        if "num_classes" in self.options:
            raise RecipeError(
                "leave num_classes out of the options; num_outputs gives the number of outputs of a file."
            )
        if self.num_outputs is not None and self.weights == "pretrained":
            raise RecipeError(
                "num_outputs is for weights files only: with another number timm would replace the last layer of its "
                "own weights by a random one; leave num_outputs out."
            )
        return self

    def run(self, context: StageContext) -> None:
        folder = context.folder.path
        if context.compute.is_main_process and not Classifier.weights_path(folder).exists():
            self.classifier(context.images.classes).save(folder, weights=self.weights)
        context.compute.barrier()
        context.make_files("maps", partial(prepare_cams, self))

    def classifier(self, classes: tuple[str, ...]) -> Classifier:
        """Return a classifier with one row of weights per class.

        A class with several outputs gets the mean of their rows. The mean of all rows is subtracted: it changes no
        probability of a softmax, but it would change which activations are above 0.

        Raises:
            RecipeError: the network does not know a class, or its head is not a linear layer.
        """
        options = self.options | ({"num_classes": self.num_outputs} if self.num_outputs else {})
        net: Any = create_timm_model(
            self.backbone, self.weights == "pretrained", self.output_stride, options, with_head=True
        )
        if self.weights not in ("pretrained", "none"):  # none: a dry run
            load_weights(net, Path(self.weights))
        rows = linear_head(net.eval(), self.backbone)
        numbers = outputs_of(classes, len(rows), self.outputs)
        backbone = Backbone(self.backbone, "none", self.output_stride, self.options)
        own = backbone.net.state_dict()
        backbone.net.load_state_dict({name: value for name, value in net.state_dict().items() if name in own})
        classifier = Classifier(backbone, classes)
        with torch.no_grad():
            centered = rows - rows.mean(0)
            classifier.weight.copy_(torch.stack([centered[n].mean(0) for n in numbers]))
        return classifier


@torch.inference_mode()
def linear_head(net: Any, name: str) -> Tensor:
    """Return the weights [N, D] of a timm network's last layer.

    Raises:
        RecipeError: the logits are not W · GAP(f) + b.
    """
    try:
        features = net.forward_features(torch.randn(2, 3, PROBE_SIZE, PROBE_SIZE))
        grid = (1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        last = net.get_classifier()
        weight: Tensor = last.weight.detach().flatten(1)
        logits = F.linear(features.mean(grid), weight, last.bias)
        if not torch.allclose(logits, net.forward_head(features), rtol=1e-3, atol=1e-4):
            raise ValueError("the head is more than a linear layer")
    except Exception as error:  # an unsuitable input size, features without a grid, a head of several layers, ...
        raise RecipeError(
            f"the logits of {name!r} are not a linear layer of its mean features, so it has no class activation maps: "
            "choose another, e.g. resnet50, or train one with the cam method."
        ) from error
    return weight.clone()


def outputs_of(classes: tuple[str, ...], num_outputs: int, given: Mapping[str, list[int]]) -> list[list[int]]:
    """Return, for each class, the numbers of the outputs that mean it.

    Args:
        classes: the class names.
        num_outputs: the number of outputs of the network.
        given: numbers by class name; a class that it lacks is looked up among the names of ImageNet's classes.

    Raises:
        RecipeError: the network does not have an output, or a class is not an ImageNet class.
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
                f"class {name!r} is not a class that the network knows{did_you_mean(name, names)}; "
                f"say which outputs mean it, e.g. pretrained.outputs={{{name}: [7, 8]}}."
            )
        if not 0 <= min(numbers) <= max(numbers) < num_outputs:
            raise RecipeError(f"outputs of {name!r} are {numbers}, but the network has 0 to {num_outputs - 1}.")
    return [names[name.lower()] for name in classes]
