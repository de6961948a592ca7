"""`DeployGraph`: a segmentation network with all that is around it, as one graph that takes images of any size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import padding
from torch import Tensor, nn

from tagmask.models.backbone import MIN_SIDE, Backbone
from tagmask.models.segmenter import Segmenter


class DeployGraph(nn.Module):
    """A segmentation network from the image to the mask, in a single pass, which `torch.export` can trace.

    It computes what `Predictor.single_pass` computes. The difference is in the code: no step depends on a size in
    Python, so that the traced graph takes images of any size.

    Args:
        network: the network, which is copied.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.net = copy.deepcopy(network.net).eval()
        self.multiple, self.min_side = network.multiple, network.min_side
        self.register_buffer("mean", torch.tensor(network.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(network.std).view(1, 3, 1, 1))
        self.net.check_input_shape = lambda images: None  # of smp; the images are padded to a size that it takes
        for name, module in list(self.net.named_modules()):
            if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
                self.net.set_submodule(name, AveragePool(module.output_size))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment images.

        Args:
            image: [B, H, W, 3] uint8 RGB.

        Returns:
            mask: [B, H, W] uint8, the most probable label: 0 background, 1..K classes.
            confidence: [B, H, W] float32, the probability of this label.
            logits: [B, K + 1, H, W] float32, whose softmax are the probabilities; background first.
        """
        images = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        logits = self._logits_of_any_backbone(images) if isinstance(self.net, nn.Sequential) else self._logits(images)
        confidence, mask = logits.softmax(1).max(1)
        return mask.to(torch.uint8), confidence, logits

    def _logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, K + 1, H, W] of an architecture of smp, as `Segmenter.forward` pads and crops."""
        height, width = images.shape[2:]
        bottom, right = (
            _round_up(torch.sym_max(side, self.min_side), self.multiple) - side for side in (height, width)
        )
        logits: Tensor = self.net(F.pad(images, (0, right, 0, bottom), mode="replicate"))
        return logits[:, :, :height, :width]

    def _logits_of_any_backbone(self, images: Tensor) -> Tensor:
        """Return the logits [B, K + 1, H, W] of DeepLab-v2, as `Backbone.forward` resizes."""
        backbone, head = self.net
        assert isinstance(backbone, Backbone)
        size, multiple = images.shape[2:], backbone.side_multiple
        sides = [_round_to_nearest(torch.sym_max(side, MIN_SIDE), multiple) for side in size]
        is_enlarged_only = multiple == 1  # antialiasing has no effect then
        resized = F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=not is_enlarged_only)
        return F.interpolate(head(backbone.features(resized)), size, mode="bilinear", align_corners=False)


class AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, because ONNX has no such operator for images of any size.

    Args:
        output_size: the number of rows and columns of the result, as the attribute of `nn.AdaptiveAvgPool2d`.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else output_size

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = (
            _averaging_matrix(side, count) for side, count in zip(features.shape[2:], self.output_size, strict=True)
        )
        return rows @ features @ columns.T


def _averaging_matrix(side: int, count: int) -> Tensor:
    """Return the matrix [count, side] that averages `side` cells to `count`, with the bins of adaptive pooling."""
    cell, index = torch.arange(side), torch.arange(count)[:, None]
    start, stop = index * side // count, ((index + 1) * side + count - 1) // count
    return ((cell >= start) & (cell < stop)).float() / (stop - start).float()


@contextmanager
def same_padding_in_integers() -> Iterator[None]:
    """Let timm compute the padding "same" with integers.

    timm computes it with floats, and the tracer would take many minutes to simplify the formulas of all layers.
    """
    module: Any = padding
    original = module.get_same_padding
    module.get_same_padding = same_padding
    try:
        yield
    finally:
        module.get_same_padding = original


def same_padding(side: int | torch.SymInt, kernel_size: int, stride: int, dilation: int) -> Any:
    """Return the number of cells to add to a side, so that a convolution gives `side / stride` cells, rounded up."""
    reach = dilation * (kernel_size - 1) + 1
    total = reach - stride + (-side) % stride
    return total if reach >= stride else torch.sym_max(total, 0)


def _round_up(side: int | torch.SymInt, multiple: int) -> Any:
    """Return the smallest multiple that is not below `side`."""
    return (side + multiple - 1) // multiple * multiple


def _round_to_nearest(side: int | torch.SymInt, multiple: int) -> Any:
    """Return the nearest multiple; of two equally near ones the even multiple, as Python's `round` does."""
    quotient = side // multiple
    tie = (1 - quotient % 2) if multiple % 2 == 0 else 0
    return (side + multiple // 2 - tie) // multiple * multiple
