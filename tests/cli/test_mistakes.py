"""Mistakes of the user: each is reported in one sentence, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tagmask.errors import DataError
from tests.cli.runner import TOY, RunCommand, RunFailing


def test_data_that_does_not_exist(fails: RunFailing, data: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", *TOY]
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file.txt").touch()
    assert "does not exist" in fails("run", tmp_path / "none", *out)
    assert "holds no tags" in fails("run", empty, *out)
    assert "is a file, not a folder" in fails("run", tmp_path / "file.txt", *out)
    assert "cannot be read" in fails("run", data, "--tags", tmp_path / "none.csv", *out)
    assert "does not exist" in fails("run", data, "--masks", tmp_path / "none", *out)
    assert "cannot be read" in fails("run", data, "--class-list", tmp_path / "none", *out)
    sentence = fails("run", data, "--val", "val", *out)
    assert "the held-out images 'val' are neither a folder nor a split: " in sentence
    assert "no column 'split'" in sentence
    assert "no/where of held-out images does not exist" in fails("run", data, "--val", "no/where", *out)
    assert "none.csv cannot be read" in fails("run", data, "--val-tags", "none.csv", *out)
    assert "does not exist" in fails("run", data, "--val", data, "--val-masks", "none", *out)
    assert "have no held-out images: add --val" in fails("run", data, "--val-masks", data / "masks", *out)
    assert "did you mean 'red'" in fails("run", data, "--classes", "rad", *out)
    assert "does not exist" in fails("check", tmp_path / "none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (b"", "is empty"),
        (b"image,tags\n", "lists no image"),
        (b"picture,tags\n0.png,red\n", "line 1 has no column 'image' but 'picture, tags'"),
        (b"image,tags,colour\n0.png,red,x\n", "line 1 has an unknown column 'colour'"),
        (b"image,tags\n0.png,red\nnone.png,red\n", "line 3: there is no image 'none.png'"),
        (b"image,tags\n0.png,red\n0.png,green\n", "lists '0.png' again, after line 2, with other tags"),
        ("image,tags\n0.png,grün\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"image,tags\n0.png,\n1.png,\n", "has no tag; write the names of the classes"),
    ],
)
def test_bad_tag_tables(fails: RunFailing, data: Path, tmp_path: Path, table: bytes, expected: str) -> None:
    (tmp_path / "tags.csv").write_bytes(table)
    assert expected in fails("run", data, "--tags", tmp_path / "tags.csv", "--out", tmp_path / "out", *TOY)
    assert not (tmp_path / "out").exists()


def test_bad_recipes_and_settings(fails: RunFailing, data: Path, tmp_path: Path) -> None:
    line = ["run", data, "--out", tmp_path / "out", "--device", "cpu"]
    assert "did you mean 'scratch'" in fails(*line, "--recipe", "scrach")
    assert "does not exist" in fails(*line, "--recipe", "none.yaml")
    assert "did you mean 'epochs'" in fails(*line, "--set", "cam.epoch=1")
    assert "did you mean 'cam'" in fails(*line, "--set", "cma.epochs=1")
    assert "stage.setting=value" in fails(*line, "--set", "fast")
    assert "did you mean 'cam'" in fails("recipes", "cam2")
    assert "does not exist" in fails(*line, *TOY, "--set", "cam.weights=none.pth")


def test_devices_that_do_not_exist(fails: RunFailing, data: Path, finished: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    line = ["run", data, *out, "--recipe", "scratch", "--device"]
    assert "'gpu' is not a device: give cpu, cuda" in fails(*line, "gpu")
    assert "is not a device" in fails(*line, "meta")
    assert "'cuda:99' does not exist on this machine" in fails(*line, "cuda:99")
    if not torch.cuda.is_available():
        assert "'cuda' does not exist on this machine: give --device cpu" in fails(*line, "cuda")
        assert "does not exist on this machine" in fails("predict", finished, data, *out, "--device", "cuda")


def test_folders_that_are_not_runs(fails: RunFailing, data: Path, finished: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    for folder in (tmp_path, tmp_path / "none", data):
        for line in (["predict", folder, data, *out], ["export", folder, *out], ["report", folder]):
            assert "is not a tagmask run" in fails(*line)
    assert "is not a run, and holds no mask" in fails("evaluate", tmp_path, "--data", data, "--masks", "masks")
    assert "has a ground-truth mask" in fails("evaluate", finished, "--data", data, "--device=cpu")
    assert "is not empty and holds no tagmask run" in fails("run", data, "--out", data, *TOY)
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    (damaged / "segment" / "segmenter.safetensors").write_bytes(b"cut")
    assert "is damaged" in fails("predict", damaged, data, *out, "--device=cpu")
    (damaged / "segment" / "segmenter.safetensors").unlink()
    assert "run the same `tagmask run` command again" in fails("predict", damaged, data, *out, "--device=cpu")
    (damaged / "run.json").write_text("{")
    assert "is not JSON" in fails("report", damaged)
    assert not (tmp_path / "out").exists()


def test_masks_that_do_not_fit(fails: RunFailing, data: Path, tmp_path: Path) -> None:
    line = ["evaluate", tmp_path, "--data", data, "--masks", "masks"]
    shutil.copytree(data / "masks", tmp_path, dirs_exist_ok=True)
    first = tmp_path / "0.png"
    Image.new("L", (7, 5)).save(first)
    assert "has 48×40 pixels, its prediction 7×5" in fails(*line)
    Image.new("RGB", (48, 40)).save(first)
    assert "is an image of mode RGB, not a label map" in fails(*line)
    Image.new("L", (48, 40), 9).save(first)
    assert "preds has the value 9; valid values are 0..3 and 255" in fails(*line)
    first.write_bytes(b"no image")
    assert "cannot be read as an image" in fails(*line)
    first.unlink()
    assert "there is no mask" in fails(*line)


def test_bad_images_stop_a_run_or_are_left_out_and_counted(
    command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "data"
    shutil.copytree(data, bad)
    (bad / "0.png").write_bytes((data / "0.png").read_bytes()[:200])
    (bad / "1.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(bad / "masks" / "2.png")
    line = ["run", bad, "--masks", "masks", "--out", tmp_path / "run", *TOY]
    sentence = fails(*line)
    assert sentence.startswith("3 of 8 images of data are bad: ")
    assert "--skip-bad" in sentence
    assert not (tmp_path / "run").exists()
    assert command("check", bad, "--masks", "masks").status == 1
    result = command(*line, "--skip-bad")
    assert result.status == 0, result.err
    assert "5 images (3 bad ones left out), 3 classes (blue, green, red)" in result.err
    assert len(list((tmp_path / "run/segment/masks").iterdir())) == 5
    assert "3 bad images were left out" in (tmp_path / "run" / "report.html").read_text()
    line = ["predict", tmp_path / "run", *bad.glob("?.png"), "--out", tmp_path / "p", "--device=cpu"]
    assert "2 of 8 images of new images are bad" in fails(*line)
    assert command(*line, "--skip-bad").out.endswith(f"6 masks in {tmp_path}/p/masks\n")


def test_errors_of_worker_processes_are_one_sentence(monkeypatch: pytest.MonkeyPatch, fails: RunFailing) -> None:
    """PyTorch puts the traceback of the worker into the message."""
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
    error = DataError(f"{text}tagmask.errors.DataError: a.png does not exist; correct the name: now.\n")
    monkeypatch.setattr("tagmask.run", lambda *arguments, **named: (_ for _ in ()).throw(error), raising=False)
    assert fails("run", "x", "--out", "y") == "a.png does not exist; correct the name: now."


def test_a_killed_worker_process_is_one_sentence(monkeypatch: pytest.MonkeyPatch, fails: RunFailing) -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # PyTorch raises this
    monkeypatch.setattr("tagmask.run", lambda *arguments, **named: (_ for _ in ()).throw(error), raising=False)
    assert fails("run", "x", "--out", "y").startswith("loading images: a worker process was killed, most likely")


def test_errors_of_the_file_system_are_one_sentence(monkeypatch: pytest.MonkeyPatch, fails: RunFailing) -> None:
    error = OSError(28, "No space left on device", "run/cam/maps/1.safetensors")
    monkeypatch.setattr("tagmask.run", lambda *arguments, **named: (_ for _ in ()).throw(error), raising=False)
    assert fails("run", "x", "--out", "y") == (
        "run/cam/maps/1.safetensors: No space left on device; fix this, then run the same command again."
    )
