"""The layers of the package, as CONTRIBUTING.md lists them: imports go down the list, never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tagmask"
LISTED = re.search(r"src/tagmask/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
LAYERS = [re.findall(r"(\w+)(?:/|\.py)", re.split(r"\s{2,}", line.strip())[0])
          for line in (LISTED[1] if LISTED else "").splitlines()]  # fmt: skip
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
FILES = sorted(f for f in PACKAGE.rglob("*.py") if f.parent != PACKAGE or f.stem.strip("_") not in ("init", "main"))


def test_every_module_is_listed() -> None:
    modules = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES} | {"recipes"}
    assert modules == set(LAYER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    only_for_types = {
        imported
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for imported in ast.walk(node)
    }
    names: list[str] = []
    for node in ast.walk(tree):
        if node in only_for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    upward = [n for n in names if n.startswith("tagmask.") and LAYER[n.split(".")[1]] < LAYER[module]]
    assert not upward
