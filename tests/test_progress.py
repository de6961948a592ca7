"""Progress of long loops, and killed workers."""

from __future__ import annotations

import io
import os
import signal

import pytest
from joblib import delayed
from rich.console import Console

from tagmask.errors import RunError
from tagmask.progress import Reporter, run_in_workers


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(RunError, match=r"^masks: a worker process was killed, .* use fewer workers"):
        run_in_workers("masks", (delayed(_ends)(i == 3) for i in range(8)), 8, 4, Reporter().progress)


def test_every_job_is_counted() -> None:
    reporter = Reporter(Console(file=io.StringIO(), width=80))
    run_in_workers("masks", (delayed(_ends)(False) for _ in range(5)), 5, 2, reporter.progress)
    assert reporter.console
    assert reporter.console.file.getvalue().startswith("  masks: 5/5 images in ")


def _ends(killed: bool) -> None:
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
