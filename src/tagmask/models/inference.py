"""How a trained network is asked: prepared to answer quickly, with views of its images."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tagmask.compute import Compute

PROBE = 64  # pixels; the side of the noise that shows which norm follows which convolution
TOLERANCE = 1e-3  # of the probe's largest output

N = TypeVar("N", bound=nn.Module)


def prepare_for_inference(network: N, compute: Compute) -> N:
    """The network itself, in eval mode on its device, in the memory layout that is fastest, its norms folded.

    It is not to be trained or saved after that.
    """
    network = network.cpu().eval()  # where the numbers are exact
    fold_norms(getattr(network, "backbone", network))
    return network.to(compute.device).to(memory_format=torch.channels_last)


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Make each batch norm that follows a convolution part of it, which saves a pass over memory.

    A norm's scale and shift, fixed in eval mode, go into the convolution's weights. Where the outputs are not the
    same then (a convolution that changes its own weights, or whose output is used twice), all stays as it is.

    Args:
        network: on the CPU, in eval mode; images [B, 3, H, W] → a tensor.
    """
    probe = torch.randn(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0))
    pairs, expected = _norms_after_convolutions(network, probe)
    names = {module: name for name, module in network.named_modules()}
    before: list[tuple[str, nn.Module]] = []
    for convolution, norm in pairs:
        act = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        for old, new in ((convolution, fuse_conv_bn_eval(convolution, norm)), (norm, act)):
            before.append((names[old], old))
            network.set_submodule(names[old], new)
    if pairs and (network(probe) - expected).abs().max() > TOLERANCE * expected.abs().max():
        for name, old in before:
            network.set_submodule(name, old)


def _norms_after_convolutions(network: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], Tensor]:
    """The pairs of which the second is given the first's output, each used once; and what the network makes of it."""
    made: list[tuple[nn.Conv2d, Tensor]] = []
    given: list[tuple[nn.Module, Tensor]] = []
    hooks = []
    unheard = [m for m in network.modules() if not m._forward_hooks]  # whoever listens hears what was there before
    for module in unheard:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, _, output: made.append((m, output))))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, inputs: given.append((m, inputs[0]))))
    expected = network(probe)
    for hook in hooks:
        hook.remove()
    by_output = {id(output): module for module, output in made}
    pairs = [(by_output[id(x)], norm) for norm, x in given if id(x) in by_output]
    modules = [m for m, _ in (*made, *given)]
    return [pair for pair in pairs if all(modules.count(m) == 1 for m in pair)], expected


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """An image size times a scale, at least one pixel a side."""
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))


def with_hflip(images: Tensor, scale: float = 1) -> Tensor:
    """Images [B, 3, H, W] at a scale (smaller: antialiased), then their mirror images: [2 · B, 3, h, w]."""
    if scale != 1:
        size = scaled((images.shape[2], images.shape[3]), scale)
        images = F.interpolate(images, size, mode="bilinear", antialias=scale < 1)
    return torch.cat([images, images.flip(3)]).contiguous(memory_format=torch.channels_last)
