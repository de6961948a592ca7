"""Batches in parts: the gradients of the parts are added up, so that a batch needs only the memory of one part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Batch = dict[str, Tensor]


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch of tensors [B, ...] into parts whose sizes differ by at most one image."""
    names = list(batch)
    pieces = zip(*(batch[name].tensor_split(num_parts) for name in names), strict=True)
    return [dict(zip(names, values, strict=True)) for values in pieces]


@contextmanager
def recorded_outputs(network: nn.Module) -> Iterator[list[Any]]:
    """Record what each call of a network returns (tensors [B, ...], also in tuples, lists or dictionaries)."""
    outputs: list[Any] = []
    handle = network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def zero_outputs(network: nn.Module, examples: Sequence[Any], batch_size: int) -> Iterator[None]:
    """Let the calls of a network return zeros of the shapes of these examples, for another number of images.

    Args:
        network: the network, which does not compute anything meanwhile.
        examples: for each call, what the network returned for one image (`recorded_outputs`).
        batch_size: the number of images.
    """
    calls = iter(examples)

    def forward(*arguments: Any, **keywords: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: t.new_zeros(batch_size, *t.shape[1:]), next(calls))

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def add_up(totals: list[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of two lists of tensors; an empty list of totals counts as zeros."""
    return [torch.add(a, b) for a, b in zip(totals, values, strict=True)] if totals else list(values)
