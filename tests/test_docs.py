"""The docs agree with the code: links, commands, recipes and generated parts."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml

import tagmask
from tagmask.cli.commands import app
from tagmask.recipe import find_method, load_recipe, method_names, recipe_with_stage

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[!_]*/*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
parametrize_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return [code for _, name, code in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@parametrize_pages
def test_relative_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(re.sub(r"`[^`\n]+`", "", prose(page))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def commands(block: str) -> list[list[str]]:
    """Return the arguments of each `tagmask` command in a shell example."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "tagmask" in words and "..." not in words and "install" not in words:
            words = words[words.index("tagmask") + 1 :]
            words = words[2:] if words[0] == "--import" else words
            found.append(words[: words.index(">")] if ">" in words else words)
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "cli.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_examples_are_valid(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for block in fences(page, "sh"):
        recipe = load_recipe("small")  # of the run to which the block adds stages
        for name, *arguments in commands(block):
            command = group.commands[name]
            values = command.make_context(name, list(arguments)).params  # raises for a wrong or missing argument
            settings = next((values[p.name] or [] for p in command.params if "--set" in p.opts), [])
            if name == "run" and not values["recipe"].endswith(".yaml"):
                load_recipe("small" if values["recipe"] == "auto" else values["recipe"], settings)
            if name == "add-stage" and values["method"] in method_names():
                recipe = recipe_with_stage(recipe, values["method"], settings)


@parametrize_pages
def test_recipes_in_examples_are_valid(page: Path) -> None:
    for code in fences(page, "yaml"):
        recipe = yaml.safe_load(code)
        if "stages" in recipe and "my_layercam" not in code:
            tagmask.Recipe.model_validate(recipe)


@parametrize_pages
def test_python_in_examples_compiles(page: Path) -> None:
    for code in fences(page, "python"):
        compile(code, str(page), "exec")


@cache
def generate() -> ModuleType:
    """Import docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_current() -> None:
    """If this fails: make docs-generated."""
    for page, text in generate().generated_pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is out of date: make docs-generated"


def test_every_method_has_a_page() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index"} == set(method_names())


@pytest.mark.parametrize("name", method_names())
def test_every_setting_has_a_description(name: str) -> None:
    method = find_method(name)
    assert not [field for field, info in method.model_fields.items() if not info.description]


def test_api_page_documents_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. auto\w+:: tagmask\.(\w+)", page, re.MULTILINE)) == set(tagmask.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_source_files_exist(page: Path) -> None:
    paths = re.findall(r"`((?:src|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", prose(page))
    assert not [path for path in paths if not (ROOT / path).exists() and path != "docs/methods/NAME.md"]
