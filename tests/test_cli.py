"""The command line: what each command prints, and what it says about mistakes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import tagmask
from tagmask.cli import main
from tagmask.label_map import read_label_map
from tagmask.recipe import recipe_names
from tests.runs import SETTINGS, contents, toy_run, write_toy

TOY = ["--recipe", "scratch", "--device", "cpu", "--workers", "0", *(f"--set={setting}" for setting in SETTINGS)]
COMMANDS = (
    "run", "demo", "check", "recipes", "maps", "thresholds", "predict", "export", "evaluate", "report", "scenes",
)  # fmt: skip
EVIL = {"red": "<script>alert(1)</script>", "green": "a/b [red]", "blue": "grün 🐕"}


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def no_constant(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=no_constant)


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["tagmask", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def fails(command: Command) -> Callable[..., str]:
    """Runs a command line that must fail with status 1 and one sentence; returns the sentence."""

    def run(*arguments: str | Path) -> str:
        result = command(*arguments)
        assert result.code == 1, result
        *progress, sentence = result.err.splitlines()
        assert sentence.startswith("tagmask: "), result.err
        assert not any(line.startswith(("tagmask: ", "Traceback")) for line in progress), result.err
        return sentence.removeprefix("tagmask: ")

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run with its true masks."""
    return toy_run(data, tmp_path_factory.mktemp("runs") / "run").folder


# What works


def test_help_is_quick_and_names_every_command() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tagmask", "--help"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not re.search(r"\| *(torch|timm|lightning|numba|scipy)$", made.stderr, re.MULTILINE)  # nothing heavy
    text = made.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "Begin with `tagmask demo`" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    result = command(name, "--help")
    assert result.code == 0
    assert "Usage: " in result.out
    options = [line for line in result.out.splitlines() if line.strip().startswith("--")]
    assert all(len(line.split("  ")) > 1 for line in options)


def test_version(command: Command) -> None:
    assert command("--version").out == f"tagmask {tagmask.__version__}\n"


def test_recipes(command: Command) -> None:
    assert set(command("recipes", "--json").json) == set(recipe_names())
    assert all(name in command("recipes").out for name in recipe_names())
    assert "# " in command("recipes", "cam").out
    assert command("recipes", "cam", "--json").json["stages"]["cam"]["backbone"] == "resnet50"


def test_check(command: Command, data: Path) -> None:
    result = command("check", data, "--json")
    assert result.code == 0
    assert result.json["ok"]
    assert result.json["n_images"] == 8
    assert "ready to run" in command("check", data).out


