"""Deterministic algorithms are used in training only, and so is memory that is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tagmask.data.samples import TaggedImages
from tagmask.training import fit
from tagmask.training_environment import keep_freed_memory
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
    assert module.seen[2] is not deterministic  # new tensors are filled, as PyTorch does by default
    assert module.seen[3] is not deterministic  # cuDNN's choice by speed


def test_a_user_who_wants_deterministic_algorithms_everywhere_keeps_them(
    make_context: MakeContext, toy_images: TaggedImages
) -> None:
    torch.use_deterministic_algorithms(True)
    fit(NoisyTraining(), RandomImages(toy_images, lambda item: item, 0), make_context(), epochs=1, batch_size=4)
    assert flags()[:2] == (True, False)


MEMORY_SCRIPT = """
import json, resource, torch
from tagmask.training_environment import keep_freed_memory

def make_and_free(count):
    for _ in range(count):
        torch.ones(25_000_000)

def page_faults():  # while ten tensors of 100 MB are made and freed, after the first ones
    make_and_free(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make_and_free(10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

result = {"faults before": page_faults(), "memory before": resident_megabytes()}
with keep_freed_memory():
    result |= {"faults inside": page_faults()}
    tensors = [torch.ones(5_000_000) for _ in range(20)]
    del tensors
    result |= {"memory inside": resident_megabytes()}
print(json.dumps(result | {"memory after": resident_megabytes()}))
"""


def run_memory_script(**environment: str) -> dict[str, float]:
    """Return page faults and resident memory before, inside and after `keep_freed_memory`, in a new process."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], env=inherited | environment, check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such settings")


@needs_glibc
def test_memory_of_freed_tensors_is_used_again_and_returned_in_the_end() -> None:
    result = run_memory_script()
    assert result["faults inside"] < result["faults before"] / 2
    assert result["memory inside"] > result["memory before"] + 300
    assert result["memory after"] < result["memory before"] + 50


@needs_glibc
def test_the_allocation_that_a_user_has_chosen_stays() -> None:
    result = run_memory_script(MALLOC_ARENA_MAX="2")
    assert result["faults inside"] > result["faults before"] / 2


def test_a_training_keeps_freed_memory(
    make_context: MakeContext, toy_images: TaggedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    @contextmanager
    def record() -> Iterator[None]:
        order.append("begin")
        yield
        order.append("end")

    monkeypatch.setattr("tagmask.training.keep_freed_memory", record)
    fit(NoisyTraining(), RandomImages(toy_images, lambda item: item, 0), make_context(), epochs=1, batch_size=4)
    assert order == ["begin", "end"]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with keep_freed_memory():
        torch.ones(1000)
