"""Commands that make a run: run, demo and add-stage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import tagmask
from tagmask.label_map import read_label_map
from tests.cli.runner import TOY, RunCommand, RunFailing
from tests.runs import contents, toy_run, write_toy

HOSTILE = {"red": "<script>alert(1)</script>", "green": "a/b [red]", "blue": "grün 🐕"}


def test_run_prints_where_the_results_are(command: RunCommand, data: Path, tmp_path: Path) -> None:
    result = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY)
    assert result.status == 0, result.err
    assert "[1/3] cam" in result.err
    assert "check images" not in result.out
    assert f"masks   {tmp_path}/run/segment/masks" in result.out
    assert "mIoU" in result.out
    again = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json").json
    assert again["masks"] == f"{tmp_path}/run/segment/masks"
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


def test_held_out_images_can_be_a_split_a_folder_or_only_annotations(tmp_path: Path) -> None:
    from tagmask.cli.options import RunDataOptions

    training = tagmask.DataSource(root="photos", split="train", annotations="train.json", masks="masks")
    assert RunDataOptions().held_out_source(training) is None
    changed = {
        RunDataOptions(val="val"): {"split": "val"},
        RunDataOptions(val="val", val_annotations="val.json"): {"split": "val", "annotations": "val.json"},
        RunDataOptions(val_annotations="val.json"): {"annotations": "val.json"},
        RunDataOptions(val=str(tmp_path)): {"root": str(tmp_path), "split": None, "annotations": None},
        RunDataOptions(val=str(tmp_path), val_annotations="val.json"): {
            "root": str(tmp_path), "split": None, "annotations": "val.json"
        },
    }  # fmt: skip
    for options, changes in changed.items():
        assert options.held_out_source(training) == training.model_copy(update=changes)


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
    line = [sys.executable, "-m", "tagmask", "run", data, "--masks", "masks", "--out", tmp_path / "run", *TOY]
    process = subprocess.Popen([*line, "--set=cam.epochs=300"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "run" / "cam" / "training" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "tagmask: stopped; run the same command again to resume."
    assert checkpoint.exists()


def test_ctrl_c_during_the_imports_gives_no_traceback() -> None:
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    program = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            {interrupt}
sys.meta_path.insert(0, Interrupt())
from tagmask.cli import main
main()
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 130
    assert process.stderr == "tagmask: stopped; run the same command again to resume.\n"


# Data sets with unusual names, images and classes


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes and files with names that have a meaning in HTML, paths, terminals or tables."""
    folder = write_toy(tmp_path_factory.mktemp("hostile") / "<b>[bold] images & co 🐕", HOSTILE, masks=False)
    names = {"0": "sub dir/a b", "1": "sub dir/🐕 ünï", "2": "<img src=x onerror=alert(1)>", "3": "100% [red]'\"&;"}
    table = (folder / "tags.csv").read_text()
    for old, new in names.items():
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / f"{old}.png").rename(folder / f"{new}.png")
        table = table.replace(f"\n{old}.png", '\n"' + new.replace('"', '""') + '.png"')
    (folder / "tags.csv").write_text(table)
    return folder


