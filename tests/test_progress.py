"""Progress of long loops, and killed workers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
from joblib import delayed
from rich.console import Console

from tagmask.compute import explain_out_of_memory
from tagmask.errors import RunError
from tagmask.progress import Reporter, run_in_workers, stop_workers


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(RunError, match=r"^masks: a worker process was killed, .* use fewer workers"):
        run_in_workers("masks", (delayed(_ends)(i == 3) for i in range(8)), 8, 4, Reporter().progress)


def test_every_job_is_counted() -> None:
    output = io.StringIO()
    reporter = Reporter(Console(file=output, width=80))
    run_in_workers("masks", (delayed(_ends)(False) for _ in range(5)), 5, 2, reporter.progress)
    assert output.getvalue().splitlines()[-1].startswith("  masks: 5/5 images in ")


def _ends(killed: bool) -> None:
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


KILLED_SCRIPT = """
    import os, sys, time
    from joblib import delayed
    from tagmask.compute import Compute
    from tagmask.data.loading import load_image_batches
    from tagmask.progress import Reporter, run_in_workers
    from tests.test_progress import wait_for_ever

    if sys.argv[1] == "joblib":
        run_in_workers("x", [delayed(wait_for_ever)() for _ in range(2)], 2, 2, Reporter().progress)
    else:
        from tests.test_progress import SlowSample
        next(load_image_batches([[SlowSample()], [SlowSample()]], Compute(workers=2)))
"""


def wait_for_ever() -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)


class SlowSample:
    def read_reduced_image(self) -> None:
        wait_for_ever()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes of a session from /proc")
@pytest.mark.parametrize("kind", ["joblib", "loader"])
def test_workers_end_when_the_main_process_is_killed(kind: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_SCRIPT), kind]
    main = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    )
    assert main.stdout
    workers = {int(main.stdout.readline()) for _ in range(2)}
    assert workers <= processes_of_session(main.pid)
    main.kill()
    main.wait()
    end = time.monotonic() + 20
    while (left := processes_of_session(main.pid)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def processes_of_session(session: int) -> set[int]:
    """Return the processes of a session that are not zombies."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.add(int(folder.name))
    return found


def test_too_little_memory_is_one_sentence() -> None:
    import torch  # here, so that the workers of the other tests, which import this module, start quickly

    cpu = torch.device("cpu")
    message = r"^stage 'cam' does not fit into the memory of cpu: use a larger machine\.$"
    with (
        pytest.raises(RunError, match=message),
        explain_out_of_memory("stage 'cam'", cpu, "use a larger machine"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory("a", cpu, "b"):
        raise RuntimeError("something else")


THREADS_SCRIPT = """
    import sys
    from tagmask.compute import set_threads

    if sys.argv[1] == "after torch":
        import torch
    set_threads(1)
    import torch
    from tagmask.refine.threads import thread_count
    print(torch.get_num_threads(), thread_count(None))
"""


@pytest.mark.parametrize("when", ["before torch", "after torch"])
def test_the_number_of_threads_is_that_of_networks_and_of_the_crf(when: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    command = [sys.executable, "-c", textwrap.dedent(THREADS_SCRIPT), when]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "1"]


def test_idle_threads_sleep() -> None:
    code = "from tagmask.compute import let_threads_sleep; let_threads_sleep(); import torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment | {"OMP_DISPLAY_ENV": "true", **given},
            capture_output=True, text=True, check=True, timeout=120,
        ).stderr
        for given in ({}, {"OMP_WAIT_POLICY": "ACTIVE"})
    ]  # fmt: skip
    if "OMP_WAIT_POLICY" not in said[0]:
        pytest.skip("PyTorch has no OpenMP here")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said[0]
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in said[1]


def test_stopped_workers_end_and_others_take_their_place() -> None:
    """A training stops those of the stage before it, which would keep their memory."""

    def workers() -> set[int]:
        return set(run_in_workers("pids", [delayed(os.getpid)() for _ in range(8)], 8, 2, Reporter().progress))

    first = workers()
    stop_workers()
    for pid in first:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not first & workers()
