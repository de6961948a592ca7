"""Batch norms of several processes, against PyTorch's batch norms of the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tagmask.models.synced_batch_norm import synced_batch_norms

PARTS = (slice(0, 2), slice(2, 7))  # of a batch of seven images


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), BatchNormAct2d(5, momentum=0.3),
        nn.BatchNorm2d(5, affine=False, momentum=None), nn.Conv2d(5, 2, 1), nn.BatchNorm2d(2),
    )  # fmt: skip
    layers[-1].eval()  # frozen
    return layers


def make_batch() -> Tensor:
    return torch.randn(7, 3, 9, 8, generator=torch.Generator().manual_seed(1)) * 3 + 5


def step(network: nn.Module, images: Tensor) -> Tensor:
    """Two forward passes and a backward pass; returns the outputs."""
    network(images)
    outputs: Tensor = network(images)
    (outputs.square() * torch.arange(1, 3)[:, None, None]).sum().backward()
    return outputs.detach()


def one_process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    network = make_network()
    with synced_batch_norms(network):
        outputs = step(network, make_batch()[PARTS[rank]])
    for parameter in network.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
    gradients = [parameter.grad for parameter in network.parameters()]
    torch.save({"outputs": outputs, "gradients": gradients, "state": network.state_dict()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    network = make_network()
    expected = step(network, make_batch())
    mp.spawn(one_process, (tmp_path,), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([result["outputs"] for result in results]), expected, atol=1e-4, rtol=1e-4)
    for result in results:
        for name, value in network.state_dict().items():
            torch.testing.assert_close(result["state"][name], value, atol=1e-5, rtol=1e-4, msg=name)
        for parameter, gradient in zip(network.parameters(), result["gradients"], strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-3, rtol=1e-3)


def test_norms_in_eval_mode_stay_as_they_are() -> None:
    network = make_network().eval()
    expected = network(make_batch())
    before = copy.deepcopy(network.state_dict())
    with synced_batch_norms(network):
        assert torch.equal(network(make_batch()), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert "forward" not in vars(network[1])
