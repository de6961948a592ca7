"""Archives that annotation tools export."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tagmask.corrections.archive import Archive


def test_a_file_without_a_name_is_harmless(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.json", "{}")
        archive.writestr("y/", "")
    content = (tmp_path / "a.zip").read_bytes()
    assert Archive(tmp_path / "a.zip").names == ["x.json"]
    (tmp_path / "a.zip").write_bytes(content.replace(b"x.json", b"\0.json"))
    assert Archive(tmp_path / "a.zip").named(".json") == []
