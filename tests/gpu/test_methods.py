"""Every method on CUDA, in float32 and in bfloat16, against its results on the CPU in float32.

Each method reads what the methods before it have made on the CPU, so that differences do not add up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from tagmask.compute import Compute, Precision
from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, method_names
from tagmask.run_folder import RunFolder
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history
from tests.gpu.conftest import CPU, CUDA, HAS_GPU, Record
from tests.methods.test_combinations import TOY, images  # noqa: F401
from tests.methods.tiny_sam import write_sam3

ORDER = (
    "cam", "recam", "layercam", "pretrained", "infercam", "amn", "affinity", "irn", "pseudo_masks", "regions",
    "concept", "segment", "activation_aware",
)  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "amn": {"dropout": 0.0},  # a GPU draws other random numbers
    "infercam": {"inputs": {"classifier": "cam"}},
    "affinity": {"inputs": {"classifier": "cam", "maps": "cam"}},
    "irn": {"inputs": {"classifier": "cam", "maps": "cam"}},
    "concept": {"inputs": {"maps": "cam"}},
}
LIMITS = {  # largest difference of the loss in % and of maps on average; smallest share of equal pixels of masks
    "float32": (0.5, 0.005, 0.99),  # convolutions may compute in TF32, with 10 bits of mantissa
    "bfloat16": (2.0, 0.03, 0.97),
}

ON_CPU = ("cam", "recam", "infercam", "amn", "pseudo_masks")  # the others run the same test, but take longer
CASES = [
    *(pytest.param(method, *CPU.values, "bfloat16") for method in ON_CPU),
    *(pytest.param(method, *CUDA.values, p, marks=CUDA.marks) for method in ORDER for p in ("float32", "bfloat16")),
]


@pytest.fixture(scope="module")
def reference(images: TaggedImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunFolder]:  # noqa: F811
    """Return a recipe of all methods that are tested, and the folder of its run on the CPU."""
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), folder / "weights.safetensors")
    stages = {name: {"method": name, **TOY[name], **CHANGES.get(name, {})} for name in ORDER}
    stages["pretrained"]["weights"] = str(folder / "weights.safetensors")
    stages["concept"]["sam"] = str(write_sam3(folder / "sam3"))
    stages = {name: settings for name, settings in stages.items() if HAS_GPU or name in ON_CPU}
    recipe, run = Recipe.model_validate({"stages": stages}), RunFolder(folder / "run")
    run_stages(recipe, images, run, compute=Compute(precision="float32"), reporter=Reporter())
    return recipe, run


@pytest.mark.parametrize(("method", "device", "precision"), CASES)
def test_a_method_gives_the_results_of_the_cpu(
    method: str,
    device: str,
    precision: Precision,
    reference: tuple[Recipe, RunFolder],
    images: TaggedImages,  # noqa: F811
    record: Record,
    tmp_path: Path,
) -> None:
    recipe, run = reference
    stage, expected = StageFolder(tmp_path / method), run.stage(method)
    inputs = {kind: run.stage(source) for kind, source in recipe.stages[method].inputs.items()}
    compute = Compute(torch.device(device), precision)
    recipe.stages[method].run(StageContext(stage, images, compute, Reporter(), inputs, recipe.seed))
    loss_limit, maps_limit, masks_limit = LIMITS[precision]
    if history := read_history(stage):
        losses = [(entry["loss"], other["loss"]) for entry, other in zip(history, read_history(expected), strict=True)]
        difference = max(100 * abs(loss / other - 1) for loss, other in losses)
        record("difference of the loss", f"{difference:.2f} %", f"≤ {loss_limit} %")
        assert difference <= loss_limit
    if "maps" in recipe.stages[method].makes:
        pairs = [
            [ResponseMaps.load(folder.maps_path(sample.id)).maps.astype(float) for folder in (stage, expected)]
            for sample in images.samples
        ]
        differences = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
        record("difference of maps, mean", f"{differences.mean():.5f}", f"≤ {maps_limit}")
        record("difference of maps, largest", f"{differences.max():.3f}", "")
        assert differences.mean() <= maps_limit
    if "masks" in recipe.stages[method].makes:
        equal = [
            read_label_map(stage.mask_path(s.id)) == read_label_map(expected.mask_path(s.id)) for s in images.samples
        ]
        share = float(np.mean(np.stack(equal)))
        record("equal pixels of masks", f"{100 * share:.2f} %", f"≥ {100 * masks_limit:.0f} %")
        assert share >= masks_limit


def test_every_method_is_compared() -> None:
    assert set(ORDER) == set(method_names())
