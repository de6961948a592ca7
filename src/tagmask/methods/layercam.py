"""LayerCAM: response maps from several stages of a trained classifier, without training.

Jiang, Zhang, Hou, Cheng and Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", TIP 2021.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial, reduce
from itertools import zip_longest
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.methods._settings import Scales, Stride
from tagmask.methods.cam import EPSILON, SCALES, Activations, make_maps, response_maps
from tagmask.models.classifier import Classifier
from tagmask.stage import ArtifactKind, Method, StageContext


class LayerCam(Method):
    """Make response maps in which each cell of a stage's features is weighed by its own positive gradient."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    stages: tuple[int, ...] = Field((-3, -2, -1), min_length=1, description="of the network; -1 is its last")
    gamma: float = Field(2.0, gt=0, description="of tanh(γ · map), which lifts the maps of all stages but the last")
    scales: Scales = Field(SCALES, description="of the maps; each with its mirror image")
    inference_stride: Stride | None = Field(
        None, description="output_stride when mapping, which may be finer than in training; null: the same"
    )
    inference_batch_size: int = Field(16, ge=1, description="images of one size that are mapped together")

    def run(self, context: StageContext) -> None:
        classifier = Classifier.load(context.inputs["classifier"], output_stride=self.inference_stride)
        look = StageMaps(classifier, self)
        make_maps(
            classifier,
            context,
            scales=self.scales,
            batch_size=self.inference_batch_size,
            maps_of=lambda _, images, tags, scales: response_maps(partial(look, tags=tags), images, tags, scales),
        )


def activations(classifier: Classifier) -> Activations:
    """A classifier's LayerCAM with the defaults, for methods that look at images in a way of their own."""
    return StageMaps(classifier, LayerCam())


class StageMaps:
    """With a stage's features A and a class's gradient g, the map is ReLU(Σ_c ReLU(g_c) · A_c) (equations 6 to 8).

    One stage's maps stay as they are. Of several, each map is divided by its maximum, those before the last are lifted
    by tanh(γ · map) (equation 9), and the maximum is taken, on the finest stage's grid.

    Args:
        classifier: of a CNN or a ViT; from now on its parameters need no gradient.
        settings: stage −1 is the features that the classifier takes the mean of, −2 the network's last stage (a ViT's
            block) but one, and so on.

    Raises:
        RecipeError: the network has no such stage.
    """

    def __init__(self, classifier: Classifier, settings: LayerCam) -> None:
        self.classifier, self.gamma = classifier.requires_grad_(False), settings.gamma
        self.seen = threading.local()  # class-conditional inference calls from several threads
        for module in _modules(classifier, settings.stages):
            module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        features: list[Tensor] | None = getattr(self.seen, "features", None)
        if features is None:  # somebody else uses the network
            return output
        features.append(output if features else output.detach().requires_grad_())  # gradients end at the first
        return features[-1].clone()  # the next layer may write into it

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __call__(self, images: Tensor, tags: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Normalised images [B, 3, H, W] → maps [B, K, h, w] ≥ 0, at the cost of a backward pass a class.

        Args:
            tags: of the images (repeated, if these are several views of them): other classes' maps are 0, and there
                is a backward pass for each tag of the image that has most.
        """
        features: list[Tensor] = []
        self.seen.features = features
        last = self.classifier.backbone(images.clone())  # no backward pass may go through inference mode's tensors
        self.seen.features = None
        # the sum over cells, not the mean: so that an image's small and large views weigh alike
        scores = last.sum((2, 3)) @ self.classifier.map_weight.T
        channels = [[id_ - 1 for id_ in ids] for ids in tags] if tags else [range(scores.shape[1])]
        grids = [self._on_grid(f.detach(), last) for f in features]
        maps = images.new_zeros(*scores.shape, *max(grid.shape[2:] for grid in grids))
        for turn in zip_longest(*channels * (len(images) // len(channels))):  # for each image its next class
            list_images, classes_of = zip(*((i, k) for i, k in enumerate(turn) if k is not None), strict=True)
            gradients = torch.autograd.grad(scores[list_images, classes_of].sum(), features, retain_graph=True)
            stages = [(self._on_grid(g, last).relu() * a).sum(1).relu() for g, a in zip(gradients, grids, strict=True)]
            maps[list_images, classes_of] = _fused(stages, self.gamma)[list(list_images)].to(maps.dtype)
        return maps

    def _on_grid(self, features: Tensor, last: Tensor) -> Tensor:
        """A stage's features as [B, C, h, w], whatever the network's layout."""
        if features.ndim == 3:  # tokens, the cells' at the end
            h, w = last.shape[2:]
            return features[:, -h * w :].mT.unflatten(2, (h, w))
        channels_last = getattr(self.classifier.backbone.net, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if channels_last and features.shape != last.shape else features


def _fused(maps: list[Tensor], gamma: float) -> Tensor:
    """One map [B, h, w] of those of several stages."""
    if len(maps) == 1:
        return maps[0]
    maps = [m / (m.amax((1, 2), keepdim=True) + EPSILON) for m in maps]
    maps[:-1] = [torch.tanh(gamma * m) for m in maps[:-1]]
    grid = max(m.shape[1:] for m in maps)
    return reduce(torch.maximum, [F.interpolate(m[None], grid, mode="bilinear")[0] for m in maps])


def _modules(classifier: Classifier, stages: Sequence[int]) -> list[nn.Module]:
    """The modules that the stages come from. Raises RecipeError if the network has no such stage."""
    net: Any = classifier.backbone.net
    info = getattr(net, "feature_info", [])
    names = [level["module"] for level in getattr(info, "info", info)] or [""]
    if wrong := [stage for stage in stages if not -len(names) <= stage <= -1]:
        raise RecipeError(
            f"backbone {classifier.backbone.config['name']!r} has no stage {wrong[0]}: "
            f"give stages from {-len(names)} (its first) to -1 (its last)."
        )
    return [classifier.backbone if stage == -1 else net.get_submodule(names[stage]) for stage in stages]
