"""Commands about data: check, saliency and scenes."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cli.runner import RunCommand, RunFailing


def test_check(command: RunCommand, data: Path) -> None:
    result = command("check", data, "--json")
    assert result.status == 0
    assert result.json["ok"]
    assert result.json["num_images"] == 8
    assert result.json["num_untagged"] == result.json["tags_per_image"][0]
    printed = command("check", data).out
    assert "ready to run" in printed
    assert "warning: there are only 8 images" in printed


def test_check_lists_what_is_wrong(command: RunCommand, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "0.png").write_bytes(b"nothing")
    shutil.copy(folder / "1.png", folder / "2.png")
    result = command("check", folder)
    assert result.status == 1
    assert "7 and 1 bad ones" in result.out
    assert "error: " in result.out
    assert "0.png" in result.out
    assert "warning: " in result.out
    assert "leave these images out with --skip-bad" in result.out


def test_check_refuses_data_without_tags(command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    table.write_text("image,tags\n0.png,\n1.png,\n")
    assert f"{table} has no tag" in fails("check", data, "--tags", table)
    (tmp_path / "classes.txt").write_text("cat\n")
    result = command("check", data, "--tags", table, "--class-list", tmp_path / "classes.txt")
    assert result.status == 1
    assert f"error: {data.name}: no image has a tag" in result.out
    root = tmp_path / "coco"
    for name in ("train2017", "val2017", "annotations"):
        (root / name).mkdir(parents=True)
    shutil.copy(data / "0.png", root / "val2017")
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    assert "root of a COCO download" in fails("check", root)


def test_scenes_can_be_written_and_read(command: RunCommand, tmp_path: Path) -> None:
    assert command("scenes", tmp_path / "s", "--train", "3", "--val", "1", "--size", "32").status == 0
    assert command("check", tmp_path / "s", "--split", "train", "--json").json["num_images"] == 3


def test_check_counts_reviewed_masks(command: RunCommand, data: Path, tmp_path: Path) -> None:
    (tmp_path / "reviewed").mkdir()
    for i in (0, 6):
        shutil.copy(data / "masks" / f"{i}.png", tmp_path / "reviewed")
    assert command("check", data, "--reviewed", tmp_path / "reviewed", "--json").json["num_reviewed"] == 2
    assert "reviewed masks" in command("check", data, "--reviewed", tmp_path / "reviewed").out
    assert "reviewed masks" not in command("check", data).out


def test_saliency(command: RunCommand, data: Path, tmp_path: Path, with_tokencut: list[str]) -> None:
    """The maps are computed from the images only, and `check` reads them."""
    folder = shutil.copytree(data, tmp_path / "data")
    line = ["saliency", folder, *with_tokencut, "--masks", "masks", "--out", folder / "saliency", "--workers", "0"]
    assert command(*line).out == f"8 saliency maps in {folder / 'saliency'}\n"
    again = command(*line, "--json").json
    assert again == {"saliency": {str(i): str(folder / f"saliency/{i}.png") for i in range(8)}, "problems": []}
    assert command("check", folder, "--masks=masks", "--saliency=saliency", "--json").json["num_saliency"] == 8


def test_saliency_needs_a_model(fails: RunFailing, data: Path, tmp_path: Path) -> None:
    line = ["saliency", data, "--masks=masks", "--out", tmp_path / "out"]
    assert "give --with rembg:<model> or --with tokencut:<timm model>" in fails(*line)
    assert "non-commercial use only" in fails(*line, "--with=rembg:bria-rmbg")
    assert "'u2net' makes no saliency maps" in fails(*line, "--with=u2net")
    assert not (tmp_path / "out").exists()


def test_saliency_needs_no_tags(
    command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path, with_tokencut: list[str]
) -> None:
    """The maps of a folder of images alone are named as those of the same images with a table of tags."""
    photos, out = tmp_path / "photos", tmp_path / "photos" / "saliency"
    photos.mkdir()
    for i in range(3):
        shutil.copy(data / f"{i}.png", photos)
    for _ in range(2):  # the second time, the maps are in the folder of the images
        assert (
            command("saliency", photos, *with_tokencut, "--out", out, "--workers=0").out
            == f"3 saliency maps in {out}\n"
        )
    (photos / "masks").mkdir()
    shutil.copy(data / "masks" / "0.png", photos / "masks")
    line = ["saliency", photos, *with_tokencut, "--masks=masks", "--out", out]
    assert command(*line, "--workers=0").out.startswith("3 saliency maps")
    assert "no folder 'train'" in fails(*line, "--split=train")
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\n0.png,cat\n1.png,cat\n2.png,dog\n")
    report = command("check", photos, "--tags", tags, "--saliency", out, "--json").json
    assert (report["num_images"], report["num_saliency"]) == (3, 3)


def test_saliency_of_images_that_cannot_be_read(
    command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path, with_tokencut: list[str]
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "3.png").write_bytes(b"nothing")
    line = ["saliency", folder, *with_tokencut, "--masks", "masks", "--out", tmp_path / "out", "--workers", "0"]
    assert "3.png is not an image that can be read" in fails(*line, "--quiet").replace(": is", " is")
    assert command(*line, "--skip-bad").out == f"7 saliency maps in {tmp_path / 'out'}\n"
