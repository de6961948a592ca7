"""The command `tagmask review` in a process of its own: its start, its end, and being killed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import tagmask
from tagmask.artifacts import remove_unfinished
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.review import server
from tagmask.review.doubt import Doubt, print_scores
from tagmask.review.images import image_key
from tagmask.review.server import bind, host_names, is_loopback
from tagmask.review.session import ReviewSession
from tagmask.review_folder import ReviewFolder

KEY = image_key("3")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork processes")


class Browser:
    """A browser that has opened the page of a running server.

    Args:
        url: what the server printed.
    """

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url.partition("/?")[0], timeout=30)
        assert self.client.get(url).status_code == 303

    def put(self, labels: np.ndarray, base: int) -> httpx.Response:
        headers = {"X-Tagmask": "1", "Origin": str(self.client.base_url).rstrip("/")}
        url, options = f"/api/images/{KEY}/mask", {"base": base}
        return self.client.put(url, content=labels.tobytes(), params=options, headers=headers)


def serve_in_fork(folder: Path, output: Path) -> None:
    """Serve a run without the command, which would import PyTorch again for each test."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    sys.stdout = open(1, "w")  # noqa: SIM115
    server.warm_up = Doubt.start = lambda *_: None  # type: ignore[assignment, method-assign]
    with bind("127.0.0.1", 0) as bound:
        server.serve(ReviewSession(tagmask.load(folder, device="cpu")), bound, "127.0.0.1", open_browser=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], tuple[BaseProcess, Browser]]]:
    """Return a function that starts a server, and opens its page."""
    processes: list[BaseProcess] = []

    def run(folder: Path) -> tuple[BaseProcess, Browser]:
        output = tmp_path / f"output{len(processes)}"
        process = multiprocessing.get_context("fork").Process(target=serve_in_fork, args=(folder, output))
        process.start()
        processes.append(process)
        return process, Browser(
            wait_for(lambda: output.exists() and "\n" in output.read_text() and printed_url(output))
        )

    yield run
    for process in processes:
        process.kill()
        process.join()


def printed_url(output: Path) -> str:
    return output.read_text().splitlines()[0].rpartition(" ")[2]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def labels(value: int) -> np.ndarray:
    return np.full((40, 48), value, np.uint8)


