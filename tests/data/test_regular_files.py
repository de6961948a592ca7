"""Pipes, devices and huge files are refused in a sentence, without waiting and without filling the memory."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tagmask.data.coco_reader import read_coco
from tagmask.data.images import read_image
from tagmask.data.regular_files import read_regular_file
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError


@pytest.fixture(params=["pipe", "device", "socket"])
def special_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.png")
    return path


def test_special_files_are_refused(special_file: Path) -> None:
    expected = "is a pipe, device or socket, not a file; remove it"
    with pytest.raises(DataError, match=expected):
        read_image(special_file)
    for suffix in (".csv", ".xml", ".json", ".xlsx"):
        table = special_file.rename(special_file.with_suffix(suffix))
        with pytest.raises(DataError, match=expected):
            read_tag_table(table)
        special_file = table
    with pytest.raises(DataError, match=expected):
        read_coco(special_file.parent, special_file)


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**31)  # a sparse file
    with pytest.raises(DataError, match=r"a\.png has more than 1\.1 GB; make it smaller or split it"):
        read_image(path)
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_regular_file(tmp_path)
