"""The command `tagmask review`: what it refuses."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tagmask.review import server
from tests.cli.runner import RunCommand, RunFailing
from tests.review.conftest import write_run


@pytest.fixture
def run_folder(data: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", data)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is given to the server, which does not start."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(server, "serve", lambda session, bound, host, open_browser: calls.append(
        (session.stage.name, len(session.images), bound.getsockname()[0], host, open_browser)))  # fmt: skip
    return calls


def test_stage_and_address(command: RunCommand, run_folder: Path, served: list[tuple[Any, ...]]) -> None:
    assert command("review", run_folder).status == 0
    assert command("review", run_folder, "--stage", "pseudo_masks", "--host", "localhost", "--no-browser").status == 0
    assert served[0][1:] == (8, "127.0.0.1", "127.0.0.1", True)
    assert (served[1][0], *served[1][3:]) == ("pseudo_masks", "localhost", False)


def test_other_machines_need_two_options(
    command: RunCommand, fails: RunFailing, run_folder: Path, served: list[tuple[Any, ...]]
) -> None:
    assert "--host 0.0.0.0 would let other machines connect" in fails("review", run_folder, "--host", "0.0.0.0")
    assert served == []
    allowed = command("review", run_folder, "--host", "0.0.0.0", "--allow-remote")
    assert allowed.status == 0
    assert "warning: other machines can connect to 0.0.0.0" in allowed.err
    assert served[0][2:4] == ("0.0.0.0", "0.0.0.0")


def test_what_cannot_be_reviewed(fails: RunFailing, run_folder: Path, data: Path, tmp_path: Path) -> None:
    assert "is not a tagmask run" in fails("review", tmp_path)
    assert "stage 'cam'" in fails("review", run_folder, "--stage", "cam")
    shutil.rmtree(run_folder / "segment" / "masks")
    assert "'segment' of" in (sentence := fails("review", run_folder, "--stage", "segment"))
    assert "has no masks yet" in sentence
    record = run_folder / "run.json"
    record.write_text(record.read_text().replace(str(data), str(tmp_path / "gone")))
    assert f"the folder {tmp_path / 'gone'} does not exist" in fails("review", run_folder)


def test_the_run_folder_is_not_locked(
    command: RunCommand, run_folder: Path, served: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can go on beside the page, and the page beside a run."""
    from tagmask.compute import Compute
    from tagmask.folder_lock import lock_folder

    with lock_folder(run_folder, Compute()):
        assert command("review", run_folder).status == 0


def test_missing_packages(fails: RunFailing, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _without(monkeypatch, "uvicorn"):
        assert 'pip install "tagmask[review]"' in fails("review", run_folder)


@contextmanager
def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> Iterator[None]:
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr("tagmask.cli.review.find_spec", lambda name: None if name == package else find(name))
        yield
