"""Commands that make a run: run, demo and add-stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import tagmask
from tests.cli.runner import TOY, RunCommand, RunFailing
from tests.command_processes import start_command
from tests.runs import contents, toy_run, write_toy


def test_run_prints_where_the_results_are(command: RunCommand, data: Path, tmp_path: Path) -> None:
    result = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY)
    assert result.status == 0, result.err
    assert "[1/3] cam" in result.err
    assert "warning: there are only 8 images" in result.err
    assert "check images" not in result.out
    recommended = json.loads((tmp_path / "run" / "recommendation.json").read_text())
    assert f"recommended masks: {recommended['stage']} ({recommended['reason']})" in result.out
    assert f"masks   {tmp_path}/run/{recommended['stage']}/masks" in result.out
    assert "mIoU" in result.out
    again = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json").json
    assert again["masks"] == f"{tmp_path}/run/{recommended['stage']}/masks"
    assert again["recommendation"] == recommended
    assert again["maps"] == f"{tmp_path}/run/cam/maps"
    assert again["report"] == f"{tmp_path}/run/report.html"
    assert set(again["evaluation"]["scores"]) == {f"pseudo_masks ({data.name})", f"segment ({data.name})"}
    assert again["evaluation"] == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    quiet = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY, "--quiet")
    assert (quiet.out, quiet.err) == ("", "")


def test_run_without_ground_truth_says_that_the_quality_is_unknown(
    command: RunCommand, data: Path, tmp_path: Path
) -> None:
    result = command("run", data, "--out", tmp_path / "run", *TOY)
    assert result.status == 0, result.err
    assert "the quality of the masks is unknown" in " ".join(result.out.split())
    assert (tmp_path / "run" / "report.html").exists()


def test_run_with_held_out_images(command: RunCommand, data: Path, tmp_path: Path) -> None:
    line = ["run", data, "--out", tmp_path / "run", "--masks", "masks", "--val", data, *TOY, "--json"]
    scores = command(*line).json["evaluation"]["scores"]
    on_training_images = {f"{stage} ({data.name})" for stage in ("pseudo_masks", "segment")}
    assert set(scores) == on_training_images | {f"segment ({data.name}, held out)"}
    assert len(list((tmp_path / "run" / "held_out").glob("*/masks/*.png"))) == 8


def test_held_out_images_with_their_own_tags_and_masks(command: RunCommand, data: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    write_toy(val / "photos", masks=False)
    (val / "photos" / "tags.csv").rename(val / "tags.csv")
    shutil.copytree(data / "masks", val / "masks")
    line = ["run", data, "--out", tmp_path / "run", "--val", val / "photos", "--val-masks", val / "masks", *TOY]
    with_tags = command(*line, "--val-tags", val / "tags.csv", "--json").json["evaluation"]["scores"]
    assert set(with_tags) == {"segment (photos)"}
    without_tags = command(*line, "--json").json["evaluation"]["scores"]
    assert without_tags == with_tags


def test_a_run_in_the_folder_of_its_images_with_a_limit(command: RunCommand, data: Path, tmp_path: Path) -> None:
    """The second command finds the masks of the first one among the images, and must not read them."""
    photos = shutil.copytree(data, tmp_path / "photos")
    line = ["run", photos, "--masks", "masks", "--limit", "4", "--out", photos / "run", *TOY, "--json"]
    first = command(*line)
    assert first.status == 0, first.err
    assert len(list((photos / "run" / "segment" / "masks").glob("*.png"))) == 4
    assert json.loads((photos / "run" / "run.json").read_text())["sources"]["images"]["limit"] == 4
    again = command(*line[:-1])
    assert "is already finished" in again.err


def test_demo_runs_its_recipe_on_generated_images(
    command: RunCommand, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {}

    def run(source: tagmask.DataSource, out: Path, **named: object) -> tagmask.Run:
        arguments.update(named, source=source, out=out)
        return tagmask.load(finished)

    monkeypatch.setattr("tagmask.data.scenes.write_scenes", lambda folder, **named: arguments.update(named))
    monkeypatch.setattr("tagmask.run", run, raising=False)
    result = command("demo", "--out", tmp_path, "--images", "20", "--device", "cpu")
    assert result.status == 0, result.err
    assert "generating 20 training images" in result.out
    assert f"report  {finished}/report.html" in result.out
    assert (arguments["num_train"], arguments["num_val"]) == (20, 200)
    assert arguments["source"] == tagmask.DataSource(root=str(tmp_path / "scenes-20"), split="train")
    assert arguments["held_out"] == tagmask.DataSource(root=str(tmp_path / "scenes-20"), split="val")
    assert (arguments["recipe"], arguments["device"], arguments["out"]) == ("demo", "cpu", tmp_path / "run")


def test_a_run_folder_can_be_used_from_another_directory(
    command: RunCommand, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    settings = [*TOY, "--set=cam.epochs=0", "--set=segment.epochs=0"]
    assert command("run", data.name, "--out", tmp_path / "run", "--masks", "masks", *settings).status == 0
    monkeypatch.chdir(tmp_path)
    assert command("report", "run").status == 0
    assert command("export", "run", "--out", "out").status == 0


def test_resume_needs_only_the_folder(command: RunCommand, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = ["run", data, "--out", folder, "--masks", "masks", "--val", data, *TOY]
    assert command(*line).status == 0
    before = contents(folder)
    shutil.rmtree(folder / "segment")
    shutil.rmtree(folder / "held_out")
    resumed = command("resume", folder, "--json")
    assert resumed.json["report"] == f"{folder}/report.html"
    after = contents(folder)
    before.pop("run.json"), after.pop("run.json")  # they say by which request the run was finished
    assert after == before
    assert "[3/3] segment: already done" in " ".join(command(*line).err.split())


def test_resume_with_other_settings(command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "is not a tagmask run" in fails("resume", folder)
    assert command("run", data, "--out", folder, *TOY).status == 0
    line = ["resume", folder, "--set", "pseudo_masks.threshold=0.2"]
    assert "(threshold 'auto' → 0.2)" in fails(*line)
    assert command(*line, "--redo").status == 0
    assert "threshold: 0.2" in (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").unlink()
    assert "has no recipe.yaml" in fails("resume", folder)


def test_other_settings_are_refused(fails: RunFailing, data: Path, finished: Path) -> None:
    before = contents(finished)
    sentence = fails("run", data, "--out", finished, "--masks", "masks", *TOY, "--set", "pseudo_masks.threshold=0.2")
    assert "pseudo_masks was made with other settings (threshold 'auto' → 0.2)" in sentence
    assert "--redo" in sentence
    assert contents(finished) == before


def test_add_stage_makes_other_maps_of_a_finished_run(command: RunCommand, data: Path, tmp_path: Path) -> None:
    folder = toy_run(data, tmp_path / "run").folder
    line = ["add-stage", folder, "infercam", "--set", "iterations=2", "--set", "scales=[1.0]"]
    added = command(*line, "--device", "cpu", "--workers", "0", "--json").json
    assert added["maps"] == str(folder / "infercam" / "maps")
    assert len(list((folder / "infercam" / "maps").glob("*.safetensors"))) == 8
    assert list(added["evaluation"]["maps"]) == [f"cam ({data.name})", f"infercam ({data.name})"]
    assert f"infercam ({data.name})" in (folder / "report.html").read_text()
    again = command(*line, "--device", "cpu", "--workers", "0")
    assert "best threshold" in again.out
    assert f"maps    {folder}/infercam/maps" in again.out

    compared = command("thresholds", folder, "--json").json["maps"]
    assert compared == added["evaluation"]["maps"]
    for curve in compared.values():
        assert max(curve["miou"]) == curve["best_miou"] == curve["miou"][round(100 * curve["best_threshold"])]
        assert curve["interval"][0] <= curve["best_threshold"] <= curve["interval"][1]
        assert curve["oracle_miou"] >= curve["best_miou"]
    page = (folder / "thresholds.html").read_text()
    assert page.count('class="line s') >= 2
    printed = command("thresholds", folder, "--data", data, "--masks", "masks", "--out", tmp_path / "c.html")
    assert "infercam" in printed.out
    assert (tmp_path / "c.html").exists()


def test_add_stage_makes_other_masks_of_a_finished_run(command: RunCommand, data: Path, tmp_path: Path) -> None:
    folder = toy_run(data, tmp_path / "run").folder
    line = ["add-stage", folder, "pseudo_masks", "--name", "fixed", "--set", "threshold=0.4", "--device", "cpu"]
    added = command(*line, "--workers", "0")
    assert added.status == 0, added.err
    assert f"masks   {folder}/fixed/masks" in added.out
    assert f"fixed ({data.name})" in json.loads((folder / "evaluation.json").read_text())["scores"]


def test_add_stage_explains_mistakes(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    assert "did you mean 'infercam'" in fails("add-stage", finished, "infercamm")
    line = ["add-stage", finished, "pseudo_masks", "--name", "a.b", "--set", "threshold=0.2"]
    assert "'a.b' cannot be the name of a stage" in fails(*line)
    assert "'iterrations' is not a setting" in fails("add-stage", finished, "infercam", "--set", "iterrations=2")
    assert "with other settings" in fails("add-stage", finished, "cam", "--set", "epochs=9", "--device", "cpu")
    assert "is not a tagmask run" in fails("add-stage", tmp_path, "infercam")


def test_maps_of_a_ready_classifier(command: RunCommand, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), weights)
    settings = ["backbone=resnet10t", f"weights={weights}", "num_outputs=3",
                "outputs={red: [0], green: [1], blue: [2]}", "scales=[1.0]"]  # fmt: skip
    line = ["run", data, "--recipe", "pretrained", *(f"--set=pretrained.{setting}" for setting in settings)]
    compute = ["--device", "cpu", "--workers", "0"]
    made = command(*line, "--masks", "masks", "--out", tmp_path / "run", *compute, "--json").json
    assert made["maps"] == str(tmp_path / "run" / "pretrained" / "maps")
    assert "masks" not in made
    assert set(made["evaluation"]["maps"]) == {f"pretrained ({data.name})"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_can_be_resumed(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Lightning handles signals itself: at SIGTERM it would exit with the status of success."""
    line = ["run", str(data), "--masks=masks", f"--out={tmp_path / 'run'}", *TOY, "--set=cam.epochs=300"]
    process = start_command(line, tmp_path / "log")
    checkpoint = tmp_path / "run" / "cam" / "training" / "last.ckpt"
    while process.is_alive() and not checkpoint.exists():
        time.sleep(0.05)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 130
    printed = (tmp_path / "log" / "stderr.log").read_text().splitlines()
    assert printed[-1] == "tagmask: stopped; run the same command again to resume."
    assert checkpoint.exists()


def test_a_run_in_parts(command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path) -> None:
    run = ("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY)
    prepared = command(*run, "--prepare")
    assert (prepared.status, prepared.out.count("\n")) == (0, 1)
    assert prepared.out.startswith("stage 'cam' is ready to make 1 shard of response maps. Run the same command with ")
    part = command("resume", tmp_path / "run", "--device", "cpu", "--workers", "0", "--shard", "1/2", "--json")
    assert part.json == {
        "paused": "part 1/2 of the response maps of stage 'cam' is made. When all parts are made, run the same command "
        "with --prepare in place of --shard."
    }
    assert (tmp_path / "run" / "cam" / "maps" / "maps-00000-of-00001.parquet").exists()
    assert "write it as i/n" in fails(*run, "--shard", "3/2")
    assert "give --shard or --prepare" in fails(*run, "--shard", "1/2", "--prepare")
    assert "leave out --storage files" in fails(*run, "--prepare", "--storage", "files")
    finished = command(*run)
    assert finished.status == 0, finished.err
    assert "recommended masks" in finished.out
