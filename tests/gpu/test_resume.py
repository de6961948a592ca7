"""Interrupted trainings on CUDA end with the same bytes as undisturbed ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.progress import LoopUnit, Reporter
from tagmask.recipe import find_method
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tests.gpu.conftest import CPU, CUDA, Record
from tests.methods.contract import earlier_stages  # noqa: F401
from tests.methods.test_combinations import TOY

CASES = [
    pytest.param(method, *device.values, marks=device.marks)
    for device, methods in ((CPU, ("cam",)), (CUDA, ("cam", "amn", "irn", "segment")))
    for method in methods
]


class Interruption(Reporter):
    """Interrupt a training after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    @contextmanager
    def progress(self, description: str, total: int, unit: LoopUnit = "images") -> Iterator[Any]:
        def advance(step: int) -> None:
            self.steps -= step if unit == "steps" else 0
            if self.steps <= 0:
                raise InterruptedError

        yield advance


@pytest.mark.parametrize(("method", "device"), CASES)
def test_an_interrupted_training_ends_with_the_same_bytes(
    method: str,
    device: str,
    toy_images: TaggedImages,
    earlier_stages: dict[str, Path],  # noqa: F811
    record: Record,
    tmp_path: Path,
) -> None:
    """It stops in the middle of its second epoch, from which it also resumes."""
    settings = {**TOY[method], "epochs": 2, "checkpoint_minutes": 0}
    stage = find_method(method).model_validate(settings)
    inputs = {kind: StageFolder(earlier_stages[kind]) for kind in stage.required_inputs()}

    def run(folder: str, reporter: Reporter) -> dict[str, torch.Tensor]:
        compute = Compute(torch.device(device), "float32" if device == "cpu" else "auto")
        stage.run(StageContext(StageFolder(tmp_path / folder), toy_images, compute, reporter, inputs, seed=0))
        [weights] = (tmp_path / folder).glob("*.safetensors")
        return safetensors.torch.load_file(weights)

    undisturbed = run("undisturbed", Reporter())
    with pytest.raises(InterruptedError):
        run("resumed", Interruption(steps=4))  # of 2 in each epoch
    resumed = run("resumed", Reporter())
    difference = max(float((undisturbed[name].float() - resumed[name].float()).abs().max()) for name in undisturbed)
    record("difference of the weights", f"{difference:.2g}", "0")
    assert difference == 0
    written = [path.relative_to(tmp_path / "resumed") for path in (tmp_path / "resumed").rglob("*.[sp][an]*")]
    assert written
    for name in written:
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