def test_run_prints_where_everything_is(command: Command, data: Path, tmp_path: Path) -> None:
    result = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY)
    assert result.code == 0, result.err
    assert "[1/3] cam" in result.err
    assert "check images" not in result.out
    assert f"masks   {tmp_path}/run/segment/masks" in result.out
    assert "mIoU" in result.out
    again = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json")
    assert again.json["masks"] == f"{tmp_path}/run/segment/masks"
    assert set(again.json["evaluation"]["scores"]) == {f"crf ({data.name})", f"segment ({data.name})"}
    quiet = command("run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY, "--quiet")
    assert (quiet.out, quiet.err) == ("", "")


def test_run_without_truth_says_what_it_cannot_know(command: Command, data: Path, tmp_path: Path) -> None:
    result = command("run", data, "--out", tmp_path / "run", *TOY)
    assert result.code == 0, result.err
    assert "how good the masks are cannot be known" in result.out
    assert (tmp_path / "run" / "report.html").exists()


def test_run_with_held_out_images(command: Command, data: Path, tmp_path: Path) -> None:
    arguments = ["run", data, "--out", tmp_path / "run", "--masks", "masks", "--val", data, *TOY, "--json"]
    scores = command(*arguments).json["evaluation"]["scores"]
    assert set(scores) == {f"{key} ({data.name})" for key in ("crf", "segment")} | {f"segment ({data.name}, held out)"}
    assert len(list((tmp_path / "run" / "held_out").glob("*/masks/*.png"))) == 8


def test_predict_with_and_without_tags(command: Command, finished: Path, data: Path, tmp_path: Path) -> None:
    result = command("predict", finished, data / "0.png", data / "3.png", "--out", tmp_path / "free", "--device=cpu")
    assert result.code == 0
    assert result.out.endswith(f"2 masks in {tmp_path}/free/masks\n")
    table = tmp_path / "tags.csv"
    table.write_text("image,tags\n0.png,green\n3.png,\n")
    arguments = ["predict", finished, data / "0.png", data / "3.png", "--tags", table, "--device=cpu"]
    result = command(*arguments, "--out", tmp_path / "tagged", "--json", "--also", "coco", "--also", "overlays")
    assert set(result.json["masks"]) == {"0", "3"}
    also = {"coco": f"{tmp_path}/tagged/masks.json", "overlays": f"{tmp_path}/tagged/overlays"}
    assert {form: result.json[form] for form in also} == also
    assert set(np.unique(read_label_map(tmp_path / "tagged/masks/0.png"))) <= {0, 2}
    assert not read_label_map(tmp_path / "tagged/masks/3.png").any()
    assert (tmp_path / "tagged/legend.txt").read_text().splitlines()[1] == "1 128 0 0 blue"
    assert len(json.loads((tmp_path / "tagged/masks.json").read_text())["images"]) == 2
    assert len(list((tmp_path / "tagged/overlays").iterdir())) == 2


def test_predict_keeps_images_of_one_name_apart(command: Command, finished: Path, data: Path, tmp_path: Path) -> None:
    for folder, image in (("a", "0.png"), ("b", "1.png")):
        (tmp_path / folder).mkdir()
        shutil.copy(data / image, tmp_path / folder / "same.png")
    paths = [tmp_path / "a", tmp_path / "b" / "same.png", tmp_path / "b", tmp_path / "a" / "same.png"]
    result = command("predict", finished, *paths, "--out", tmp_path / "out", "--device=cpu", "--json")
    assert result.json["masks"] == {f"{x}/same": str(tmp_path / f"out/masks/{x}/same.png") for x in "ab"}
    assert all(Path(file).exists() for file in result.json["masks"].values())


@pytest.mark.parametrize(("form", "place"), [("png", "masks"), ("coco", "masks.json"), ("overlays", "overlays")])
def test_export(command: Command, finished: Path, tmp_path: Path, form: str, place: str) -> None:
    result = command("export", finished, "--out", tmp_path, "--format", form)
    assert result.code == 0, result.err
    assert result.out.endswith(f"{tmp_path / place}\n")
    assert (tmp_path / place).exists()


def test_evaluate(command: Command, finished: Path, data: Path) -> None:
    run = command("evaluate", finished, "--data", data, "--masks", "masks", "--device=cpu", "--json").json
    assert [entry["class"] for entry in run["iou"]] == ["background", "blue", "green", "red"]
    ground_truth = command(
        "evaluate", data / "masks", "--data", data, "--masks", "masks", "--device=cpu", "--json"
    ).json
    assert ground_truth["miou"] == 1
    assert "mIoU 100.0 %" in command("evaluate", data / "masks", "--data", data, "--masks", "masks").out


def test_evaluate_names_the_classes_that_the_network_does_not_have(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    folder = write_toy(tmp_path, {"red": "violet"})
    (folder / "classes.txt").write_text("blue\ngreen\nviolet\n")
    said = command("evaluate", finished, "--data", folder, "--masks", "masks", "--device=cpu").err
    assert "of no class of the network, and measured as background: violet" in said


def test_report_is_made_again(command: Command, finished: Path) -> None:
    (finished / "report.html").unlink()
    assert command("report", finished, "--quiet").out == f"{finished}/report.html\n"
    assert (finished / "report.html").exists()


def test_a_run_can_be_used_from_anywhere(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    settings = [*TOY, "--set=cam.epochs=0", "--set=segment.epochs=0"]
    assert command("run", data.name, "--out", tmp_path / "run", "--masks", "masks", *settings).code == 0
    monkeypatch.chdir(tmp_path)
    assert command("report", "run").code == 0
    assert command("export", "run", "--out", "out").code == 0


def test_scenes_can_be_written_and_read(command: Command, tmp_path: Path) -> None:
    assert command("scenes", tmp_path / "s", "--train", "3", "--val", "1", "--size", "32").code == 0
    assert command("check", tmp_path / "s", "--split", "train", "--json").json["n_images"] == 3


# Names that are data


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes and files with names that mean something to HTML, paths, terminals and tables."""
    folder = write_toy(tmp_path_factory.mktemp("evil") / "<b>[bold] pictures & co 🐕", EVIL, masks=False)
    names = {"0": "sub dir/a b", "1": "sub dir/🐕 ünï", "2": "<img src=x onerror=alert(1)>", "3": "100% [red]'\"&;"}
    table = (folder / "tags.csv").read_text()
    for old, new in names.items():
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / f"{old}.png").rename(folder / f"{new}.png")
        table = table.replace(f"\n{old}.png", '\n"' + new.replace('"', '""') + '.png"')
    (folder / "tags.csv").write_text(table)
    return folder


def test_names_are_data_from_end_to_end(command: Command, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "run & <i>🐕</i> [b]"
    checked = command("check", evil)
    assert checked.code == 0, checked.out
    assert EVIL["red"] in checked.out
    result = command("run", evil, "--out", out, *TOY)
    assert result.code == 0, result.err
    masks = {str(f.relative_to(out / "segment/masks")) for f in (out / "segment/masks").rglob("*.png")}
    assert {"sub dir/🐕 ünï.png", "<img src=x onerror=alert(1)>.png", "100% [red]'\"&;.png"} < masks
    assert len(masks) == 8
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    predicted = command("predict", out, evil, "--out", tmp_path / "p", "--also", "coco", "--device=cpu", "--json").json
    assert len(predicted["masks"]) == 8
    coco = json.loads((tmp_path / "p" / "masks.json").read_text())
    assert {category["name"] for category in coco["categories"]} == set(EVIL.values())
    assert EVIL["red"] in (tmp_path / "p" / "legend.txt").read_text()


# Mistakes


def test_no_command_shows_the_help(command: Command) -> None:
    result = command()
    assert "Usage" in result.out + result.err


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["run"], ["run", "x"], ["run", "x", "--out"], ["run", "x", "--out", "y", "--seed", "-1"],
     ["run", "x", "--out", "y", "--workers", "many"], ["run", "x", "--out", "y", "--precision", "half"],
     ["run", "x", "--out", "y", "--format", "zip"], ["check"], ["predict", "x"]],
)  # fmt: skip
def test_wrong_usage_is_status_2(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "Error" in result.err or "Invalid" in result.err


def test_data_that_is_not_there(fails: Callable[..., str], data: Path, tmp_path: Path) -> None:
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
    assert "no column 'split'" in fails("run", data, "--val", "val", *out)
    assert "did you mean 'red'" in fails("run", data, "--classes", "rad", *out)
    assert "does not exist" in fails("check", tmp_path / "none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"", "is empty"),
        (b"image,tags\n", "lists no image"),
        (b"picture,tags\n0.png,red\n", "line 1 has no column 'image' but 'picture, tags'"),
        (b"image,tags,colour\n0.png,red,x\n", "line 1 has an unknown column 'colour'"),
        (b"image,tags\n0.png,red\nnone.png,red\n", "line 3: there is no image 'none.png'"),
        (b"image,tags\n0.png,red\n0.png,green\n", "lists '0.png' again, after line 2, with other tags"),
        ("image,tags\n0.png,grün\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"image,tags\n0.png,\n1.png,\n", "has a tag: there is nothing to learn from"),
    ],
)
def test_bad_tag_tables(fails: Callable[..., str], data: Path, tmp_path: Path, table: bytes, sentence: str) -> None:
    (tmp_path / "tags.csv").write_bytes(table)
    said = fails("run", data, "--tags", tmp_path / "tags.csv", "--out", tmp_path / "out", *TOY)
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_bad_recipes_and_settings(fails: Callable[..., str], data: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    assert "did you mean 'scratch'" in fails("run", data, *out, "--recipe", "scrach")
    assert "does not exist" in fails("run", data, *out, "--recipe", "none.yaml")
    assert "did you mean 'epochs'" in fails("run", data, *out, "--set", "cam.epoch=1")
    assert "did you mean 'cam'" in fails("run", data, *out, "--set", "cma.epochs=1")
    assert "stage.setting=value" in fails("run", data, *out, "--set", "fast")
    assert "did you mean 'cam'" in fails("recipes", "cam2")
    assert "does not exist" in fails("run", data, *out, *TOY, "--set", "cam.weights=none.pth")


def test_devices_that_are_not_there(fails: Callable[..., str], data: Path, finished: Path, tmp_path: Path) -> None:
    import torch

    out = ["--out", tmp_path / "out", "--recipe", "scratch"]
    assert "'gpu' is not a device: give cpu, cuda" in fails("run", data, *out, "--device", "gpu")
    assert "is not a device" in fails("run", data, *out, "--device", "meta")
    assert "no such device" in fails("run", data, *out, "--device", "cuda:99")
    if not torch.cuda.is_available():
        assert "no such device: give --device cpu" in fails("run", data, *out, "--device", "cuda")
        assert "no such device" in fails("predict", finished, data, *out[:2], "--device", "cuda")


def test_folders_that_are_no_run(fails: Callable[..., str], data: Path, finished: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", data):
        for arguments in (("predict", folder, data), ("export", folder)):
            assert "is not a tagmask run" in fails(*arguments, "--out", tmp_path / "out")
        assert "is not a tagmask run" in fails("report", folder)
    assert "holds neither a run nor a mask" in fails("evaluate", tmp_path, "--data", data, "--masks", "masks")
    assert "has a true mask to measure against" in fails("evaluate", finished, "--data", data, "--device=cpu")
    assert "is not empty and holds no tagmask run" in fails("run", data, "--out", data, *TOY)
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "segment" / "segmenter.safetensors").write_bytes(b"cut")
    assert "is damaged" in fails("predict", broken, data, "--out", tmp_path / "out", "--device=cpu")
    (broken / "segment" / "segmenter.safetensors").unlink()
    assert "has not finished" in fails("predict", broken, data, "--out", tmp_path / "out", "--device=cpu")
    (broken / "run.json").write_text("{")
    assert "is not JSON" in fails("report", broken)
    assert not (tmp_path / "out").exists()


def test_images_that_are_none(fails: Callable[..., str], finished: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "out", "--device=cpu"]
    assert "text.txt is not an image" in fails("predict", finished, tmp_path / "text.txt", *out).replace(": is", " is")
    assert "there is no image in" in fails("predict", finished, tmp_path / "empty", *out)
    assert "does not exist" in fails("predict", finished, tmp_path / "none", *out)
    assert not (tmp_path / "out").exists()


def test_tags_for_prediction_that_fit_nothing(
    fails: Callable[..., str], finished: Path, data: Path, tmp_path: Path
) -> None:
    table = tmp_path / "tags.csv"
    arguments = ["predict", finished, data / "0.png", "--tags", table, "--out", tmp_path / "out", "--device=cpu"]
    table.write_text("image,tags\nother.png,red\n")
    assert "names none of the 1 images" in fails(*arguments)
    table.write_text("image,tags\n0.png,rad\n")
    assert "did you mean 'red'" in fails(*arguments)
    assert not (tmp_path / "out").exists()


def test_nothing_of_another_s_is_replaced(fails: Callable[..., str], command: Command, finished: Path, data: Path,
                                          tmp_path: Path) -> None:  # fmt: skip
    out = ["--out", tmp_path / "out", "--device=cpu"]
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "0.png").write_bytes(b"drawn by hand")
    for arguments in (
        ["predict", finished, data / "0.png", *out],
        ["predict", finished, data / "0.png", *out, "--redo"],
    ):
        assert "holds files that no network of tagmask made" in fails(*arguments)
    assert "exists already" in fails("export", finished, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "masks" / "0.png").read_bytes() == b"drawn by hand"


def test_masks_of_another_image_or_with_other_tags_are_not_taken_for_this_one_s(
    fails: Callable[..., str], command: Command, finished: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes((data / "1.png").read_bytes())
    (tmp_path / "tags.csv").write_text("image,tags\n0.png,red\n")
    out = ["--out", tmp_path / "out", "--device=cpu"]
    assert command("predict", finished, data / "0.png", *out).code == 0
    mask = tmp_path / "out" / "masks" / "0.png"
    before = mask.stat().st_mtime_ns
    assert command("predict", finished, data / "0.png", data / "1.png", *out).code == 0  # goes on
    assert mask.stat().st_mtime_ns == before
    assert f"was made of {data / '0.png'}" in fails("predict", finished, tmp_path / "0.png", *out)
    assert "with other tags" in fails("predict", finished, data / "0.png", "--tags", tmp_path / "tags.csv", *out)
    assert command("predict", finished, tmp_path / "0.png", *out, "--redo").code == 0
    assert mask.stat().st_mtime_ns != before
    assert (tmp_path / "out" / "masks" / "1.png").exists()


def test_export_knows_its_forms_and_stages(fails: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    assert "format 'jpeg' is not known: choose from png" in fails("export", finished, "--out", tmp_path, "--format", "jpeg")
    assert "makes no masks: did you mean 'crf'" in fails("export", finished, "--out", tmp_path, "--stage", "crff")
    assert "makes no masks" in fails("export", finished, "--out", tmp_path, "--stage", "cam")


def test_masks_that_do_not_fit(fails: Callable[..., str], data: Path, tmp_path: Path) -> None:
    evaluate = ["evaluate", tmp_path, "--data", data, "--masks", "masks"]
    shutil.copytree(data / "masks", tmp_path, dirs_exist_ok=True)
    first = tmp_path / "0.png"
    Image.new("L", (7, 5)).save(first)
    assert "is 48×40 pixels, its mask 7×5" in fails(*evaluate)
    Image.new("RGB", (48, 40)).save(first)
    assert "is an image of mode RGB" in fails(*evaluate)
    Image.new("L", (48, 40), 9).save(first)
    assert "preds has the value 9; valid values are 0..3 and 255" in fails(*evaluate)
    first.write_bytes(b"no picture")
    assert "cannot be read as an image" in fails(*evaluate)
    first.unlink()
    assert "there is no mask" in fails(*evaluate)


# Odd data that is all right


def test_one_class_only(command: Command, data: Path, tmp_path: Path) -> None:
    arguments = ["run", data, "--classes", "green", "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json"]
    result = command(*arguments)
    assert result.code == 0, result.err
    assert result.json["evaluation"]["classes"] == ["green"]
    labels = [read_label_map(f) for f in (tmp_path / "run/segment/masks").iterdir()]
    assert {int(value) for mask in labels for value in np.unique(mask)} <= {0, 1}


def test_one_image_a_class_and_one_image_at_all(command: Command, data: Path, tmp_path: Path) -> None:
    for rows, n in (("0.png,red\n1.png,green\n2.png,blue\n", 3), ("0.png,red\n", 1)):
        table = tmp_path / f"{n}.csv"
        table.write_text(f"image,tags\n{rows}")
        larger = "--set=segment.crop_size=64"  # else a single image would be pooled to a single point
        result = command("run", data, "--tags", table, "--out", tmp_path / f"run{n}", *TOY, larger)
        assert result.code == 0, result.err
        assert len(list((tmp_path / f"run{n}" / "segment" / "masks").iterdir())) == n


def test_bad_images_stop_the_run_or_are_left_out_with_a_count(
    command: Command, fails: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "data"
    shutil.copytree(data, bad)
    (bad / "0.png").write_bytes((data / "0.png").read_bytes()[:200])
    (bad / "1.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(bad / "masks" / "2.png")
    arguments = ["run", bad, "--masks", "masks", "--out", tmp_path / "run", *TOY]
    said = fails(*arguments)
    assert said.startswith("3 of 8 images of data are bad: ")
    assert "--skip-bad" in said
    assert not (tmp_path / "run").exists()
    assert command("check", bad, "--masks", "masks").code == 1
    result = command(*arguments, "--skip-bad")
    assert result.code == 0, result.err
    assert "5 images (3 bad ones left out), 3 classes (blue, green, red)" in result.err
    assert len(list((tmp_path / "run/segment/masks").iterdir())) == 5
    assert "3 bad images were left out" in (tmp_path / "run" / "report.html").read_text()
    out = ["--out", tmp_path / "p", "--device=cpu"]
    assert "2 of 8 images of new images are bad" in fails("predict", tmp_path / "run", *bad.glob("?.png"), *out)
    assert command("predict", tmp_path / "run", *bad.glob("?.png"), *out, "--skip-bad").out.endswith(
        f"6 masks in {tmp_path}/p/masks\n"
    )


def test_other_settings_are_refused(fails: Callable[..., str], data: Path, finished: Path) -> None:
    before = contents(finished)
    said = fails("run", data, "--out", finished, "--masks", "masks", *TOY, "--set", "crf.threshold=0.2")
    assert "crf was made with other settings (threshold 'auto' → 0.2)" in said
    assert "--redo" in said
    assert contents(finished) == before


def test_errors_of_loading_processes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Torch hands them on with a traceback in the message."""
    from tagmask.errors import DataError

    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
    error = DataError(f"{text}tagmask.errors.DataError: a.png does not exist; correct the name: now.\n")
    monkeypatch.setattr("tagmask.run", lambda *arguments, **named: (_ for _ in ()).throw(error), raising=False)
    assert fails("run", "x", "--out", "y") == "a.png does not exist; correct the name: now."


def test_a_loading_process_that_is_killed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """What torch raises then."""
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    monkeypatch.setattr("tagmask.run", lambda *arguments, **named: (_ for _ in ()).throw(error), raising=False)
    assert fails("run", "x", "--out", "y").startswith("loading images: a worker process was killed, most likely")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind that is all right, one of them turned by its EXIF data, with a mask the right way up."""
    folder = tmp_path_factory.mktemp("odd")
    rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    picture = Image.fromarray(rgb)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "clear.png")
    picture.convert("1").save(folder / "bits.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("L", (300, 1)).save(folder / "line.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "turned.JPG", exif=turned)
    (folder / "masks").mkdir()
    Image.new("L", (40, 48), 1).save(folder / "masks" / "turned.png")
    tags = ["cat", "dog", "", "cat;dog"]
    names = sorted(f.name for f in folder.iterdir() if f.is_file())
    rows = [f"{name},{tags[i % 4]}\n" for i, name in enumerate(names)]
    (folder / "tags.csv").write_text("image,tags\n" + "".join(rows))
    return folder


def test_pictures_of_every_kind(command: Command, odd: Path, tmp_path: Path) -> None:
    result = command("run", odd, "--masks", "masks", "--out", tmp_path / "run", *TOY)
    assert result.code == 0, result.err
    assert len(list((tmp_path / "run/segment/masks").iterdir())) == 9
    assert read_label_map(tmp_path / "run/segment/masks/turned.png").shape == (48, 40)
    assert read_label_map(tmp_path / "run/segment/masks/dot.png").shape == (1, 1)
    out = ["--out", tmp_path / "p", "--device=cpu", "--also", "coco-polygons", "--also", "overlays"]
    assert command("predict", tmp_path / "run", odd, *out).code == 0


def test_pictures_that_are_not_all_right(fails: Callable[..., str], odd: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    Image.new("1", (20_000, 20_000)).save(big)
    (tmp_path / "tags.csv").write_text("image,tags\nbig.png,cat\n")
    said = fails("run", tmp_path, "--out", tmp_path / "out", *TOY)
    assert "has more than 100 million pixels; make it smaller or cut it into tiles" in said
    Image.new("L", (48, 40), 1).save(odd / "masks" / "turned.png")
    said = fails("run", odd, "--masks", "masks", "--out", tmp_path / "out", *TOY)
    assert "has 48×40 pixels, its image 40×48" in said
    assert "turned by its EXIF data" in said
    assert not (tmp_path / "out").exists()


def test_maps_takes_methods_that_make_maps(command: Command, finished: Path) -> None:
    for method in ("irn", "crf", "segment"):
        result = command("maps", finished, "--method", method)
        assert result.code == 2
        assert f"the method '{method}' makes no maps" in " ".join(result.err.replace("│", " ").split())


def test_other_maps_of_a_finished_run(command: Command, data: Path, tmp_path: Path) -> None:
    folder = toy_run(data, tmp_path / "run").folder
    line = ["maps", folder, "--method", "infercam", "--set", "iterations=2", "--set", "scales=[1.0]"]
    made = command(*line, "--device", "cpu", "--workers", "0", "--json").json
    assert made["maps"] == str(folder / "infercam" / "maps")
    assert len(list((folder / "infercam" / "maps").glob("*.safetensors"))) == 8
    assert list(made["evaluation"]["maps"]) == [f"cam ({data.name})", f"conditional ({data.name})"]
    assert f"conditional ({data.name})" in (folder / "report.html").read_text()

    compared = command("thresholds", folder, "--json").json["maps"]
    assert compared == made["evaluation"]["maps"]
    for curve in compared.values():
        assert max(curve["miou"]) == curve["best_miou"] == curve["miou"][round(100 * curve["best_threshold"])]
        assert curve["interval"][0] <= curve["best_threshold"] <= curve["interval"][1]
        assert curve["oracle_miou"] >= curve["best_miou"]
    page = (folder / "thresholds.html").read_text()
    assert page.count('class="line s') >= 2
    reporter = command("thresholds", folder, "--data", data, "--masks", "masks", "--out", tmp_path / "c.html")
    assert "infercam" in reporter.out
    assert (tmp_path / "c.html").exists()


def test_maps_that_cannot_be_made_are_one_sentence(fails: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    assert "did you mean 'conditional'" in fails("maps", finished, "--method", "conditionel")
    assert "'iterrations' is not a setting" in fails("maps", finished, "--method", "infercam", "--set", "iterrations=2")
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "cam" / "maps")
    assert "give --data, and --masks" in fails("thresholds", tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["maps", "run"], "--method conditional, or --classifier NAME"),
        (["maps", "run", "--method", "infercam", "--masks", "m"], "--masks goes with --classifier"),
        (["maps", "run", "--classifier", "resnet10t", "--set", "a=1"], "--set is of --method"),
        (["maps", "photos", "--classifier", "resnet10t"], "needs --out"),
        (["thresholds", "run", "--masks", "m"], "--masks goes with --data"),
    ],
)
def test_options_that_would_do_nothing_are_refused(command: Command, line: list[str], sentence: str) -> None:
    result = command(*line)
    assert result.code == 2
    assert sentence in " ".join(result.err.replace("│", " ").split())


def test_maps_of_a_ready_classifier(command: Command, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), weights)
    settings = [f"weights={weights}", "num_outputs=3", "outputs={red: [0], green: [1], blue: [2]}", "scales=[1.0]"]
    line = ["maps", data, "--classifier", "resnet10t", *(f"--with={setting}" for setting in settings)]
    made = command(
        *line, "--masks", "masks", "--out", tmp_path / "run", "--device", "cpu", "--workers", "0", "--json"
    ).json
    assert made["maps"] == str(tmp_path / "run" / "pretrained" / "maps")
    assert set(made["evaluation"]["maps"]) == {f"pretrained ({data.name})"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_says_so_and_goes_on(data: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Lightning ends Python its own way, at SIGTERM with the status of success."""
    line = [sys.executable, "-m", "tagmask", "run", data, "--masks", "masks", "--out", tmp_path / "run", *TOY]
    process = subprocess.Popen([*line, "--set=cam.epochs=300"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "run" / "cam" / "training" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "tagmask: stopped; the same command goes on from here."
    assert checkpoint.exists()


def test_saliency(command: Command, data: Path, tmp_path: Path) -> None:
    """Made of the images and of nothing else in their folder, and what `check` and `run` take."""
    folder = shutil.copytree(data, tmp_path / "data")
    made = ["saliency", folder, "--masks", "masks", "--out", folder / "saliency", "--workers", "0"]
    assert command(*made).out == f"8 saliency maps in {folder / 'saliency'}\n"
    again = command(*made, "--json").json
    assert again == {"saliency": {str(i): str(folder / f"saliency/{i}.png") for i in range(8)}, "problems": []}
    assert command("check", folder, "--masks=masks", "--saliency=saliency", "--json").json["n_saliency"] == 8


def test_saliency_needs_no_tags(command: Command, fails: Callable[..., str], data: Path, tmp_path: Path) -> None:
    """The maps of a folder of images alone are those that its images have with a table of tags."""
    photos, out = tmp_path / "photos", tmp_path / "photos" / "saliency"
    photos.mkdir()
    for i in range(3):
        shutil.copy(data / f"{i}.png", photos)
    for _ in range(2):  # the second time, the maps lie beside the images
        assert command("saliency", photos, "--out", out, "--workers=0").out == f"3 saliency maps in {out}\n"
    (photos / "masks").mkdir()
    shutil.copy(data / "masks" / "0.png", photos / "masks")
    assert command("saliency", photos, "--masks=masks", "--out", out, "--workers=0").out.startswith("3 saliency maps")
    assert "no folder 'train'" in fails("saliency", photos, "--masks=masks", "--split=train", "--out", out)
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\n0.png,cat\n1.png,cat\n2.png,dog\n")
    found = command("check", photos, "--tags", tags, "--saliency", out, "--json").json
    assert (found["n_images"], found["n_saliency"]) == (3, 3)


def test_saliency_of_images_that_cannot_be_read(
    command: Command, fails: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "3.png").write_bytes(b"nothing")
    made = ["saliency", folder, "--masks", "masks", "--out", tmp_path / "out", "--workers", "0"]
    assert "3.png: is not an image that can be read" in fails(*made, "--quiet")
    assert command(*made, "--skip-bad").out == f"7 saliency maps in {tmp_path / 'out'}\n"
