"""Several processes (torchrun) give the result of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tagmask
from tagmask.compute import Compute
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tests.command_processes import run_in_two_processes
from tests.runs import SETTINGS, toy_run, write_toy

# Adam amplifies the last digits of gradients that are almost zero. Without it, several processes only add in another
# order, also in the batch norms, which learn here. In bfloat16, where the last digits are larger, the batch norms
# would round at other places.
EXACT = [
    *SETTINGS, "segment.architecture=deeplabv2",
    *(f"{stage}.{change}" for stage in ("cam", "segment") for change in ("freeze_norm=false", "optimizer=sgd")),
    "cam.batch_size=3", "segment.batch_size=3",  # one process gets two images, the other one
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def torchrun(arguments: list[str], log: Path) -> subprocess.CompletedProcess[str]:
    """Run tagmask in two processes; their output goes to log/**/<rank>/stdout.log and stderr.log."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += ["--redirects=3", f"--log-dir={log}", "-m", "tagmask", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NUMBA_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def printed(log: Path, rank: int, stream: str) -> str:
    [file] = log.glob(f"**/{rank}/{stream}.log")
    return file.read_text()


def run_arguments(data: Path, out: Path) -> list[str]:
    """Return the command line of a run that several processes do exactly as one."""
    arguments = ["run", str(data), "--masks=masks", "--recipe=scratch", "--workers=1", "--precision=float32"]
    return [*arguments, f"--out={out}", *(f"--set={setting}" for setting in EXACT)]


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return the run folder of one process, that of two processes, and the log of the latter."""
    folder = tmp_path_factory.mktemp("runs")
    result = torchrun(run_arguments(data, folder / "two"), folder / "log")
    assert result.returncode == 0, printed(folder / "log", 0, "stderr")
    toy_run(data, folder / "one", EXACT, precision="float32")
    return folder / "one", folder / "two", folder / "log"


@pytest.mark.slow
def test_weights_equal_those_of_one_process(both: tuple[Path, Path, Path]) -> None:
    for file in ("cam/classifier.safetensors", "segment/segmenter.safetensors"):
        one, two = (load_file(folder / file) for folder in both[:2])
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_maps_masks_and_figures_equal_those_of_one_process(both: tuple[Path, Path, Path]) -> None:
    for i in range(8):
        one, two = (ResponseMaps.load(folder / f"cam/maps/{i}.safetensors") for folder in both[:2])
        np.testing.assert_allclose(two.maps, one.maps, atol=1e-2)
        for stage in ("pseudo_masks", "segment"):
            labels = [read_label_map(folder / stage / "masks" / f"{i}.png") for folder in both[:2]]
            assert (labels[0] == labels[1]).mean() >= 0.99
    thresholds = [json.loads((folder / "pseudo_masks/threshold.json").read_text())["threshold"] for folder in both[:2]]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1 / 128)
    figures_of = [json.loads((folder / "evaluation.json").read_text()) for folder in both[:2]]
    curves = [found["maps"] for found in figures_of]
    assert curves[0].keys() == curves[1].keys() != set()
    for name, curve in curves[0].items():
        assert curves[1][name]["miou"] == pytest.approx(curve["miou"], abs=0.02)
        assert len(curves[1][name]["image_best"]) == len(curve["image_best"])
    scores = [found["scores"] for found in figures_of]
    assert scores[0].keys() == scores[1].keys()
    for name, figures in scores[0].items():
        assert np.sum(figures["confusion"]) == np.sum(scores[1][name]["confusion"]) == 8 * 40 * 48
        assert scores[1][name]["miou"] == pytest.approx(figures["miou"], abs=0.02)
    histories = [json.loads((folder / "cam/history.json").read_text()) for folder in both[:2]]
    losses = [[epoch["loss"] for epoch in history] for history in histories]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_the_files_are_the_same(both: tuple[Path, Path, Path]) -> None:
    names = [{str(f.relative_to(folder)) for f in folder.rglob("*")} for folder in both[:2]]
    assert names[0] == names[1]


@pytest.mark.slow
def test_only_the_main_process_prints(both: tuple[Path, Path, Path]) -> None:
    log = both[2]
    assert "report" in printed(log, 0, "stdout")
    assert printed(log, 1, "stdout") == ""
    assert printed(log, 1, "stderr") == ""


@pytest.mark.slow
def test_all_processes_learn_from_the_reviews_that_the_main_process_has_read(
    both: tuple[Path, Path, Path], data: Path, tmp_path: Path
) -> None:
    labels = np.full((40, 48), 2, np.uint8)
    for name in ("one", "two"):
        review = tagmask.load(shutil.copytree(both[0].parent / name, tmp_path / name)).review
        for image_id in ("0", "3", "5"):
            review.record(image_id, "corrected", labels, source="test")
    status = run_in_two_processes(run_arguments(data, tmp_path / "two"), tmp_path / "log")
    said = printed(tmp_path / "log", 0, "stderr")
    assert status == 0, said
    assert "3 reviewed masks: makes pseudo_masks, segment again" in said
    toy_run(data, tmp_path / "one", EXACT, precision="float32")
    one, two = (load_file(tmp_path / name / "segment/segmenter.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)
    assert (read_label_map(tmp_path / "two/segment/masks/5.png") == 2).all()
    (tmp_path / "two" / "review" / "log.jsonl").write_text("{}\n")
    assert run_in_two_processes(run_arguments(data, tmp_path / "two"), tmp_path / "damaged") != 0
    assert "log.jsonl, line 1 is damaged" in printed(tmp_path / "damaged", 0, "stderr")


@pytest.mark.slow
def test_an_error_ends_all_processes_with_one_sentence(data: Path, tmp_path: Path) -> None:
    arguments = ["run", str(data), "--recipe=scratch", f"--out={tmp_path / 'out'}", "--set=cam.batch_size=1"]
    assert run_in_two_processes(arguments, tmp_path / "log") != 0
    said = printed(tmp_path / "log", 0, "stderr").splitlines()
    assert said[-1] == (
        "tagmask: stage 'cam': batch_size 1 cannot be split over 2 processes; start fewer processes, or give a larger "
        "batch_size."
    )
    assert "Traceback" not in str(said)


def test_an_unusable_slurm_job_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "night"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(RecipeError, match=r"this SLURM job cannot be used: .*--ntasks-per-node=8"):
        Compute.detect("cpu")
