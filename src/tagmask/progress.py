"""How far a long loop has come, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY = 30.0  # seconds between lines where the output is a file


class Shown:
    """Progress on a rich console: a bar on a terminal, a line now and then in a log, nothing if quiet."""

    def __init__(self, console: Console | None) -> None:
        self.console = console

    def say(self, line: str) -> None:
        if self.console:
            self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A `stage.Progress`."""
        if not self.console or not total:
            yield lambda step: None
        elif self.console.is_terminal:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
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
                self.say(f"  {what}: {done}/{total} {unit}, about {left:.0f} s left")

        yield advance
        self.say(f"  {what}: {done}/{total} {unit} in {time.monotonic() - started:.0f} s")
