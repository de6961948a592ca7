"""Commands that exchange masks with other tools: export and import."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tagmask
from tagmask.artifacts import read_json, write_json
from tagmask.corrections.formats import IMPORT_FORMATS
from tagmask.label_map import read_label_map
from tagmask.outputs.formats import OUTPUT_FORMATS
from tests.cli.runner import RunCommand, RunFailing


@pytest.mark.parametrize("format", ["png", "coco", "coco-polygons", "overlays"])
def test_export(command: RunCommand, finished: Path, tmp_path: Path, format: str) -> None:
    result = command("export", finished, "--out", tmp_path, "--format", format)
    assert result.status == 0, result.err
    assert result.out == f"{tmp_path / format}\n"
    assert [folder.name for folder in tmp_path.iterdir()] == [format]


def test_an_exported_network_gives_the_same_masks(
    command: RunCommand, finished: Path, data: Path, tmp_path: Path
) -> None:
    result = command("export", finished, "--out", tmp_path, "--format", "hub")
    assert result.status == 0, result.err
    assert result.out == f"{tmp_path / 'hub'}\n"
    masks: dict[str, list[np.ndarray]] = {}
    single = ("--single-pass", "--precision", "float32")
    for name, network, options in (
        ("run", finished, ()), ("hub", tmp_path / "hub", ()), ("single run", finished, single),
        ("single hub", tmp_path / "hub", single), ("onnx", tmp_path / "hub" / "model.onnx", ()),
    ):  # fmt: skip
        out = tmp_path / name
        result = command("predict", network, data / "0.png", data / "6.png", "--out", out, "--device=cpu", *options)
        assert (result.status, result.out) == (0, f"2 masks in {out / 'masks'}\n"), result.err
        masks[name] = [read_label_map(out / "masks" / f"{i}.png") for i in (0, 6)]
    np.testing.assert_array_equal(masks["run"], masks["hub"])
    np.testing.assert_array_equal(masks["single run"], masks["single hub"])
    assert (np.array(masks["onnx"]) == masks["single run"]).mean() > 0.999
    assert not np.array_equal(masks["single run"], masks["run"])


def test_options_of_masks_do_not_fit_a_network(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    line = ["export", finished, "--out", tmp_path / "out", "--format", "onnx"]
    for option in ("--min-area=5", "--partial", "--images=copy"):
        assert "leave out the options of masks and images" in fails(*line, option)
    assert "trains no segmentation network" in fails(*line, "--stage", "pseudo_masks")
    assert "did you mean 'onnx'?" in fails("export", finished, "--out", tmp_path / "out", "--format", "onx")
    (tmp_path / "out" / "onnx").mkdir(parents=True)
    assert "exists already" in fails(*line)


def test_export_options_change_the_polygons(command: RunCommand, finished: Path, tmp_path: Path) -> None:
    def polygons(folder: Path, *options: str) -> list[dict]:
        assert command("export", finished, "--out", folder, "--format", "coco-polygons", *options).status == 0
        return json.loads((folder / "coco-polygons/annotations/instances_val.json").read_text())["annotations"]

    exact = polygons(tmp_path / "exact", "--min-area", "0", "--simplify", "0", "--subset", "val")
    limit = min(annotation["area"] for annotation in exact) + 1
    options = (f"--min-area={limit}", "--simplify=0", "--fill-holes", "--subset=val", "--quiet")
    large = polygons(tmp_path / "large", *options)
    assert all(annotation["area"] >= limit for annotation in large)
    assert 0 < len(large) < len(exact)


def test_export_never_replaces_files(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "0.png").write_bytes(b"drawn by hand")
    assert "exists already" in fails("export", finished, "--out", tmp_path)
    assert (tmp_path / "png" / "0.png").read_bytes() == b"drawn by hand"


def test_export_of_an_unfinished_run(command: RunCommand, fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    record = folder / "segment" / "stage.json"
    write_json(record, {**read_json(record), "status": "running"})
    for image_id in "123":
        (folder / "segment" / "masks" / f"{image_id}.png").unlink()
    line = ["export", folder, "--stage", "segment", "--out", tmp_path / "out"]
    assert "holds only 5 of 8 masks: finish the run first" in fails(*line)
    assert not (tmp_path / "out").exists()
    result = command(*line, "--partial")
    assert result.status == 0
    assert "the masks of segment, 5 of 8 images" in result.err
    assert len(list((tmp_path / "out" / "png" / "masks").glob("*.png"))) == 5


def test_export_misses_a_mask_of_a_finished_stage(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "pseudo_masks" / "masks" / "2.png").unlink()
    assert "holds only 7 of 8 masks" in fails("export", folder, "--stage", "pseudo_masks", "--out", tmp_path / "out")


def test_export_explains_unknown_formats_stages_and_values(fails: RunFailing, finished: Path, tmp_path: Path) -> None:
    line = ["export", finished, "--out", tmp_path]
    assert "format 'jpeg' is not known: choose from png" in fails(*line, "--format", "jpeg")
    assert "format 'overlay' is not known: did you mean 'overlays'" in fails(*line, "--format", "overlay")
    assert "makes no masks: did you mean 'pseudo_masks'" in fails(*line, "--stage", "pseudo_mask")
    assert "makes no masks" in fails(*line, "--stage", "cam")
    assert "min_area is -1: give a number of pixels" in fails(*line, "--min-area", "-1")


def test_export_lists_the_formats(command: RunCommand) -> None:
    text = " ".join(command("export", "--help").out.replace("│", " ").split())
    assert all(f"{name} ({format.description})" in text for name, format in OUTPUT_FORMATS.items())


@pytest.mark.parametrize("format", IMPORT_FORMATS)
def test_exported_masks_come_back_as_reviewed_ones(
    command: RunCommand, finished: Path, tmp_path: Path, format: str
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    stage = ["--stage", "pseudo_masks", "--format", format]
    assert command("export", folder, "--out", tmp_path, *stage).status == 0
    exported = tmp_path / format
    if format == "label-studio":
        tasks = (exported / "tasks.json").read_text().replace('"predictions"', '"annotations"')
        (exported / "tasks.json").write_text(tasks)
    if format == "cvat":
        (exported / "labels.json").unlink()
    archive = shutil.make_archive(str(tmp_path / "corrected"), "zip", exported)
    result = command("import", folder, archive, *stage)
    assert result.status == 0, result.err
    assert result.out.startswith("8 reviewed masks: 0 corrected, 8 accepted without a change.")
    review = tagmask.load(folder).review
    assert set(review.read_states()) == set("01234567")
    np.testing.assert_array_equal(review.read_mask("0"), read_label_map(folder / "pseudo_masks/masks/0.png"))


def test_reviewed_masks_are_exported(command: RunCommand, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    drawn = np.full((40, 48), 2, np.uint8)
    tagmask.load(folder).review.record("3", "corrected", drawn, source="test")
    result = command("export", folder, "--out", tmp_path / "all")
    assert "8 of 8 images; reviewed masks: 1" in result.err
    assert (read_label_map(tmp_path / "all/png/masks/3.png") == drawn).all()
    assert command("export", folder, "--out", tmp_path / "stage", "--stage", "pseudo_masks").status == 0
    exported = read_label_map(tmp_path / "stage/png/masks/3.png")
    np.testing.assert_array_equal(exported, read_label_map(folder / "pseudo_masks/masks/3.png"))


def test_import_explains_what_is_wrong(fails: RunFailing, finished: Path, data: Path, tmp_path: Path) -> None:
    assert "does not exist" in fails("import", finished, tmp_path / "none.zip", "--format", "png")
    assert "did you mean 'png'" in fails("import", finished, data, "--format", "pnk")
    assert "makes no masks" in fails("import", finished, data, "--format", "png", "--stage", "cam")
    assert not (finished / "review").exists()
