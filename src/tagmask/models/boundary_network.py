"""The network of IRN: class boundaries, and displacements to the centroids of instances, on a frozen backbone.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
section 4. The widths of the layers are those of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tagmask.data.transforms import normalize_images
from tagmask.errors import RecipeError
from tagmask.maps import STRIDE, grid_size
from tagmask.models.backbone import Backbone
from tagmask.models.inference import with_hflip
from tagmask.models.saved_network import BackboneConfig, NetworkConfig, SavedNetwork

if TYPE_CHECKING:
    from tagmask.compute import Compute

MAX_LEVELS = 5  # a ResNet has five; of a network with more (the blocks of a ViT), five evenly spaced levels are used


class BoundaryConfig(NetworkConfig):
    """The entries of a boundary network's config.json."""

    backbone: BackboneConfig


class BoundaryNetwork(SavedNetwork):
    """Compute boundary logits and displacements at stride 4 from images [B, 3, H, W].

    Both are computed from all feature levels of the backbone. Each level has a 1×1 convolution with group norm per
    branch, whose outputs are resized to the stride-4 grid and concatenated.

    Args:
        backbone: any timm network with feature levels. Its parameters, norms and dropout are frozen.

    Attributes:
        mean_displacement: a buffer [2] (rows, columns), the mean displacement over the training images. In eval mode
            it is subtracted, because the loss depends only on differences of displacements, which leaves their mean
            arbitrary.

    Raises:
        RecipeError: the backbone has no feature levels.
    """

    kind: ClassVar[str] = "boundary"
    file_name: ClassVar[str] = "boundary.safetensors"
    title: ClassVar[str] = "a boundary network"
    config_model = BoundaryConfig

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.level_indices, channels, strides = _choose_levels(backbone)
        # Images are padded to whole cells of every level, so that the grids of all levels cover the same area.
        self.multiple = math.lcm(STRIDE, max(strides))
        self.boundary_levels = nn.ModuleList(_reduction(c, 32, groups=4) for c in channels)
        self.boundary = nn.Conv2d(32 * len(channels), 1, 1)

        self.coarse = [i for i, stride in enumerate(strides) if stride > STRIDE]
        self.fine = [i for i, stride in enumerate(strides) if stride <= STRIDE]
        widths = [64 if s < STRIDE else 128 if s == STRIDE else 256 for s in strides]
        self.displacement_levels = nn.ModuleList(
            _reduction(c, w, groups=min(16, w // 8)) for c, w in zip(channels, widths, strict=True)
        )
        self.coarse_merge = _reduction(256 * len(self.coarse), 256, groups=16)
        self.displacement = nn.Sequential(
            _reduction(256 + sum(widths[i] for i in self.fine), 256, groups=16),
            nn.ReLU(),
            nn.Conv2d(256, 2, 1, bias=False),
        )
        self.mean_displacement: Tensor
        self.register_buffer("mean_displacement", torch.zeros(2))

    @property
    def config(self) -> dict[str, Any]:
        return {"backbone": self.backbone.config}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(Backbone(**config["backbone"]))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute boundary logits and displacements.

        Args:
            images: [B, 3, H, W] float, normalized.

        Returns:
            Boundary logits [B, h, w] and displacements [B, 2, h, w] (rows, columns) in cells, both float32 also under
            autocast, with h = ceil(H / 4) and w = ceil(W / 4).
        """
        height, width = grid_size((images.shape[2], images.shape[3]))
        images = self.pad_to_cells(images)
        grid = grid_size((images.shape[2], images.shape[3]))
        with torch.no_grad():
            features = self._features(images)
        boundary = _in_float32(self.boundary, torch.cat(_reduce_to_grid(self.boundary_levels, features, grid), 1))[:, 0]
        displacement = self._displacement(features, grid)
        if not self.training:
            displacement = displacement - self.mean_displacement[:, None, None]
        return boundary[:, :height, :width], displacement[:, :, :height, :width]

    def pad_to_cells(self, images: Tensor) -> Tensor:
        """Pad images [B, 3, H, W] to whole cells of the coarsest level by repeating the bottom and the right edge."""
        bottom, right = -images.shape[2] % self.multiple, -images.shape[3] % self.multiple
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    def boundary_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the boundary branch."""
        return self._branch_parameters("boundary")

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the displacement branch."""
        return self._branch_parameters("displacement", "coarse_merge")

    def _branch_parameters(self, *prefixes: str) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith(prefixes)]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the features of the levels, [B, D, h, w] each, finest first."""
        net: Any = self.backbone.net
        features: list[Tensor] = net.forward_intermediates(
            images, indices=self.level_indices, output_fmt="NCHW", intermediates_only=True
        )
        # The first level of the authors' code is the output of the stem's max-pooling.
        return [F.max_pool2d(f, 3, 2, 1) if images.shape[3] // f.shape[3] < STRIDE else f for f in features]

    def _displacement(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Merge the coarse levels on the finest of their grids, then merge the result with the fine levels."""
        layers = list(self.displacement_levels)
        coarse, fine = [features[i] for i in self.coarse], [features[i] for i in self.fine]
        coarse_grid = (coarse[0].shape[2], coarse[0].shape[3])
        merged = torch.cat(_reduce_to_grid([layers[i] for i in self.coarse], coarse, coarse_grid), 1)
        levels = _reduce_to_grid([layers[i] for i in self.fine], fine, grid)
        levels += _reduce_to_grid([self.coarse_merge], [merged], grid)
        *hidden, last = self.displacement
        return _in_float32(last, nn.Sequential(*hidden)(torch.cat(levels, 1)))


@torch.inference_mode()
def predict_boundaries(network: BoundaryNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the boundary probabilities and displacements of images.

    The boundary logits are averaged over each image and its horizontal flip. The displacements are the image's own.

    Args:
        network: in eval mode.
        images: [B, 3, H, W] float, normalized.

    Returns:
        Boundary probabilities [B, h, w] in 0..1, and displacements [B, 2, h, w] (rows, columns) in cells, both
        float32, with h = ceil(H / 4) and w = ceil(W / 4).
    """
    height, width = grid_size((images.shape[2], images.shape[3]))
    images = network.pad_to_cells(images)  # before the flip, so that both grids cover the same area
    logits, displacement = network(with_hflip(images))
    original, flipped = logits.float().chunk(2)
    boundary = ((original + flipped.flip(2)) / 2).sigmoid()
    return boundary[:, :height, :width], displacement[: len(images), :, :height, :width].float()


def predict_image_boundaries(network: BoundaryNetwork, image: np.ndarray, compute: Compute) -> NDArray[np.float32]:
    """Compute the boundary probabilities of one image.

    Args:
        network: prepared for inference.
        image: [H, W, 3] uint8 RGB.
        compute: device and precision.

    Returns:
        [ceil(H / 4), ceil(W / 4)] in 0..1.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(compute.device)
    with compute.autocast(network):
        images = normalize_images(pixels, network.backbone.mean, network.backbone.std)
        [boundary], _ = predict_boundaries(network, images)
    probabilities: NDArray[np.float32] = boundary.cpu().numpy()
    return probabilities


def _reduction(channels: int, width: int, groups: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


def _in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in float32: near 70 cells, displacements in bfloat16 would have steps of half a cell."""
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = layer(x.float())
        return output


def _reduce_to_grid(reductions: Iterable[nn.Module], features: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
    """Apply one reduction to each level, resize the outputs to the grid (h, w), and apply ReLU."""
    reduced = [reduction(f) for reduction, f in zip(reductions, features, strict=True)]
    return [
        torch.relu(f if f.shape[2:] == grid else F.interpolate(f, grid, mode="bilinear", align_corners=False))
        for f in reduced
    ]


def _choose_levels(backbone: Backbone) -> tuple[list[int], list[int], list[int]]:
    """Return the indices, channels and strides of the feature levels to use, finest first."""
    net: Any = backbone.net
    info = getattr(net, "feature_info", None)
    levels = [(i, e["num_chs"], e["reduction"]) for i, e in enumerate(getattr(info, "info", info) or ())]
    levels = [level for level in levels if level[2] > 1]
    if not hasattr(net, "forward_intermediates") or not levels:
        raise RecipeError(
            f"backbone {backbone.config['name']!r} has no feature levels for the boundary network: "
            "choose another, such as resnet50."
        )
    if len(levels) > MAX_LEVELS:
        chosen = np.linspace(0, len(levels) - 1, MAX_LEVELS + 1)[1:].round().astype(int)
        levels = [levels[i] for i in chosen]
    indices, channels, strides = (list(column) for column in zip(*levels, strict=True))
    return indices, channels, strides