def test_names_are_never_interpreted(command: RunCommand, hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "run & <i>🐕</i> [b]"
    checked = command("check", hostile)
    assert checked.status == 0, checked.out
    assert HOSTILE["red"] in checked.out
    result = command("run", hostile, "--out", out, *TOY)
    assert result.status == 0, result.err
    masks = {str(f.relative_to(out / "segment/masks")) for f in (out / "segment/masks").rglob("*.png")}
    assert {"sub dir/🐕 ünï.png", "<img src=x onerror=alert(1)>.png", "100% [red]'\"&;.png"} < masks
    assert len(masks) == 8
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    line = ["predict", out, hostile, "--out", tmp_path / "p", "--also", "coco", "--device=cpu", "--json"]
    assert len(command(*line).json["masks"]) == 8
    coco = json.loads((tmp_path / "p" / "masks.json").read_text())
    assert {category["name"] for category in coco["categories"]} == set(HOSTILE.values())
    assert HOSTILE["red"] in (tmp_path / "p" / "legend.txt").read_text()


def test_a_single_class(command: RunCommand, data: Path, tmp_path: Path) -> None:
    line = ["run", data, "--classes", "green", "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json"]
    result = command(*line)
    assert result.status == 0, result.err
    assert result.json["evaluation"]["classes"] == ["green"]
    labels = [read_label_map(f) for f in (tmp_path / "run/segment/masks").iterdir()]
    assert {int(value) for mask in labels for value in np.unique(mask)} <= {0, 1}


def test_one_image_per_class_and_a_single_image(command: RunCommand, data: Path, tmp_path: Path) -> None:
    for rows, n in (("0.png,red\n1.png,green\n2.png,blue\n", 3), ("0.png,red\n", 1)):
        table = tmp_path / f"{n}.csv"
        table.write_text(f"image,tags\n{rows}")
        larger = "--set=segment.crop_size=64"  # with less, a batch of one image would be pooled to a single value
        result = command("run", data, "--tags", table, "--out", tmp_path / f"run{n}", *TOY, larger)
        assert result.status == 0, result.err
        assert len(list((tmp_path / f"run{n}" / "segment" / "masks").iterdir())) == n


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind that can be used; one of them is rotated by its EXIF data and has an upright mask."""
    folder = tmp_path_factory.mktemp("formats")
    rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    image = Image.fromarray(rgb)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "transparent.png")
    image.convert("1").save(folder / "bits.png")
    image.save(folder / "animation.gif", save_all=True, append_images=[image.rotate(90)])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("L", (300, 1)).save(folder / "line.png")
    rotation = Image.Exif()
    rotation[0x0112] = 6
    image.save(folder / "rotated.JPG", exif=rotation)
    (folder / "masks").mkdir()
    Image.new("L", (40, 48), 1).save(folder / "masks" / "rotated.png")
    tags = ["cat", "dog", "", "cat;dog"]
    names = sorted(f.name for f in folder.iterdir() if f.is_file())
    rows = [f"{name},{tags[i % 4]}\n" for i, name in enumerate(names)]
    (folder / "tags.csv").write_text("image,tags\n" + "".join(rows))
    return folder


def test_images_of_every_kind(command: RunCommand, formats: Path, tmp_path: Path) -> None:
    result = command("run", formats, "--masks", "masks", "--out", tmp_path / "run", *TOY)
    assert result.status == 0, result.err
    assert len(list((tmp_path / "run/segment/masks").iterdir())) == 9
    assert read_label_map(tmp_path / "run/segment/masks/rotated.png").shape == (48, 40)
    assert read_label_map(tmp_path / "run/segment/masks/dot.png").shape == (1, 1)
    out = ["--out", tmp_path / "p", "--device=cpu", "--also", "coco-polygons", "--also", "overlays"]
    assert command("predict", tmp_path / "run", formats, *out).status == 0


def test_images_that_are_too_large_or_do_not_fit_their_mask(fails: RunFailing, formats: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (20_000, 20_000)).save(large)
    (tmp_path / "tags.csv").write_text("image,tags\nlarge.png,cat\n")
    sentence = fails("run", tmp_path, "--out", tmp_path / "out", *TOY)
    assert "has more than 100 million pixels; make it smaller or cut it into tiles" in sentence
    folder = shutil.copytree(formats, tmp_path / "formats")
    Image.new("L", (48, 40), 1).save(folder / "masks" / "rotated.png")
    sentence = fails("run", folder, "--masks", "masks", "--out", tmp_path / "out", *TOY)
    assert "has 48×40 pixels, its image 40×48" in sentence
    assert "EXIF" in sentence
    assert not (tmp_path / "out").exists()
