"""Batch norms whose statistics are those of the whole batch when several processes share it.

`torch.nn.SyncBatchNorm` computes the same, but only on GPUs, and it would replace timm's norms that include an
activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


@contextmanager
def synced_batch_norms(network: nn.Module) -> Iterator[None]:
    """Let each batch norm that is in training mode use the statistics of all processes; without effect in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    normalized = _normalize(norm, x.float()).to(x.dtype)
    return norm.act(norm.drop(normalized)) if isinstance(norm, BatchNormAct2d) else normalized


def _normalize(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalize activations [B, C, H, W] float32 and update the running statistics, as `torch.nn.BatchNorm2d` does."""
    own_count = x.new_tensor([x.numel() / x.shape[1]])  # of the values per channel
    count = _SumOverProcesses.apply(own_count)
    if count <= 1:
        raise ValueError("Expected more than 1 value per channel when training")  # the words of PyTorch
    mean = _SumOverProcesses.apply(x.sum((0, 2, 3))) / count
    centered = x - mean[:, None, None]
    variance = _SumOverProcesses.apply(centered.square().sum((0, 2, 3))) / count
    _update_running_statistics(norm, mean.detach(), (variance * count / (count - 1)).detach())
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        return centered * (scale * norm.weight)[:, None, None] + norm.bias[:, None, None]
    return centered * scale[:, None, None]


def _update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
