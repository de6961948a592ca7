"""IRN's network: class boundaries and displacements to instance centroids, on a frozen backbone.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
section 4 and the layout of its public code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.errors import RecipeError, RunError
from tagmask.maps import STRIDE, grid_size
from tagmask.models.backbone import Backbone
from tagmask.models.inference import with_hflip
from tagmask.models.saved_network import read_weights, write_weights

FILE = "boundary.safetensors"
MAX_LEVELS = 5  # a ResNet's five; of a network with more (a ViT's blocks), as many evenly spread ones


class BoundaryNetwork(nn.Module):
    """Images [B, 3, H, W] → boundary logits [B, h, w] and displacements [B, 2, h, w] (rows, columns), at stride 4.

    In eval mode the displacements' mean over the training images, `mean_displacement` [2], is subtracted: the loss
    only sees differences, so that their common part is arbitrary (the reference's mean shift).

    Args:
        backbone: any CNN or ViT of timm with feature levels; it is frozen, its norms and dropout too.

    Raises:
        RecipeError: the backbone gives no feature levels.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.levels, channels, strides = _choose_levels(backbone)
        # with whole cells at every level the levels' grids lie exactly on one another
        self.multiple = math.lcm(STRIDE, max(strides))
        self.boundary_levels = nn.ModuleList(_reduced(c, 32, groups=4) for c in channels)
        self.boundary = nn.Conv2d(32 * len(channels), 1, 1)

        self.coarse = [i for i, stride in enumerate(strides) if stride > STRIDE]
        self.fine = [i for i, stride in enumerate(strides) if stride <= STRIDE]
        widths = [64 if s < STRIDE else 128 if s == STRIDE else 256 for s in strides]
        self.displacement_levels = nn.ModuleList(
            _reduced(c, w, groups=min(16, w // 8)) for c, w in zip(channels, widths, strict=True)
        )
        self.coarse_merge = _reduced(256 * len(self.coarse), 256, groups=16)
        self.displacement = nn.Sequential(
            _reduced(256 + sum(widths[i] for i in self.fine), 256, groups=16),
            nn.ReLU(),
            nn.Conv2d(256, 2, 1, bias=False),
        )
        self.mean_displacement: Tensor
        self.register_buffer("mean_displacement", torch.zeros(2))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = grid_size((images.shape[2], images.shape[3]))
        images = self.padded(images)
        grid = grid_size((images.shape[2], images.shape[3]))
        with torch.no_grad():
            features = self._features(images)
        boundary = self.boundary(torch.cat(_to_grid(self.boundary_levels, features, grid), 1))[:, 0]
        displacement = self._displacement(features, grid)
        if not self.training:
            displacement = displacement - self.mean_displacement[:, None, None]
        return boundary[:, :height, :width], displacement[:, :, :height, :width]

    def padded(self, images: Tensor) -> Tensor:
        """Images continued to the right and below by their edge, to multiples of the coarsest cell."""
        down, right = -images.shape[2] % self.multiple, -images.shape[3] % self.multiple
        return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images

    def _features(self, images: Tensor) -> list[Tensor]:
        net: Any = self.backbone.net
        features: list[Tensor] = net.forward_intermediates(
            images, indices=self.levels, output_fmt="NCHW", intermediates_only=True
        )
        # the reference's first level is that after the stem's max-pooling
        return [F.max_pool2d(f, 3, 2, 1) if images.shape[3] // f.shape[3] < STRIDE else f for f in features]

    def _displacement(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """The coarse levels first come together at the finest of their grids, then with the fine ones at stride 4."""
        layers = list(self.displacement_levels)
        coarse, fine = [features[i] for i in self.coarse], [features[i] for i in self.fine]
        middle = (coarse[0].shape[2], coarse[0].shape[3])
        merged = torch.cat(_to_grid([layers[i] for i in self.coarse], coarse, middle), 1)
        both = _to_grid([layers[i] for i in self.fine], fine, grid) + _to_grid([self.coarse_merge], [merged], grid)
        displacement: Tensor = self.displacement(torch.cat(both, 1))
        return displacement

    def parameters_of(self, branch: str) -> list[nn.Parameter]:
        """The parameters of the branch "boundary" or "displacement"."""
        own = ("boundary",) if branch == "boundary" else ("displacement", "coarse_merge")
        return [p for name, p in self.named_parameters() if name.startswith(own)]

    def save(self, folder: Path) -> None:
        """Write boundary.safetensors and config.json."""
        write_weights(folder / FILE, self.state_dict(), {"kind": "boundary", "backbone": self.backbone.config})

    @classmethod
    def load(cls, folder: Path) -> BoundaryNetwork:
        """Load what `save` wrote. Raises RunError if it is not there."""
        weights, config = read_weights(folder / FILE)
        if config.get("kind") != "boundary":
            raise RunError(f"{folder} does not hold a boundary network but a {config.get('kind')}.")
        network = cls(Backbone(**config["backbone"]))
        network.load_state_dict(weights)
        return network.eval()


@torch.inference_mode()
def predict_boundaries(network: BoundaryNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Boundary probabilities (of the mean logits of image and mirror image) and displacements (of the image).

    Args:
        images: [B, 3, H, W] normalised.

    Returns:
        [B, h, w] in 0..1 and [B, 2, h, w] in cells, float32, at stride 4.
    """
    height, width = grid_size((images.shape[2], images.shape[3]))
    images = network.padded(images)  # before mirroring, so that the two grids lie on each other
    logits, displacement = network(with_hflip(images))
    straight, mirrored = logits.float().chunk(2)
    boundary = ((straight + mirrored.flip(2)) / 2).sigmoid()
    return boundary[:, :height, :width], displacement[: len(images), :, :height, :width].float()


def _reduced(channels: int, width: int, groups: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


def _to_grid(layers: Any, features: list[Tensor], grid: tuple[int, int]) -> list[Tensor]:
    """Each level through its layer, brought to the grid, ReLU."""
    reduced = [layer(f) for layer, f in zip(layers, features, strict=True)]
    return [
        torch.relu(f if f.shape[2:] == grid else F.interpolate(f, grid, mode="bilinear", align_corners=False))
        for f in reduced
    ]


def _choose_levels(backbone: Backbone) -> tuple[list[int], list[int], list[int]]:
    """Indices, channels and strides of the feature levels to use, finest first."""
    net: Any = backbone.net
    info = getattr(net, "feature_info", None)
    levels = [(i, e["num_chs"], e["reduction"]) for i, e in enumerate(getattr(info, "info", info) or ())]
    levels = [level for level in levels if level[2] > 1]
    if not hasattr(net, "forward_intermediates") or not levels:
        raise RecipeError(
            f"backbone {backbone.config['name']!r} gives no feature levels for the boundary network: "
            "choose another, such as resnet50."
        )
    if len(levels) > MAX_LEVELS:
        chosen = np.linspace(0, len(levels) - 1, MAX_LEVELS + 1)[1:].round().astype(int)
        levels = [levels[i] for i in chosen]
    indices, channels, strides = (list(column) for column in zip(*levels, strict=True))
    return indices, channels, strides
