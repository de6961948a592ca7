"""A trained network stays where only settings of its use have changed, and the results are those of a new run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tagmask.execution import Execution
from tagmask.methods.cam import Cam
from tagmask.methods.segment import Segment
from tests.runs import contents, toy_run, write_toy

RECIPE = """
stages:
  cam: {weights: none, output_stride: 8}
  amn: {epochs: 1, batch_size: 4, crop_size: 32, scales: [1.0], seeds: {fg: 0.4, bg: 0.2}}
  irn: {epochs: 1, batch_size: 4, crop_size: 64, pair_radius: 4}
  pseudo_masks: {refine: none}
  segment: {architecture: Unet, weights: classifier, output_stride: 32, scales: [1.0]}
"""
TRAINED = ["amn", "cam", "irn", "segment"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "all.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def first(data: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    toy_run(data, out, recipe=recipe)
    return out


def networks(run: Path) -> dict[str, int]:
    """The times at which the networks of the stages were written, by stage."""
    return {file.parent.name: file.stat().st_mtime_ns for file in sorted(run.glob("*/*.safetensors"))}


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        (["segment.crf.steps=1", "segment.inference_batch_size=1", "segment.scales=[0.5,1]"], []),
        (["segment.crf=null"], []),
        (["irn.walk.beta=3"], ["segment"]),
        (["amn.scales=[0.5]", "amn.renormalize=nowhere"], ["irn", "segment"]),
        (["cam.scales=[0.5]", "cam.inference_stride=16"], ["amn", "irn", "segment"]),
        (["segment.crf.steps=1", "segment.lr=0.001"], ["segment"]),
    ],
)
def test_networks_stay_if_only_their_use_changes(
    settings: list[str], trained: list[str], first: Path, data: Path, recipe: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(first, run, copy_function=shutil.copy2)
    before = networks(run)
    assert list(before) == TRAINED
    toy_run(data, run, settings, recipe=recipe, redo=True)
    assert [name for name, time in networks(run).items() if time != before[name]] == sorted(trained)
    toy_run(data, tmp_path / "new", settings, recipe=recipe)
    assert contents(run) == contents(tmp_path / "new")


def test_networks_stay_beside_shards(data: Path, recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    settings = ["amn.scales=[0.5]"]
    toy_run(data, tmp_path / "run", recipe=recipe, execution=Execution(storage="shards"))
    before = networks(tmp_path / "run")
    toy_run(data, tmp_path / "run", settings, recipe=recipe, execution=Execution(storage="shards"), redo=True)
    assert networks(tmp_path / "run")["amn"] == before["amn"]
    toy_run(data, tmp_path / "new", settings, recipe=recipe, execution=Execution(storage="shards"))
    assert contents(tmp_path / "run") == contents(tmp_path / "new")


def test_an_interrupted_change_goes_on(first: Path, data: Path, recipe: str, tmp_path: Path) -> None:
    """Killed while the old masks are removed, and resumed with either setting."""
    for settings in (["segment.crf=null"], []):
        run = tmp_path / f"run{len(settings)}"
        shutil.copytree(first, run, copy_function=shutil.copy2)
        before = networks(run)
        for name in "024":
            (run / "segment" / "masks" / f"{name}.png").unlink()
        toy_run(data, run, settings, recipe=recipe, redo=True)
        assert networks(run) == before
        toy_run(data, tmp_path / f"new{len(settings)}", settings, recipe=recipe)
        assert contents(run) == contents(tmp_path / f"new{len(settings)}")


def test_a_network_of_another_run_is_not_touched(first: Path, data: Path, recipe: str, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(first, run, copy_function=shutil.copy2)
    shutil.move(run / "segment", other)
    (run / "segment").symlink_to(other)
    before = contents(other)
    toy_run(data, run, ["segment.crf=null"], recipe=recipe, redo=True)
    assert contents(other) == before
    assert not (run / "segment").is_symlink()


def test_what_training_depends_on_is_no_setting_of_inference() -> None:
    assert "scales" in Segment().inference_settings()
    assert "scales" not in Segment(calibration_images=1).inference_settings()  # the biases are fitted at these scales
    assert "scales" in Cam().inference_settings()
    assert not Cam(frozen_stride="all").inference_settings()  # all views are features to learn from
