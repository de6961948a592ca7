"""Messages and progress bars, on a terminal or in a log file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, Self

from rich.console import Console

from tagmask.compute import exit_with_parent, is_main_process
from tagmask.errors import WORKER_KILLED, WorkerKilledError

LOG_INTERVAL = 30.0  # seconds between progress lines when the output is not a terminal

LoopUnit = Literal["images", "tiles", "steps", "shards"]
"""What a loop counts. "images": the images that a stage has; a dry run has only a few, and extrapolates their number.
"steps": mostly training steps; the total is that of a whole run also in a dry run, which ends the loop early."""


class Progress(Protocol):
    """A function that reports the progress of a loop: `with progress("maps", total) as advance: ... advance(1)`."""

    def __call__(
        self, description: str, total: int, unit: LoopUnit = "images"
    ) -> AbstractContextManager[Callable[[int], None]]: ...


class Reporter:
    """Print messages and progress on a Rich console.

    On a terminal a loop shows a progress bar; in a log file it prints a line every 30 seconds.

    Args:
        console: where to print; None: print nothing.

    Attributes:
        note: what the running loop says besides its progress, e.g. "epoch 3/5, loss 0.41".
    """

    note = ""

    def __init__(self, console: Console | None = None) -> None:
        self.console, self._suffix = console, ""

    def with_suffix(self, suffix: str) -> Self:
        """Return a reporter for a part of the work: it adds a text to the description of each loop."""
        reporter = type(self)(self.console)
        reporter._suffix = suffix
        return reporter

    @classmethod
    def to_stderr(cls, *, quiet: bool = False) -> Reporter:
        """Return a reporter that prints to standard error, or one that prints nothing."""
        return cls(None if quiet else Console(stderr=True))

    def info(self, text: str) -> None:
        """Print one line."""
        if self.console:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int, unit: LoopUnit = "images") -> Iterator[Callable[[int], None]]:
        """Show the progress of a loop of `total` units. Yields a function that takes the number of new units done."""
        self.note = ""
        description += self._suffix
        if not self.console or not total:
            yield lambda step: None
        elif self.console.is_terminal:
            from rich import progress as rich_progress

            text = rich_progress.TextColumn("  {task.description}")
            count = (rich_progress.BarColumn(), rich_progress.MofNCompleteColumn(), rich_progress.TextColumn(unit))
            times = (rich_progress.TimeElapsedColumn(), rich_progress.TimeRemainingColumn())
            with rich_progress.Progress(text, *count, *times, console=self.console) as bar:
                task = bar.add_task(description, total=total)
                yield lambda step: bar.update(task, advance=step, description=self._with_note(description))
        else:
            yield from self._log_lines(description, total, unit)

    def _with_note(self, description: str) -> str:
        return f"{description} ({self.note})" if self.note else description

    def _log_lines(self, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        done, start = 0, time.monotonic()
        last_line = start

        def advance(step: int) -> None:
            nonlocal done, last_line
            done += step
            now = time.monotonic()
            if now - last_line >= LOG_INTERVAL:
                last_line = now
                remaining = (now - start) / done * (total - done)
                self.info(f"  {self._with_note(description)}: {done}/{total} {unit}, about {remaining:.0f} s left")

        yield advance
        self.info(f"  {description}: {done}/{total} {unit} in {time.monotonic() - start:.0f} s")


def make_reporter(quiet: bool) -> Reporter:
    """Return a reporter that prints to standard error, and nothing if `quiet` or in another process than rank 0."""
    return Reporter.to_stderr(quiet=quiet or not is_main_process())


def run_in_workers(
    description: str, delayed_calls: Iterable[Any], num_calls: int, num_workers: int, progress: Progress
) -> list[Any]:
    """Run joblib `delayed` calls in worker processes and report the progress.

    Args:
        description: text beside the progress bar.
        delayed_calls: joblib `delayed` calls.
        num_calls: the number of calls.
        num_workers: the number of processes; 0 and 1 run the calls in this process.
        progress: reports each finished call.

    Returns:
        The results, in the order of the calls.

    Raises:
        RunError: the operating system killed a worker.
    """
    results = []
    with progress(description, num_calls) as advance:
        for result in results_from_workers(description, delayed_calls, num_workers):
            results.append(result)
            advance(1)
    return results


def stop_workers() -> None:
    """End the worker processes, which joblib keeps for the next calls, together with the memory that they have used."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown()


def results_from_workers(description: str, delayed_calls: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """Yield the results of joblib `delayed` calls in worker processes, in the order of the calls.

    The arguments and errors are those of `run_in_workers`.
    """
    from joblib import Parallel

    try:
        pool = Parallel(
            n_jobs=max(1, num_workers), return_as="generator", initializer=exit_with_parent, initargs=(os.getpid(),)
        )
        yield from pool(delayed_calls)
    except BrokenProcessPool as error:
        raise WorkerKilledError(f"{description}: {WORKER_KILLED}") from error
