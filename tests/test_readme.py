"""The README's Python runs as it stands, at toy size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagmask
from tests.runs import RECIPE, SETTINGS

README = Path(__file__).resolve().parents[1] / "README.md"


def test_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"<!-- a test runs this -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (tmp_path / "photos" / "beach").mkdir(parents=True)
    lines = ["image,tags"]
    for i, tags in enumerate(["dog;person", "", "dog", "person", "dog", "person;dog"]):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / "beach" / f"{i:03}.jpg")
        lines.append(f"beach/{i:03}.jpg,{tags}")
    Image.fromarray(noise).save(tmp_path / "new.jpg")
    (tmp_path / "tags.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    run = tagmask.run

    def toy(*arguments: str, **more: str) -> tagmask.Run:  # without the default recipe's download
        return run(*arguments, recipe=RECIPE, settings=SETTINGS, device="cpu", workers=0, quiet=True, **more)

    monkeypatch.setattr(tagmask, "run", toy, raising=False)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code.replace("beach/001", "beach/000").replace("001.jpg", "000.jpg"), names)

    labels = names["labels"]
    assert isinstance(labels, np.ndarray)
    assert labels.shape == (40, 48)
    assert set(np.unique(labels)) <= {0, 1}  # the classes are dog and person; the tag was dog
    assert (tmp_path / "heat.png").exists()
