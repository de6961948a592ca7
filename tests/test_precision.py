"""Where networks compute in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tagmask.compute import Compute

NETWORK = nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_emulated_bfloat16_of_older_gpus_is_not_used(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    """PyTorch emulates bfloat16 on a V100 or T4, which is slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert Compute(torch.device("cuda")).autocast_dtype(NETWORK) == expected


def test_a_precision_that_is_asked_for_is_used() -> None:
    assert Compute(precision="float32").autocast_dtype(NETWORK) == torch.float32
    assert Compute(precision="bfloat16").autocast_dtype(NETWORK) == torch.bfloat16


def test_depthwise_networks_compute_in_float32_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagmask.compute._cpu_supports_bfloat16", lambda: True)
    assert Compute().autocast_dtype(NETWORK) == torch.bfloat16
    assert Compute().autocast_dtype(nn.Conv2d(4, 4, 3, groups=4)) == torch.float32
