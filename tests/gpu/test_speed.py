"""Speed on CUDA: what the table of `make test-gpu` says about it. Nothing is asserted about times."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tagmask.compute import Compute
from tagmask.methods.cam import Cam
from tagmask.progress import Reporter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history
from tests.gpu.conftest import CPU, CUDA, Record

ROOT = Path(__file__).resolve().parents[2]
WORKERS = {"cpu": 0, "cuda": len(os.sched_getaffinity(0))}
BACKBONES = {"cpu": "test_resnet", "cuda": "resnet50"}
NUM_IMAGES = {"cpu": 4, "cuda": 512}


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return benchmarks/maps.py; on the CPU with small images."""
    spec = importlib.util.spec_from_file_location("benchmark_of_maps", ROOT / "benchmarks" / "maps.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    if request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(module, "SIZE", (40, 48))
    return module


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_speed_of_response_maps(device: str, benchmark: ModuleType, record: Record, tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        backbone=BACKBONES[device], images=NUM_IMAGES[device], device=device, workers=WORKERS[device], folder=tmp_path
    )
    benchmark._write_images(tmp_path, arguments.images)
    stage, forward = benchmark.run_stage(arguments), benchmark.run_forward(arguments)
    share = stage["rate"] / forward["rate"]
    record("stage, images per second", f"{stage['rate']:.1f}", "")
    record("forward passes alone, images per second", f"{forward['rate']:.1f}", "")
    record("stage, share of the forward passes alone", f"{100 * share:.0f} %", "goal: ≥ 80 %")
    record("stage, waiting for data", stage["waiting for data"], "goal: ≤ 5 %")
    record("stage, of it for the first batch", stage["of it for the first batch"], "")
    assert share > 0


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_training_waits_for_data(device: str, benchmark: ModuleType, record: Record, tmp_path: Path) -> None:
    """On a GPU an upper bound: the process may wait for a batch while the GPU still computes the one before."""
    arguments = argparse.Namespace(folder=tmp_path)
    benchmark._write_images(tmp_path, NUM_IMAGES[device])
    images = benchmark._images(arguments)
    settings = Cam(
        backbone=BACKBONES[device], weights="none", frozen_stride=0, epochs=2, scales=(1.0,), lr=1e-3, head_lr=1e-2,
        batch_size=min(16, len(images)), crop_size=512 if device == "cuda" else 32,
    )  # fmt: skip
    compute = Compute(torch.device(device), workers=WORKERS[device])
    context = StageContext(StageFolder(tmp_path / "stage"), images, compute, Reporter(), {}, seed=0)
    settings.run(context)
    last = read_history(context.folder)[-1]
    record("training, images per second", f"{len(images) / max(last['seconds'], 0.01):.1f}", "")
    record("training, waiting for data", f"{100 * last['data_wait']:.1f} %", "goal: ≤ 5 %")
    assert 0 <= last["data_wait"] <= 1
