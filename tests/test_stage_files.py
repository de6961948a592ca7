"""Missing and damaged files of a finished run: the same command makes them again, with the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tagmask
from tagmask.artifacts import read_json, write_json
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tests.runs import contents, toy_run, write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    held_out = tagmask.DataSource(root=str(data), masks="masks")
    toy_run(data, out, held_out=held_out)
    return out


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip_a_byte_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cam/maps/3.safetensors", Path.unlink),
        ("cam/maps/3.safetensors", _truncate),
        ("cam/maps/3.safetensors", _fill_with_zeros),
        ("cam/classifier.safetensors", _truncate),
        ("cam/config.json", Path.unlink),
        ("pseudo_masks/masks/3.png", Path.unlink),
        ("pseudo_masks/masks/3.png", _truncate),
        ("pseudo_masks/masks/3.png", _flip_a_byte_in_the_middle),
        ("pseudo_masks/threshold.json", _truncate),
        ("segment/masks", shutil.rmtree),
        ("segment/segmenter.safetensors", _fill_with_zeros),
        ("segment/config.json", _truncate),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"),
)
def test_the_same_command_makes_missing_and_damaged_files_again(
    data: Path, undisturbed: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    damage(run / name)
    held_out = tagmask.DataSource(root=str(data), masks="masks")
    toy_run(data, run, held_out=held_out)
    assert contents(run) == contents(undisturbed)


def test_files_with_wrong_contents_are_made_again(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """All at once: files in the right format that do not fit the run."""
    run = shutil.copytree(undisturbed, tmp_path / "run")
    maps = ResponseMaps.load(run / "cam/maps/3.safetensors")
    replace(maps, maps=maps.maps * np.float16(np.nan)).save(run / "cam/maps/3.safetensors")
    ResponseMaps(maps.classes, maps.maps[:, :2, :2], (8, 8)).save(run / "cam/maps/4.safetensors")
    ResponseMaps(np.array([200]), maps.maps[:1], maps.size).save(run / "cam/maps/0.safetensors")
    write_label_map(run / "pseudo_masks/masks/3.png", np.full((40, 48), 200))
    write_label_map(run / "pseudo_masks/masks/4.png", np.zeros((8, 8)))
    write_json(run / "pseudo_masks/threshold.json", {"threshold": 5})
    config = read_json(run / "segment/config.json")
    write_json(run / "segment/config.json", {**config, "test": {"scales": [], "crf": None}})
    save_file({"weight": torch.zeros(2)}, run / "cam/classifier.safetensors")
    held_out = tagmask.DataSource(root=str(data), masks="masks")
    toy_run(data, run, held_out=held_out)
    assert contents(run) == contents(undisturbed)


def test_damaged_masks_of_held_out_images_are_made_again(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    mask = next((run / "held_out").rglob("3.png"))
    _truncate(mask)
    tagmask.load(run, device="cpu", workers=0).update_report(quiet=True)
    assert contents(run) == contents(undisturbed)


def test_a_copied_run_is_complete_although_all_mtimes_have_changed(
    data: Path, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run", copy_function=shutil.copyfile)
    held_out = tagmask.DataSource(root=str(data), masks="masks")
    for _ in range(2):
        toy_run(data, run, held_out=held_out, quiet=False)
    printed = capfd.readouterr().err
    assert "again" not in printed
    assert printed.count("already done") == 3  # the first time; the second time it is finished
    assert "already finished" in printed
