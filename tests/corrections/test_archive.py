"""Archives that annotation tools export."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tagmask.corrections.archive import Archive
from tagmask.errors import DataError


def test_a_file_without_a_name_is_harmless(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.json", "{}")
        archive.writestr("y/", "")
    content = (tmp_path / "a.zip").read_bytes()
    assert Archive(tmp_path / "a.zip").names == ["x.json"]
    (tmp_path / "a.zip").write_bytes(content.replace(b"x.json", b"\0.json"))
    assert Archive(tmp_path / "a.zip").named(".json") == []


def test_a_name_with_a_line_break_stays_on_one_line_of_a_message(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("e\nport.json", "{}")
    path.write_bytes(path.read_bytes().replace(b"e\nport", b"e-port", 1))  # the header no longer fits the directory
    archive = Archive(path)
    [name] = archive.names
    assert archive.location(name) == f"e port.json in {path}"
    with pytest.raises(DataError, match="it cannot be read") as error:
        archive.read(name)
    assert "\n" not in str(error.value)
