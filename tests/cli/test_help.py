"""Help, usage errors, recipes, and the modules that quick commands import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import tagmask
from tagmask.cli.options import ImageOptions
from tagmask.recipe import recipe_names
from tests.cli.runner import TOY, RunCommand

COMMANDS = (
    "run", "resume", "demo", "check", "recipes", "add-stage", "thresholds", "predict", "export", "evaluate", "report",
    "saliency", "scenes",
)  # fmt: skip
HEAVY_MODULES = {"torch", "torchvision", "timm", "lightning", "torchmetrics", "numba", "scipy"}
PRINT_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from tagmask.cli import main
main()
"""
DATA_OPTIONS = {"--tags", "--format", "--split", "--annotations", "--coco-order", "--coco-crowds", "--masks",
                "--class-list", "--image-column", "--tags-column"}  # fmt: skip


def imported_modules(*arguments: str | Path) -> tuple[str, set[str]]:
    """Return what a command prints in a process of its own, and the modules that it imports."""
    line = [sys.executable, "-c", PRINT_MODULES, *map(str, arguments)]
    process = subprocess.run(line, capture_output=True, text=True, check=True)
    return process.stdout, set(process.stderr.splitlines()[-1].split())


def test_help_lists_every_command_and_imports_little() -> None:
    text, modules = imported_modules("--help")
    assert not modules & {*HEAVY_MODULES, "numpy", "PIL"}
    for name in COMMANDS:
        assert f"│ {name} " in text
    assert "Start with `tagmask demo`" in text


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "cam"], ["run", "--help"]])
def test_commands_that_compute_nothing_do_not_import_pytorch(arguments: list[str]) -> None:
    text, modules = imported_modules(*arguments)
    assert text
    assert not modules & HEAVY_MODULES


def test_check_does_not_import_pytorch(data: Path) -> None:
    text, modules = imported_modules("check", data, "--masks", "masks")
    assert "ready to run" in text
    assert not modules & HEAVY_MODULES


def test_a_finished_run_does_not_import_pytorch(command: RunCommand, data: Path, tmp_path: Path) -> None:
    line = ["run", data, "--out", tmp_path / "run", "--masks", "masks", *TOY]
    first = command(*line)
    assert first.status == 0, first.err
    text, modules = imported_modules(*line)
    assert text == first.out
    assert not modules & HEAVY_MODULES
    assert " ".join(command(*line).err.split()).endswith("is already finished")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(command: RunCommand, name: str) -> None:
    import typer.main

    from tagmask.cli.commands import app

    result = command(name, "--help")
    assert result.status == 0
    assert "Usage: " in result.out
    group: Any = typer.main.get_command(app)
    parameters = group.commands[name].params
    assert group.commands[name].help
    for parameter in parameters:
        assert parameter.help[0].isupper(), parameter.name
        assert parameter.help.endswith("."), parameter.name
        assert parameter.param_type_name == "argument" or max(parameter.opts, key=len) in result.out


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (
            "run",
            {
                "--saliency",
                "--classes",
                "--val",
                "--val-tags",
                "--val-masks",
                "--val-annotations",
                "--skip-bad",
                "--limit",
                "--reviewed",
            },
        ),
        ("check", {"--saliency", "--classes", "--limit", "--reviewed"}),
        ("saliency", {"--skip-bad"}),
        ("thresholds", {"--classes", "--data"}),
        ("evaluate", {"--classes", "--data", "--skip-bad"}),
    ],
)
def test_data_options_are_in_a_panel_of_their_own(command: RunCommand, name: str, more: set[str]) -> None:
    text = command(name, "--help").out
    panel = text[text.index("─ Data ─") :].partition("╰")[0]
    assert {word for word in panel.split() if word.startswith("--")} == DATA_OPTIONS | more


@pytest.mark.parametrize("name", ["resume", "demo", "recipes", "export", "report", "scenes", "add-stage"])
def test_commands_without_data_show_no_data_options(command: RunCommand, name: str) -> None:
    assert "─ Data ─" not in command(name, "--help").out


def test_formats_are_those_of_data_source() -> None:
    assert get_type_hints(ImageOptions)["format"] == tagmask.DataSource.model_fields["format"].annotation


def test_version(command: RunCommand) -> None:
    assert command("--version").out == f"tagmask {tagmask.__version__}\n"


def test_recipes(command: RunCommand) -> None:
    assert set(command("recipes", "--json").json) == set(recipe_names())
    assert all(name in command("recipes").out for name in recipe_names())
    assert "# " in command("recipes", "cam").out
    stages = command("recipes", "cam", "--json").json["stages"]
    assert stages["cam"]["backbone"] == "resnet50"
    assert stages["segment"]["inputs"]["masks"] == "pseudo_masks"


def test_no_command_shows_the_help(command: RunCommand) -> None:
    result = command()
    assert "Usage" in result.out + result.err


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["maps", "run"], ["run"], ["run", "x"], ["run", "x", "--out"],
     ["run", "x", "--out", "y", "--seed", "-1"], ["run", "x", "--out", "y", "--workers", "many"],
     ["run", "x", "--out", "y", "--precision", "half"], ["run", "x", "--out", "y", "--format", "zip"], ["check"],
     ["predict", "x"], ["add-stage", "run"]],
)  # fmt: skip
def test_wrong_usage_has_status_2(command: RunCommand, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.status == 2
    assert "Traceback" not in result.err
    assert "Error" in result.err or "Invalid" in result.err
