"""Fixtures that run command lines in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import timm

from tagmask.cli import main
from tests.cli.runner import Result, RunCommand, RunFailing
from tests.runs import toy_run, write_toy


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command line."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["tagmask", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as error:
            status = int(error.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def fails(command: RunCommand) -> RunFailing:
    """Run a command line that must fail with status 1 and one sentence; returns the sentence."""

    def run(*arguments: str | Path) -> str:
        result = command(*arguments)
        assert result.status == 1, result
        *progress, sentence = result.err.splitlines()
        assert sentence.startswith("tagmask: "), result.err
        assert not any(line.startswith(("tagmask: ", "Traceback")) for line in progress), result.err
        return sentence.removeprefix("tagmask: ")

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set with ground-truth masks."""
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished toy run with ground truth."""
    return toy_run(data, tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture
def with_tokencut(tmp_path: Path) -> list[str]:
    """Return the options that make saliency maps with a random network."""
    weights = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), weights)
    return ["--with", "tokencut:test_vit", "--weights", str(weights)]
