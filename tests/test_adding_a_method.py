"""The example of docs/guides/adding-a-method.md runs as it stands: its module, its recipe and its test."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tagmask.artifacts import read_json
from tagmask.maps import ResponseMaps
from tagmask.method_modules import import_method_module
from tagmask.run_folder import RunFolder
from tests.methods.contract import earlier_stages  # noqa: F401
from tests.runs import SETTINGS, toy_run, write_toy

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "adding-a-method.md"
METHOD, RECIPE, CONTRACT = re.findall(
    r"<!-- a test runs this -->\n```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
)

TOY = [
    *SETTINGS, "cam.weights=none", "cam.output_stride=8", "cam.frozen_stride=0", "cam.freeze_norm=false",
    "cam.lr=0.01", "cam.head_lr=0.01", "mine.scales=[1.0]", "pseudo_masks.crf.steps=2", "segment.architecture=Unet",
    "segment.freeze_norm=false", "segment.scales=[1.0]",
]  # fmt: skip

# At import time, so that pytest finds the class TestMyLayerCam.
with pytest.MonkeyPatch.context() as _patch:
    _module = ModuleType("my_layercam")
    _patch.setitem(sys.modules, "my_layercam", _module)
    exec(METHOD, _module.__dict__)
    exec(CONTRACT)


def test_the_example_is_short() -> None:
    assert len(METHOD.splitlines()) <= 60
    assert len([line for line in CONTRACT.splitlines() if line]) <= 5


def test_the_recipe_runs_a_method_outside_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maps are those of the shipped LayerCAM with the same layer."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_layercam.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "my_recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    import_method_module("my_layercam")
    photos = write_toy(tmp_path / "photos")

    run = toy_run(photos, tmp_path / "run", TOY, recipe=str(tmp_path / "my_recipe.yaml"))
    assert (run.masks_dir / "6.png").exists()
    run = run.run_stage("layercam", ["layers=[-2]", "scales=[1.0]"], quiet=True)
    folder = RunFolder(run.folder)
    for sample in run.images.read().samples:
        mine, shipped = (
            ResponseMaps.load(folder.stage(name).maps_path(sample.id)).maps for name in ("mine", "layercam")
        )
        np.testing.assert_allclose(mine, shipped, atol=0.01)

    assert any(name.startswith("mine ") for name in read_json(folder.evaluation_path)["maps"])
    assert "mine" in run.report.read_text(encoding="utf-8")
