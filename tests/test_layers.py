"""The rooms of the house, as CONTRIBUTING.md lists them: imports go down, never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tagmask"
LISTED = re.search(r"src/tagmask/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
LAYERS = [re.findall(r"(\w+)(?:/|\.py)", re.split(r"\s{2,}", row.strip())[0])
          for row in (LISTED[1] if LISTED else "").splitlines()]  # fmt: skip
LAYER = {layer: number for number, layers in enumerate(LAYERS) for layer in layers}
FILES = sorted(f for f in PACKAGE.rglob("*.py") if f.parent != PACKAGE or f.stem.strip("_") not in ("init", "main"))


def test_every_room_is_listed() -> None:
    there = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES} | {"recipes"}
    assert there == set(LAYER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    above = [n for n in names if n.startswith("tagmask.") and LAYER[n.split(".")[1]] < LAYER[layer]]
    assert not above
