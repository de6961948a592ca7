"""Inference utilities: networks that are converted for fast inference, and horizontally flipped and scaled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tagmask.data.transforms import normalize_images, resize_bicubic

if TYPE_CHECKING:
    from tagmask.compute import Compute

PROBE_SIDE = 64  # pixels; the side of the random image that shows which norm follows which convolution
TOLERANCE = 1e-3  # of the folded outputs, relative to the largest output

Interpolation = Literal["bilinear", "bicubic"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def prepare_for_inference_inplace(network: NetworkT, compute: Compute) -> NetworkT:
    """Convert a network in place for fast inference, after which it must not be trained or saved.

    The network is set to eval mode, its batch norms are folded into its convolutions (`fold_norms_inplace`), and it
    is moved to the device in the channels-last memory format. Folded weights differ from the trained ones, and their
    names differ from those in the weights file.

    Args:
        network: any network. If it has an attribute `backbone`, only norms of the backbone are folded.
        compute: its `device` is where the network runs.

    Returns:
        The same network.
    """
    network = network.cpu().eval()  # folding needs exact float32 results
    fold_norms_inplace(getattr(network, "backbone", network))
    return network.to(compute.device).to(memory_format=torch.channels_last)


@torch.no_grad()
def fold_norms_inplace(network: nn.Module) -> None:
    """Fold each batch norm that follows a convolution into that convolution, which saves a pass over the memory.

    In eval mode, a norm is a fixed scale and shift of each channel, which the weights and bias of the convolution can
    include. If the folded network computes other outputs, all layers are restored. This happens where a convolution
    changes its own weights, or where its output is used twice. Layers with forward hooks are not folded, so that the
    hooks receive the same tensors as before.

    Args:
        network: on the CPU, in eval mode; maps images [B, 3, H, W] to a tensor.
    """
    probe = torch.randn(1, 3, PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(0))
    pairs, expected = _run_and_find_foldable_pairs(network, probe)
    names = {module: name for name, module in network.named_modules()}
    replaced: list[tuple[str, nn.Module]] = []
    for convolution, norm in pairs:
        activation = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        for old, new in ((convolution, fuse_conv_bn_eval(convolution, norm)), (norm, activation)):
            replaced.append((names[old], old))
            network.set_submodule(names[old], new)
    if pairs and (network(probe) - expected).abs().max() > TOLERANCE * expected.abs().max():
        for name, old in replaced:
            network.set_submodule(name, old)


def _run_and_find_foldable_pairs(network: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], Tensor]:
    """Return the pairs of a convolution and the norm of its output, each called once, and the network's output."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    hooks = []
    for module in [module for module in network.modules() if not module._forward_hooks]:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, _, output: outputs.append((m, output))))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, arguments: inputs.append((m, arguments[0]))))
    expected = network(probe)
    for hook in hooks:
        hook.remove()
    by_output = {id(output): convolution for convolution, output in outputs}
    pairs = [(by_output[id(x)], norm) for norm, x in inputs if id(x) in by_output]
    called = [module for module, _ in (*outputs, *inputs)]
    return [pair for pair in pairs if all(called.count(module) == 1 for module in pair)], expected


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return an image size (H, W) times a scale, rounded half to even as in IRN's code, at least one pixel per side."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def with_hflip(images: Tensor) -> Tensor:
    """Return the images, followed by their horizontal flips.

    Args:
        images: [B, 3, H, W].

    Returns:
        [2 · B, 3, H, W] in the channels-last memory format.
    """
    return torch.cat([images, images.flip(3)]).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Resize:
    """Resize normalized images [B, 3, H, W] to a size (h, w).

    Attributes:
        interpolation: "bilinear", with antialiasing where the images become smaller; or "bicubic", for which the images
            are converted to 8-bit images and resized by PIL, on the CPU.
        mean, std: with which the images are normalized, of the RGB channels, in 0..1. Only used by "bicubic".
    """

    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = images.shape[-2:]
        if self.interpolation == "bilinear":
            is_smaller = size[0] < height or size[1] < width
            return F.interpolate(images, size, mode="bilinear", antialias=is_smaller)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (255 * (images * std + mean)).round().clamp(0, 255).byte().cpu()
        resized = torch.stack([resize_bicubic(image, size) for image in pixels])
        return normalize_images(resized.to(images.device), self.mean, self.std)


BILINEAR = Resize()


def scaled(images: Tensor, scale: float, resize: Resize = BILINEAR) -> Tensor:
    """Return the images at another scale.

    Args:
        images: [B, 3, H, W].
        scale: above 0; a scale of 1 leaves the images unchanged.
        resize: how the images are resized.

    Returns:
        [B, 3, h, w], with (h, w) = `scaled_size((H, W), scale)`.
    """
    if scale == 1:
        return images
    return resize(images, scaled_size((images.shape[2], images.shape[3]), scale))


def scaled_with_hflip(images: Tensor, scale: float, resize: Resize = BILINEAR) -> Tensor:
    """Return the images at another scale, followed by their horizontal flips.

    Args:
        images: [B, 3, H, W].
        scale, resize: as in `scaled`.

    Returns:
        [2 · B, 3, h, w] in the channels-last memory format, with (h, w) = `scaled_size((H, W), scale)`.
    """
    return with_hflip(scaled(images, scale, resize))