@pytest.mark.slow
def test_the_command(folder: Path) -> None:
    """It prints the address of the page, scores the images meanwhile, and Ctrl-C ends both processes."""
    command = [sys.executable, "-m", "tagmask", "review", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("8 images of stage 'segment': http://127.0.0.1:")
        browser = Browser(first.rpartition(" ")[2].strip())
        assert browser.put(labels(2), 0).json()["version"] == 1
        wait_for(lambda: browser.client.get("/api/images").json()["order"] == "doubt")
        images = browser.client.get("/api/images").json()
        doubt = images["columns"].index("doubt")
        expected = {score.image: score.doubt for score in tagmask.load(folder).scores(quiet=True)}
        assert {row[1]: row[doubt] for row in images["images"]} == pytest.approx(expected)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert (ReviewFolder(folder / "review").read_mask("3") == 2).all()


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_server(
    folder: Path, start: Callable[[Path], tuple[BaseProcess, Browser]], number: signal.Signals
) -> None:
    process, browser = start(folder)
    assert browser.put(labels(2), 0).json()["version"] == 1
    os.kill(process.pid or 0, number)
    process.join(30)
    assert process.exitcode == 0
    assert (ReviewFolder(folder / "review").read_mask("3") == 2).all()
    with pytest.raises(httpx.ConnectError):
        browser.client.get("/api/run")


@needs_fork
def test_a_killed_server_leaves_nothing_half_written(
    folder: Path, start: Callable[[Path], tuple[BaseProcess, Browser]]
) -> None:
    """It is killed while a tab saves one mask after the other, several times."""
    review, base = ReviewFolder(folder / "review"), 0
    for round_number in range(4):
        process, browser = start(folder)
        assert browser.client.get(f"/api/images/{KEY}").json()["version"] == base
        with suppress(httpx.HTTPError):
            for number in itertools.count():
                assert browser.put(labels(1 + base % 3), base).json()["version"] == base + 1
                base += 1
                if number == 1:
                    threading.Timer(0.03 + 0.041 * round_number, process.kill).start()
        process.join()
        events = review.history("3")
        assert base <= len(events) <= base + 1, "a saved change is never lost"
        base = len(events)
        kept = [event.before for event in events if event.before is not None]
        assert len(kept) == base - 1
        for number, name in enumerate(kept):
            assert np.unique(read_label_map(review.path / "history" / name)).tolist() == [1 + number % 3]
        assert np.unique(review.read_mask("3")).tolist() == [1 + (base - 1) % 3], "that of the last change in the log"
        remove_unfinished(review.path)
    assert base >= 8


def test_names_and_sockets() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.9", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "127.evil.example", "localhost.evil.example", "")))
    assert host_names("::1") == ["[::1]"]
    assert socket.gethostname() in host_names("0.0.0.0")
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert port
        with pytest.raises(RunError, match=f"port {port} .*: choose another --port"):
            bind("127.0.0.1", port)
    for host in ("no-such-host.invalid", "192.0.2.1"):
        with pytest.raises(RunError, match=host.replace(".", r"\.")):
            bind(host, 0)


def test_no_text_browser_opens_in_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not server._has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert server._has_display()


def doubt_of(folder: Path, stage: str = "segment", script: str = "") -> Doubt:
    """Return scores that another process computes, which is a Python script."""
    doubt = Doubt(folder, stage, tagmask.load(folder).recipe)
    doubt._command = [sys.executable, "-c", script]
    return doubt


def test_the_scores_come_from_another_process(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "go").unlink(missing_ok=True)
    script = f"""
import json, pathlib, time
print(json.dumps(dict(progress=0.25)), flush=True)
while not pathlib.Path({str(tmp_path / "go")!r}).exists():
    time.sleep(0.01)
print(json.dumps(dict(scores=[dict(image="ü", doubt=0.5)])))
"""
    doubt = doubt_of(folder, script=script)
    assert (doubt.scores, doubt.progress, doubt.error) == ({}, None, None)
    doubt.start()
    wait_for(lambda: doubt.progress == 0.25)
    assert doubt.scores == {}
    (tmp_path / "go").touch()
    wait_for(lambda: doubt.progress is None)
    assert (doubt.scores, doubt.error) == ({"ü": {"image": "ü", "doubt": 0.5}}, None)


def test_a_scoring_process_that_fails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for script, reason in (("raise SystemExit(3)", "status 3"), ("raise KeyError('x')", "KeyError: 'x'")):
        doubt = doubt_of(folder, script=script)
        doubt.start()
        wait_for(lambda doubt=doubt: doubt.progress is None)
        assert doubt.error == f"the process that scores the masks has ended early ({reason})."
        assert doubt.scores == {}
    assert "cannot be sorted by doubt: the process" in capfd.readouterr().err


def test_a_scoring_process_that_is_stopped(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    doubt = doubt_of(folder, script="import time; time.sleep(60)")
    doubt.stop()
    doubt.start()
    doubt.stop()
    assert doubt._process is not None
    assert doubt._process.returncode == -signal.SIGTERM
    wait_for(lambda: doubt.progress is None)
    assert (doubt.error, capfd.readouterr().err) == (None, "")


def test_what_the_scoring_process_prints(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagmask.compute, "_available_cores", lambda: 1)
    (data / "5.png").write_bytes(b"damaged")
    print_scores(str(folder), "segment")
    *progress, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert progress[0]["progress"] < progress[-1]["progress"] == 1
    assert [score["image"] for score in last["scores"]] == ["0", "1", "2", "3", "4", "6", "7"]
    assert last["scores"][3]["missing_tags"] == ["red"]
    record = folder / "cam" / "stage.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))
    print_scores(str(folder), "segment")
    assert "stage 'cam'" in json.loads(capsys.readouterr().out)["error"]
