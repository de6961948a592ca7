"""Atomic writes: a file is complete or does not exist."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tagmask import artifacts
from tagmask.errors import RunError
from tagmask.label_map import write_label_map
from tagmask.models.saved_network import read_weights_and_config, write_weights_and_config

Write = Callable[[Path], None]
RNG = np.random.default_rng(0)
WRITERS: dict[str, Write] = {
    "text": lambda path: artifacts.write_text(path, "ä" * 200_000),
    "json": lambda path: artifacts.write_json(path, list(range(100_000))),
    "arrays": lambda path: artifacts.write_arrays(path, {"a": np.zeros(100_000, np.float32)}),
    "weights": lambda path: write_weights_and_config(path, {"a": torch.zeros(100_000)}, {"kind": "x"}),
    "labels": lambda path: write_label_map(path, RNG.integers(0, 255, (600, 600)).astype(np.uint8)),
}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_else(full_disk: Path, kind: str) -> None:
    path = full_disk / "file"
    path.write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*file: .*No space left.*; free space") as error:
        WRITERS[kind](path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert {f.name for f in full_disk.iterdir()} <= {"file", "config.json"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("anything")])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    new, old = tmp_path / "deep" / "new", tmp_path / "old"
    old.write_text("old")
    for path in (new, old):
        with (
            pytest.raises(RunError if isinstance(error, OSError) else ValueError),
            artifacts.atomic_write(path) as temporary,
        ):
            temporary.write_text("half")
            raise error
    assert not list(new.parent.iterdir())
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["old"]
    assert old.read_text() == "old"


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with artifacts.atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # else the rename would be a copy
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file.inside: "):
        artifacts.write_text(tmp_path / "file" / "inside", "x")


@pytest.mark.parametrize("name", ["😀" * 63, "é" * 127, "a b\n'\"<script>", "x" * 255])
def test_any_name_the_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    artifacts.write_text(tmp_path / name, "x")
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_name_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="shorten the image's name"):
        artifacts.write_text(tmp_path / ("x" * 256), "x")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    artifacts.write_text(tmp_path / "sub" / "kept", "x")
    with pytest.raises(KeyboardInterrupt), artifacts.atomic_write(tmp_path / "sub" / "cut") as temporary:
        temporary.write_text("half")
        left = temporary.with_name("." + "0" * 32 + ".tmp")
        temporary.rename(left)
        raise KeyboardInterrupt
    artifacts.remove_unfinished(tmp_path)
    assert [f.name for f in (tmp_path / "sub").iterdir()] == ["kept"]


def test_weights_come_back_with_what_they_are_of(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3), "n": torch.tensor(3)}
    write_weights_and_config(tmp_path / "net.safetensors", weights, {"kind": "x", "classes": ("ä",)})
    read, config = read_weights_and_config(tmp_path / "net.safetensors")
    assert config == {"kind": "x", "classes": ["ä"]}
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_missing_and_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"{")
    for read in (artifacts.read_json, artifacts.read_arrays, read_weights_and_config):
        with pytest.raises(RunError, match="does not exist"):
            read(tmp_path / "none")
        with pytest.raises(RunError, match=r"bad is (not JSON|damaged).*: .*run the same "):
            read(tmp_path / "bad")


def test_digest_is_of_the_value_alone() -> None:
    assert artifacts.digest({"a": 1, "b": [2, 3]}) == artifacts.digest({"b": (2, 3), "a": 1})
    assert artifacts.digest({"a": 1}) != artifacts.digest({"a": 2})
