"""Commands on a finished run: thresholds, predict, evaluate and report."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagmask
from tagmask.data.voc_reader import VOC_CLASSES
from tagmask.label_map import read_label_map
from tests.cli.runner import RunCommand, RunFailing
from tests.runs import toy_run, write_toy


def test_predict_with_and_without_tags(command: RunCommand, finished: Path, data: Path, tmp_path: Path) -> None:
    images = [data / "0.png", data / "3.png"]
    result = command("predict", finished, *images, "--out", tmp_path / "free", "--device=cpu")
    assert result.status == 0
    assert result.out.endswith(f"2 masks in {tmp_path}/free/masks\n")
    table = tmp_path / "tags.csv"
    table.write_text("image,tags\n0.png,green\n3.png,\n")
    line = ["predict", finished, *images, "--tags", table, "--device=cpu", "--out", tmp_path / "tagged"]
    result = command(*line, "--json", "--also", "coco, overlays")
    assert set(result.json["masks"]) == {"0", "3"}
    exported = {"coco": f"{tmp_path}/tagged/coco", "overlays": f"{tmp_path}/tagged/overlays"}
    assert {format: result.json[format] for format in exported} == exported
    assert set(np.unique(read_label_map(tmp_path / "tagged/masks/0.png"))) <= {0, 2}
    assert not read_label_map(tmp_path / "tagged/masks/3.png").any()
    assert (tmp_path / "tagged/legend.txt").read_text().splitlines()[1] == "1 128 0 0 blue"
    instances = tmp_path / "tagged/coco/annotations/instances_train.json"
    assert len(json.loads(instances.read_text())["images"]) == 2
    assert len(list((tmp_path / "tagged/overlays").iterdir())) == 2


def test_predict_distinguishes_images_of_the_same_name(
    command: RunCommand, finished: Path, data: Path, tmp_path: Path
) -> None:
    for folder, image in (("a", "0.png"), ("b", "1.png")):
        (tmp_path / folder).mkdir()
        shutil.copy(data / image, tmp_path / folder / "same.png")
    paths = [tmp_path / "a", tmp_path / "b" / "same.png", tmp_path / "b", tmp_path / "a" / "same.png"]
    result = command("predict", finished, *paths, "--out", tmp_path / "out", "--device=cpu", "--json")
    assert result.json["masks"] == {f"{x}/same": str(tmp_path / f"out/masks/{x}/same.png") for x in "ab"}
    assert all(Path(file).exists() for file in result.json["masks"].values())


def test_predict_ignores_its_own_masks_and_says_what_it_left_out(
    command: RunCommand, finished: Path, data: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(data / "0.png", photos)
    line = ["predict", finished, photos, "--device=cpu", "--json"]
    for out in ("first", "second", "first"):
        assert set(command(*line, "--out", photos / out).json["masks"]) == {"0"}
    (photos / "bad.png").write_bytes(b"no image")
    result = command(*line[:-1], "--out", photos / "first", "--skip-bad")
    assert result.status == 0
    assert "left out: " in result.err
    assert "bad.png: is not an image that can be read" in result.err


def test_predict_the_images_of_a_list(command: RunCommand, finished: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "two of them.txt").write_text("3.png\n0\n")
    line = ["predict", finished, data, "--split", tmp_path / "two of them.txt", "--device=cpu", "--also=voc"]
    result = command(*line, "--out", tmp_path / "out", "--json")
    assert list(result.json["masks"]) == ["3", "0"]
    assert (tmp_path / "out/voc/ImageSets/Segmentation/two_of_them.txt").read_text() == "3\n0\n"


def test_predict_for_the_evaluation_server_of_voc(
    command: RunCommand, fails: RunFailing, finished: Path, data: Path, tmp_path: Path
) -> None:
    """A run with VOC's classes in another order; the images of the test list have neither tags nor masks."""
    out = ["--out", tmp_path / "out", "--device=cpu"]
    sentence = fails("predict", finished, data / "0.png", "--also", "voc-server", *out)
    assert "needs VOC's 20 classes (missing: aeroplane, bicycle, bird, ...; unknown: blue, green, red)" in sentence
    assert not (tmp_path / "out").exists()
    names = {"red": "dog", "green": "cat", "blue": "sofa"}
    voc = write_toy(tmp_path / "voc", names, masks=False)
    (voc / "JPEGImages").mkdir()
    for image in voc.glob("*.png"):
        image.rename(voc / "JPEGImages" / image.name)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("1\n5\n")
    (voc / "classes.txt").write_text("\n".join(reversed(VOC_CLASSES)))
    run = toy_run(voc, tmp_path / "run", source=tagmask.DataSource(root=str(voc)))
    line = ["predict", run.folder, voc, "--split=test", "--also=voc-server", "--competition=comp5", *out]
    result = command(*line)
    assert result.status == 0, result.err
    with tarfile.open(tmp_path / "out" / "voc-server" / "results.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "results" / "VOC2012" / "Segmentation" / "comp5_test_cls"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "5.png"]
    for path in folder.iterdir():
        labels = read_label_map(tmp_path / "out" / "masks" / path.name, size=(40, 48))
        np.testing.assert_array_equal(read_label_map(path, size=(40, 48)), np.where(labels > 0, 21 - labels, 0))


def test_predict_explains_unknown_formats(fails: RunFailing, finished: Path, data: Path, tmp_path: Path) -> None:
    line = ["predict", finished, data / "0.png", "--out", tmp_path / "out", "--device=cpu", "--also"]
    assert "format 'cocoo' is not known: did you mean 'coco'?" in fails(*line, "cocoo")
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_exist_or_are_not_images(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "out", "--device=cpu"]
    assert "text.txt is not an image" in fails("predict", finished, tmp_path / "text.txt", *out).replace(": is", " is")
    assert "there is no image in" in fails("predict", finished, tmp_path / "empty", *out)
    assert "does not exist" in fails("predict", finished, tmp_path / "none", *out)
    assert not (tmp_path / "out").exists()


def test_tags_for_prediction_that_do_not_fit(fails: RunFailing, finished: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    line = ["predict", finished, data / "0.png", "--tags", table, "--out", tmp_path / "out", "--device=cpu"]
    table.write_text("image,tags\nother.png,red\n")
    assert "names none of the 1 images" in fails(*line)
    table.write_text("image,tags\n0.png,rad\n")
    assert "did you mean 'red'" in fails(*line)
    assert not (tmp_path / "out").exists()


def test_files_of_other_tools_are_never_replaced(fails: RunFailing, finished: Path, data: Path, tmp_path: Path) -> None:
    line = ["predict", finished, data / "0.png", "--out", tmp_path / "out", "--device=cpu"]
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "0.png").write_bytes(b"drawn by hand")
    for redo in ([], ["--redo"]):
        assert "holds files that tagmask did not make" in fails(*line, *redo)
    assert (tmp_path / "out" / "masks" / "0.png").read_bytes() == b"drawn by hand"


def test_predict_refuses_masks_of_another_image_or_with_other_tags(
    fails: RunFailing, command: RunCommand, finished: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes((data / "1.png").read_bytes())
    (tmp_path / "tags.csv").write_text("image,tags\n0.png,red\n")
    out = ["--out", tmp_path / "out", "--device=cpu"]
    assert command("predict", finished, data / "0.png", *out).status == 0
    mask = tmp_path / "out" / "masks" / "0.png"
    before = mask.stat().st_mtime_ns
    assert command("predict", finished, data / "0.png", data / "1.png", *out).status == 0  # resumes
    assert mask.stat().st_mtime_ns == before
    assert f"was made from {data / '0.png'}" in fails("predict", finished, tmp_path / "0.png", *out)
    assert "with other tags" in fails("predict", finished, data / "0.png", "--tags", tmp_path / "tags.csv", *out)
    assert command("predict", finished, tmp_path / "0.png", *out, "--redo").status == 0
    assert mask.stat().st_mtime_ns != before
    assert (tmp_path / "out" / "masks" / "1.png").exists()


def test_evaluate(command: RunCommand, finished: Path, data: Path) -> None:
    options = ["--data", data, "--masks", "masks", "--device=cpu"]
    scores = command("evaluate", finished, *options, "--json").json
    assert [entry["class"] for entry in scores["iou"]] == ["background", "blue", "green", "red"]
    assert command("evaluate", data / "masks", *options, "--json").json["miou"] == 1
    assert "mIoU 100.0 %" in command("evaluate", data / "masks", *options).out


def test_evaluate_can_leave_out_bad_images(
    command: RunCommand, fails: RunFailing, finished: Path, tmp_path: Path
) -> None:
    folder = write_toy(tmp_path)
    (folder / "0.png").write_bytes(b"no image")
    options = ["--data", folder, "--masks", "masks", "--device=cpu"]
    assert "leave them out with --skip-bad" in fails("evaluate", finished, *options)
    assert 0 <= command("evaluate", finished, *options, "--skip-bad", "--json").json["miou"] <= 1


def test_evaluate_with_masks_in_other_subfolders(
    command: RunCommand, fails: RunFailing, data: Path, tmp_path: Path
) -> None:
    truth = shutil.copytree(data / "masks", tmp_path / "truth" / "squares")
    result = command("evaluate", data / "masks", "--data", data, "--masks", truth.parent, "--json")
    assert result.json["miou"] == 1
    for path in truth.iterdir():
        path.rename(path.with_name(f"mask of {path.name}"))
    sentence = fails("evaluate", data / "masks", "--data", data, "--masks", truth.parent)
    assert f"no image of {data.name} has a ground-truth mask: name PNG files in {truth.parent} like 0.png." in sentence


def test_evaluate_names_the_classes_that_the_network_does_not_know(
    command: RunCommand, finished: Path, tmp_path: Path
) -> None:
    folder = write_toy(tmp_path, {"red": "violet"})
    (folder / "classes.txt").write_text("blue\ngreen\nviolet\n")
    messages = command("evaluate", finished, "--data", folder, "--masks", "masks", "--device=cpu").err
    text = " ".join(messages.split())
    assert "classes that the network does not know, measured as background: violet" in text


def test_report_is_written_again(command: RunCommand, finished: Path) -> None:
    (finished / "report.html").unlink()
    assert command("report", finished, "--quiet").out == ""
    assert (finished / "report.html").exists()
    assert command("report", finished).out == f"{finished}/report.html\n"
    assert (finished / "report.html").exists()


def test_thresholds_prints_the_figures_of_the_maps(command: RunCommand, finished: Path, tmp_path: Path) -> None:
    result = command("thresholds", finished, "--out", tmp_path / "t.html", "--workers", "0")
    assert result.status == 0, result.err
    assert "Otsu's threshold" in result.out
    assert f"curves  {tmp_path / 't.html'}" in result.out
    assert (tmp_path / "t.html").exists()


def test_thresholds_needs_maps_and_ground_truth(
    command: RunCommand, fails: RunFailing, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "cam" / "maps")
    assert "give --data, and --masks" in fails("thresholds", tmp_path / "run")
    result = command("thresholds", finished, "--masks", "m")
    assert result.status == 2
    assert "--masks describes the images of --data: add --data FOLDER" in result.error_text


def test_scores_prints_the_images_to_look_at_first(
    command: RunCommand, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = command("scores", finished, "--workers", "0", "--limit", "3")
    assert result.status == 0, result.err
    assert "Images to look at first" in result.out
    assert sum(line.startswith("│") for line in result.out.splitlines()) == 3
    assert "mIoU" in result.out  # there is ground truth
    assert f"all 8 images  {finished / 'scores.csv'}" in result.out
    rows = command("scores", finished, "--json").json
    assert [row["doubt"] for row in rows] == sorted((row["doubt"] for row in rows), reverse=True)
    assert len(rows) == 8
    lines = command("scores", finished, "--csv", "--sort", "miou", "--limit", "2").out.splitlines()
    assert lines[0].startswith("image,doubt,")
    miou = [float(line.rpartition(",")[2]) for line in lines[1:]]
    assert miou == sorted(row["miou"] for row in map(_rounded, rows))[:2]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "miou": round(row["miou"], 4)}


def test_scores_explains_unknown_columns_and_stages(fails: RunFailing, finished: Path) -> None:
    assert "no column 'doubts' to sort by: did you mean 'doubt'?" in fails("scores", finished, "--sort", "doubts")
    assert "has no masks of 'cam' to score" in fails("scores", finished, "--stage", "cam")
