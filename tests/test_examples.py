"""Every public name has an example in its docstring, and all examples run."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagmask
from tagmask import compute
from tests.runs import SETTINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos/, tags.csv, a finished run/ and its network as exported/onnx/model.onnx."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "photos" / "beach").mkdir(parents=True)
    lines = ["image,tags"]
    for i, tags in enumerate(["dog;person", "", "dog"], 1):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / "photos" / "beach" / f"{i:03}.jpg")
        lines.append(f"beach/{i:03}.jpg,{tags}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = {"recipe": "scratch", "settings": SETTINGS, "device": "cpu", "workers": 0, "quiet": True}
        tagmask.run("photos", "run", tags="tags.csv", **arguments).export("exported", "onnx", quiet=True)
    return folder


@pytest.mark.parametrize("name", [*tagmask.__all__, "tagmask"])
def test_examples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(compute, "default_workers", lambda processes=1: 0)  # to start them takes longer than the work
    target = tagmask if name == "tagmask" else getattr(tagmask, name)
    module = sys.modules["tagmask" if name == "tagmask" else target.__module__]
    namespace = {**vars(module), "tagmask": tagmask, "TOY_SETTINGS": SETTINGS}
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=name != "tagmask").find(target, name, globs=namespace)
        if test.examples
    ]
    inherits_example = isinstance(target, type) and issubclass(target, tagmask.TagmaskError)
    assert tests or inherits_example, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        assert runner.run(test).failed == 0, test.name
