"""Deterministic algorithms are used in training only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tagmask.data.samples import TaggedImages
from tagmask.training import fit
from tests.methods.contract import MakeContext
from tests.noisy_training import NoisyTraining, RandomImages

Flags = tuple[bool, bool, bool, bool, bool]


def flags() -> Flags:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )


@pytest.fixture(autouse=True)
def _benchmark_is_on() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)


class RecordingFlags(NoisyTraining):
    seen: Flags

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen = flags()
        return super().losses(batch)


@pytest.mark.parametrize("stop_at", [None, 1], ids=["complete", "interrupted"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_flags_are_restored(
    make_context: MakeContext, toy_images: TaggedImages, deterministic: bool, stop_at: int | None
) -> None:
    before = flags()
    module = RecordingFlags(stop_at, deterministic=deterministic)
    try:
        fit(module, RandomImages(toy_images, lambda item: item, 0), make_context(), epochs=1, batch_size=4)
    except InterruptedError:
        assert stop_at is not None
    assert flags() == before
    assert module.seen[0] is deterministic
    assert module.seen[3] is not deterministic  # cuDNN's choice by speed


def test_a_user_who_wants_deterministic_algorithms_everywhere_keeps_them(
    make_context: MakeContext, toy_images: TaggedImages
) -> None:
    torch.use_deterministic_algorithms(True)
    fit(NoisyTraining(), RandomImages(toy_images, lambda item: item, 0), make_context(), epochs=1, batch_size=4)
    assert flags()[:2] == (True, False)
