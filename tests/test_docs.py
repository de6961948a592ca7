"""The example of docs/adding-a-method.md runs as it stands: a module of one's own, its recipe and its test."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tagmask.artifacts import read_json
from tagmask.maps import ResponseMaps
from tagmask.stage import maps_path
from tests.methods.contract import earlier  # noqa: F401
from tests.runs import SETTINGS, toy_run, write_toy

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
METHOD, RECIPE, CONTRACT = re.findall(r"<!-- a test runs this -->\n```\w+\n(.*?)```", GUIDE, re.S)

TOY = [
    *SETTINGS, "cam.weights=none", "cam.output_stride=8", "cam.frozen_stride=0", "cam.freeze_norm=false",
    "cam.lr=0.01", "cam.head_lr=0.01", "mine.scales=[1.0]", "crf.crf.steps=2", "segment.architecture=Unet",
    "segment.freeze_norm=false", "segment.scales=[1.0]",
]  # fmt: skip

# Here, so that pytest finds the class: TestMyLayerCam.
with pytest.MonkeyPatch.context() as _patch:
    _module = ModuleType("my_layercam")
    _patch.setitem(sys.modules, "my_layercam", _module)
    exec(METHOD, _module.__dict__)
    exec(CONTRACT)


def test_the_example_is_short() -> None:
    assert len(METHOD.splitlines()) <= 60
    assert len([line for line in CONTRACT.splitlines() if line]) <= 5


def test_the_recipe_runs_a_method_outside_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its maps are those of the shipped LayerCAM at this stage."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_layercam.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "my_recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    photos = write_toy(tmp_path / "photos")

    run = toy_run(photos, tmp_path / "run", TOY, recipe=str(tmp_path / "my_recipe.yaml"))
    assert (run.masks / "6.png").exists()
    run = run.add("layercam", ["stages=[-2]", "scales=[1.0]"], quiet=True)
    for sample in run.images.read().samples:
        mine, shipped = (ResponseMaps.load(maps_path(run.folder / stage, sample)) for stage in ("mine", "layercam"))
        np.testing.assert_allclose(mine.maps, shipped.maps, atol=0.01)

    assert any(name.startswith("mine ") for name in read_json(run.folder / "evaluation.json")["maps"])
    assert "mine" in run.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", re.findall(r"`((?:src|tests|methods)/[\w/.]+)`", GUIDE))
def test_the_files_that_it_names_exist(path: str) -> None:
    root = Path(__file__).resolve().parents[1]
    assert (root / path).exists() or (root / "src" / "tagmask" / path).exists()
