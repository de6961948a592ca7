"""How far a long loop has come, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from joblib import Parallel
from rich import progress as bars
from rich.console import Console

from tagmask.errors import WORKER_KILLED, RunError

LOG_EVERY = 30.0  # seconds between lines where the output is a file


class Progress(Protocol):
    """`with progress("maps", total) as advance: ... advance(1)`; `unit` is what is counted."""

    def __call__(
        self, what: str, total: int, unit: str = "images"
    ) -> AbstractContextManager[Callable[[int], None]]: ...


class Reporter:
    """Progress on a rich console: a bar on a terminal, a line now and then in a log, nothing if quiet."""

    def __init__(self, console: Console | None) -> None:
        self.console = console

    def info(self, line: str) -> None:
        if self.console:
            self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A `Progress`."""
        if not self.console or not total:
            yield lambda step: None
        elif self.console.is_terminal:
            text = bars.TextColumn("  {task.description}")
            columns = (text, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn(unit))
            times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
            with bars.Progress(*columns, *times, console=self.console) as bar:
                task = bar.add_task(what, total=total)
                yield lambda step: bar.advance(task, step)
        else:
            yield from self._log(what, total, unit)

    def _log(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        done, started = 0, time.monotonic()
        last = started

        def advance(step: int) -> None:
            nonlocal done, last
            done += step
            now = time.monotonic()
            if now - last >= LOG_EVERY:
                last = now
                left = (now - started) / done * (total - done)
                self.info(f"  {what}: {done}/{total} {unit}, about {left:.0f} s left")

        yield advance
        self.info(f"  {what}: {done}/{total} {unit} in {time.monotonic() - started:.0f} s")


def no_progress(what: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda step: None)


def run_parallel(what: str, jobs: Iterable[Any], total: int, workers: int, progress: Progress) -> None:
    """Do `total` jobs (each a joblib `delayed` call) in worker processes, showing how far it is.

    Raises RunError if the system kills a worker.
    """
    with progress(what, total) as advance:
        try:
            for _ in Parallel(n_jobs=max(1, workers), return_as="generator_unordered")(jobs):
                advance(1)
        except BrokenProcessPool as error:
            raise RunError(f"{what}: {WORKER_KILLED}") from error
