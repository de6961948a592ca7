"""LayerCAM: response maps from several layers of a trained classifier, without training.

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
from tagmask.maps import ResponseMaps
from tagmask.methods._settings import MapSettings
from tagmask.methods.cam import EPSILON, Activations, make_missing_maps, response_maps
from tagmask.models.classifier import Classifier
from tagmask.stage import ArtifactKind, MakeFiles, StageContext


class LayerCam(MapSettings):
    """Make response maps in which each cell of a layer's features is weighted by its own positive gradient."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    layers: tuple[int, ...] = Field(
        (-3, -2, -1), min_length=1, description="feature levels of the network (of a ViT: blocks); -1 is the last"
    )
    gamma: float = Field(
        2.0, gt=0, description="γ of tanh(γ · map), which strengthens the maps of all but the last layer"
    )

    def run(self, context: StageContext) -> None:
        context.make_files("maps", self.prepare_maps)

    def prepare_maps(self, context: StageContext) -> MakeFiles:
        """Load the classifier, and return the function that makes the maps."""
        classifier = Classifier.load(context.inputs["classifier"].path, output_stride=self.inference_stride)
        layer_maps, resize = LayerMaps(classifier, self), self.resize(classifier.backbone)

        def maps_of(images: Tensor, tags: Sequence[Sequence[int]]) -> list[ResponseMaps]:
            return response_maps(partial(layer_maps, tags=tags), images, tags, self.scales, resize)

        return partial(make_missing_maps, classifier, settings=self, maps_of=maps_of)


def activations(classifier: Classifier) -> Activations:
    """Return the LayerCAM of a classifier with the default settings, for `infercam` with `base_method: layercam`."""
    return LayerMaps(classifier, LayerCam())


class LayerMaps:
    """Compute the maps of several layers and fuse them.

    With a layer's features A and the gradient g of a class's score, its map is ReLU(Σ_c ReLU(g_c) · A_c) (Equations 6
    to 8). Several maps are divided by their maxima, those before the last layer become tanh(γ · map) (Equation 9), and
    the elementwise maximum is taken on the finest grid. A single map stays as it is.

    Args:
        classifier: with a CNN or a ViT; its parameters need no gradient afterwards.
        settings: `layers` and `gamma`. Layer −1 is the features that the classifier pools, −2 the feature level (a
            ViT's block) before it, and so on.

    Raises:
        RecipeError: the network has no such layer.
    """

    def __init__(self, classifier: Classifier, settings: LayerCam) -> None:
        self.classifier, self.gamma = classifier.requires_grad_(False), settings.gamma
        self.recorded = threading.local()  # class-conditional inference calls from several threads
        for module in _modules(classifier, settings.layers):
            module.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        features: list[Tensor] | None = getattr(self.recorded, "features", None)
        if features is None:  # another caller uses the network
            return output
        features.append(output if features else output.detach().requires_grad_())  # gradients end at the first layer
        return features[-1].clone()  # the next layer may write into its input

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __call__(self, images: Tensor, tags: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Compute the maps of a batch; one backward pass per class.

        Args:
            images: [B, 3, H, W] normalized.
            tags: class ids of the images (or of each view of them, repeated): the maps of other classes are 0, and the
                number of backward passes is the largest number of tags. None: all classes.

        Returns:
            [B, K, h, w], 0 or above.
        """
        features: list[Tensor] = []
        self.recorded.features = features
        last = self.classifier.backbone(images.clone())  # tensors of inference mode cannot take part in a backward pass
        self.recorded.features = None
        # the sum over cells, not the mean, so that small and large views of an image have equal weight
        with torch.autocast(last.device.type, enabled=False):
            scores = last.to(self.classifier.map_weight.dtype).sum((2, 3)) @ self.classifier.map_weight.T
        channels = [[class_id - 1 for class_id in ids] for ids in tags] if tags else [range(scores.shape[1])]
        grids = [self._to_grid(f.detach(), last) for f in features]
        maps = images.new_zeros(*scores.shape, *max(grid.shape[2:] for grid in grids))
        for round_ in zip_longest(*channels * (len(images) // len(channels))):  # the next class of each image
            rows, columns = zip(*((i, k) for i, k in enumerate(round_) if k is not None), strict=True)
            gradients = torch.autograd.grad(scores[rows, columns].sum(), features, retain_graph=True)
            per_layer = [
                (self._to_grid(g, last).relu() * a).sum(1, dtype=scores.dtype).relu()
                for g, a in zip(gradients, grids, strict=True)
            ]
            maps[rows, columns] = _fuse(per_layer, self.gamma)[list(rows)].to(maps.dtype)
        return maps

    def _to_grid(self, features: Tensor, last: Tensor) -> Tensor:
        """Return a layer's features as [B, C, h, w], whatever the layout of the network."""
        if features.ndim == 3:  # tokens; those of the cells come last
            h, w = last.shape[2:]
            return features[:, -h * w :].mT.unflatten(2, (h, w))
        channels_last = getattr(self.classifier.backbone.net, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if channels_last and features.shape != last.shape else features


def _fuse(maps: list[Tensor], gamma: float) -> Tensor:
    """Fuse the maps [B, h, w] of several layers into one."""
    if len(maps) == 1:
        return maps[0]
    maps = [m / (m.amax((1, 2), keepdim=True) + EPSILON) for m in maps]
    maps[:-1] = [torch.tanh(gamma * m) for m in maps[:-1]]
    grid = max(m.shape[1:] for m in maps)
    return reduce(torch.maximum, [F.interpolate(m[None], grid, mode="bilinear")[0] for m in maps])


def _modules(classifier: Classifier, layers: Sequence[int]) -> list[nn.Module]:
    """Return the modules whose outputs are the layers' features. Raises RecipeError if there is no such layer."""
    net: Any = classifier.backbone.net
    info = getattr(net, "feature_info", [])
    names = [level["module"] for level in getattr(info, "info", info)] or [""]
    if wrong := [layer for layer in layers if not -len(names) <= layer <= -1]:
        raise RecipeError(
            f"backbone {classifier.backbone.config['name']!r} has no layer {wrong[0]}: "
            f"give layers from {-len(names)} (the first) to -1 (the last)."
        )
    return [classifier.backbone if layer == -1 else net.get_submodule(names[layer]) for layer in layers]
