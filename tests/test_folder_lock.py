"""Two commands on one folder: the second is refused, and a killed one leaves no lock behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tagmask.compute import Compute
from tagmask.errors import RunError
from tagmask.folder_lock import LOCK_FILE, lock_folder
from tests.runs import contents, toy_run, write_toy

FORK = multiprocessing.get_context("fork")  # a new interpreter would import PyTorch again
Holder = multiprocessing.process.BaseProcess


def _hold(folder: Path, has_lock: Event) -> None:
    with lock_folder(folder, Compute()):
        if os.fork() == 0:  # a worker that outlives a killed main process
            time.sleep(30)
            os._exit(0)
        has_lock.set()
        time.sleep(30)


@pytest.fixture
def hold() -> Iterator[Callable[[Path], Holder]]:
    """Return a function that starts a process which holds the lock of a folder."""
    processes: list[Holder] = []

    def start(folder: Path) -> Holder:
        has_lock = FORK.Event()
        process = FORK.Process(target=_hold, args=(folder, has_lock), daemon=True)
        process.start()
        processes.append(process)
        assert has_lock.wait(20)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_second_command_is_refused_until_the_first_ends(tmp_path: Path, hold: Callable[[Path], Holder]) -> None:
    process = hold(tmp_path)
    with (
        pytest.raises(RunError, match=f"in use by process {process.pid} on {socket.gethostname()}"),
        lock_folder(tmp_path, Compute()),
    ):
        pass
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / LOCK_FILE).exists()
    with lock_folder(tmp_path, Compute()):  # although a child of the killed process is alive
        pass
    assert not tmp_path.exists()


def test_a_run_in_use_is_neither_changed_nor_waited_for(tmp_path: Path, hold: Callable[[Path], Holder]) -> None:
    data, out = write_toy(tmp_path / "data"), tmp_path / "run"
    toy_run(data, out)
    before = contents(out)
    hold(out)
    with pytest.raises(RunError, match="is in use by process"):
        toy_run(data, out, seed=1, redo=True)
    with pytest.raises(RunError, match="is in use by process"):
        toy_run(data, out).run_stage("infercam", quiet=True)
    assert contents(out) == before


def test_threads_of_one_process(tmp_path: Path) -> None:
    with lock_folder(tmp_path, Compute()):
        with pytest.raises(RunError, match="by this process already"), lock_folder(tmp_path, Compute()):
            pass
        with lock_folder(tmp_path / "other", Compute()):
            pass
    with lock_folder(tmp_path, Compute()):
        pass


def test_a_folder_that_was_created_for_the_lock_is_removed(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b", Compute()):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert not (tmp_path / "a" / "b").exists()


def test_a_folder_that_cannot_be_written_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"cannot write .*file/run: Not a directory"),
        lock_folder(tmp_path / "file" / "run", Compute()),
    ):
        pass
