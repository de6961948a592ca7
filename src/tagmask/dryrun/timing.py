"""Timing the loops of a run that is done on a few of its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tagmask.dryrun.subset import ImageSubset
from tagmask.progress import Reporter


@dataclass(frozen=True)
class Timing:
    """A loop of the run, or (unit "") what a stage does besides: `units` in the whole run, and seconds for one."""

    stage: str
    what: str
    unit: str
    units: int
    each: float
    seconds: float


class LoopTimer(Reporter):
    """Times the loops of a run, part by part, and says which is on."""

    def __init__(self, console: Console | None, folder: Path) -> None:
        super().__init__(console)
        self.folder = folder
        self.timings: list[Timing] = []
        self.checkpoint = 0  # bytes of the largest
        self._stage, self._images = "", None  # type: str, ImageSubset | None
        self._measured = 0.0

    def info(self, line: str) -> None:
        """What a run says of itself, here of a few images, would mislead."""

    @contextmanager
    def part(self, stage: str, images: ImageSubset | None = None) -> Iterator[None]:
        """Time a part of the run, in which `images` stand for many (None: they are all there)."""
        self._stage, self._images, self._measured = stage, images, 0.0
        started = time.perf_counter()
        yield
        besides = time.perf_counter() - started - self._measured
        self.timings.append(Timing(stage, "all besides", "", 1, besides, besides))

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        super().info(f"  rehearsing {self._stage}: {what}")
        started = time.perf_counter()
        done, times = [0], [0.0]

        def advance(step: int) -> None:
            done.append(done[-1] + step)
            times.append(time.perf_counter() - started)

        yield advance
        spent = time.perf_counter() - started
        self._measured += spent
        if unit == "steps":
            self.checkpoint = max(self.checkpoint, sum(f.stat().st_size for f in self.folder.rglob("*.ckpt")))
        if done[-1]:
            self.timings.append(self._timing(what, total, unit, done, times, spent))

    def _timing(self, what: str, total: int, unit: str, done: list[int], times: list[float], spent: float) -> Timing:
        first = 1 if len(done) > 2 else 0  # the first step starts workers and fills caches
        each = (times[-1] - times[first]) / (done[-1] - done[first])
        once = spent - each * done[-1]
        units = total
        if self._images and unit != "steps":  # the steps of a training are already those of the many
            units = round(total * len(self._images) / len(self._images.samples))
            each *= self._images.pixels
        return Timing(self._stage, what, unit, units, each, max(0.0, once) + each * units)
