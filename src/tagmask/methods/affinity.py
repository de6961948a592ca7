"""Affinity: response maps that spread to the cells which a network finds alike.

Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023 (CLIP-ES), section 3.3, for the attention of any ViT; also
for the features of any network. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tagmask.data.samples import Sample
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods._settings import BackboneSettings
from tagmask.methods.cam import write_missing_maps
from tagmask.models.attention import AttentionRecorder
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import initial_backbone
from tagmask.models.inference import scaled, with_hflip
from tagmask.refine.affinity import SMALLEST, cosine_affinity, spread, transition_matrix
from tagmask.stage import ArtifactKind, MakeFiles, StageContext

MAX_CELLS = 2500
"""Images with more cells are reduced, so that the attention of one image (heads · cells²) takes less than 300 MB."""

AffinityOf = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]
"""A function from normalized images [B, 3, H, W] to the affinity [B, N, N] of their cells, and the grid (h, w)."""


class Affinity(BackboneSettings):
    """Spread response maps along the attention or the likeness of the features of a network."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    of: Literal["attention", "features"] = Field(
        "attention",
        description="what makes cells alike: attention (of a ViT) or features (the cosine similarity of the last "
        "features of any network)",
    )
    blocks: int = Field(8, ge=1, description="number of the last blocks of a ViT whose attention is averaged")
    feature_power: float = Field(
        4.0, gt=0, description="exponent of the cosine similarity of features: the larger, the fewer cells are alike"
    )
    normalizations: int = Field(
        3, ge=0, description="how often the columns and rows of the affinity matrix are divided by their sums"
    )
    steps: int = Field(2, ge=1, description="how often the maps are multiplied by the matrix")
    box_threshold: float | None = Field(
        0.4,
        ge=0,
        lt=1,
        description="a map spreads from the bounding boxes around its parts above this share of its maximum; null: "
        "from everywhere",
    )
    scale: float = Field(1.0, gt=0, description="factor by which an image is resized for the network")
    inference_batch_size: int = Field(4, ge=1, description="largest number of images of equal size in a batch")

    def run(self, context: StageContext) -> None:
        context.make_files("maps", self.prepare_maps)

    def prepare_maps(self, context: StageContext) -> MakeFiles:
        """Load the network, and return the function that spreads the maps."""
        classifier = context.inputs["classifier"].path
        torch.manual_seed(context.seed)  # for weights: none, in dry runs
        backbone = initial_backbone(classifier, self.backbone, self.weights, self.output_stride, self.options)
        affinity_of = self.affinity_of(backbone.eval())
        cell = backbone.side_multiple if backbone.side_multiple > 1 else self.output_stride  # its side in pixels

        def make_maps(context: StageContext) -> None:
            def maps_of_batch(images: Tensor, samples: Sequence[Sample]) -> list[ResponseMaps]:
                size = (images.shape[2], images.shape[3])
                maps = [ResponseMaps.load(context.inputs["maps"].maps_path(s.id)).resized(size) for s in samples]
                scale = min(self.scale, cell * (MAX_CELLS / (size[0] * size[1])) ** 0.5)
                return self.spread_maps(affinity_of, scaled(images, scale), maps)

            write_missing_maps(backbone, context, maps_of_batch, self.inference_batch_size)

        return make_maps

    def affinity_of(self, backbone: Backbone) -> AffinityOf:
        """Return the function that computes the affinity of cells with a backbone."""
        if self.of == "attention":
            return AttentionRecorder(backbone, self.blocks)

        def affinity(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
            features = backbone(images)
            return cosine_affinity(features, self.feature_power), (features.shape[2], features.shape[3])

        return affinity

    @torch.inference_mode()
    def spread_maps(self, affinity_of: AffinityOf, images: Tensor, maps: Sequence[ResponseMaps]) -> list[ResponseMaps]:
        """Spread the maps of a batch along the affinity of the cells of each image and of its horizontal flip.

        Args:
            affinity_of: computes the affinity.
            images: [B, 3, H, W] normalized, at any scale.
            maps: of these images.

        Returns:
            One `ResponseMaps` per image; the activations of each map are shifted and scaled to 0..1, as in the code of
            CLIP-ES.
        """
        affinity, grid = affinity_of(with_hflip(images))
        results = []
        for i, each in enumerate(maps):
            if not len(each.classes):
                results.append(each)
                continue
            cells = torch.from_numpy(np.asarray(each.maps, np.float32))[None].to(images.device)
            cells = F.interpolate(cells, grid, mode="bilinear", antialias=True)[0].clamp_min(0)
            total = torch.zeros_like(cells)
            for flip, index in ((False, i), (True, len(images) + i)):
                matrix = transition_matrix(affinity[index], self.normalizations)
                view = spread(cells.flip(2) if flip else cells, matrix, self.steps, self.box_threshold)
                total += view.flip(2) if flip else view
            fine = F.interpolate(total[None], grid_size(each.size), mode="bilinear")[0]
            fine -= fine.amin((1, 2), keepdim=True)
            fine /= fine.amax((1, 2), keepdim=True).clamp_min(SMALLEST)
            results.append(ResponseMaps(each.classes, fine.cpu().numpy(), each.size))
        return results
