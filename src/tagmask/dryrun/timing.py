"""Time the loops of a dry run, and extrapolate them to the whole run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tagmask.dryrun.subset import ImageSubset
from tagmask.progress import LoopUnit, Reporter


@dataclass(frozen=True)
class LoopTiming:
    """The estimated time of one loop in the whole run, or of the parts of a stage outside of loops.

    Attributes:
        stage: the stage, or another part of the run.
        description: the name of the loop.
        unit: what the loop counts; None: this is not a loop.
        count: the number of units in the whole run.
        seconds_per_unit: the time of one unit.
        seconds: the time of the whole loop, including its start.
    """

    stage: str
    description: str
    unit: LoopUnit | None
    count: int
    seconds_per_unit: float
    seconds: float


class LoopTimer(Reporter):
    """Time every loop that reports its progress, and print a line when one begins.

    Other messages are not printed, because their numbers are those of a few images.

    Args:
        console: where to print; None: print nothing.
        folder: the run folder of the dry run.

    Attributes:
        timings: the loops in the order in which they ended.
        largest_checkpoint: the size in bytes of the largest checkpoint of a training.
    """

    def __init__(self, console: Console | None, folder: Path) -> None:
        super().__init__(console)
        self.timings: list[LoopTiming] = []
        self.largest_checkpoint = 0
        self._folder = folder
        self._stage = ""
        self._subset: ImageSubset | None = None
        self._loop_seconds = 0.0  # of all loops of the stage

    def info(self, text: str) -> None:
        """Print nothing."""

    @contextmanager
    def time_stage(self, stage: str, subset: ImageSubset | None = None) -> Iterator[None]:
        """Time a stage, or another part of the run.

        Args:
            stage: its name.
            subset: the images that it processes; None: it processes all images.
        """
        self._stage, self._subset, self._loop_seconds = stage, subset, 0.0
        start = time.perf_counter()
        yield
        rest = time.perf_counter() - start - self._loop_seconds
        self.timings.append(LoopTiming(stage, "outside of loops", None, 1, rest, rest))

    @contextmanager
    def progress(self, description: str, total: int, unit: LoopUnit = "images") -> Iterator[Callable[[int], None]]:
        """Time a loop. Yields a function that takes the number of new units done."""
        super().info(f"  dry run of {self._stage}: {description}")
        start = time.perf_counter()
        done, times = [0], [0.0]

        def advance(step: int) -> None:
            done.append(done[-1] + step)
            times.append(time.perf_counter() - start)

        yield advance
        elapsed = time.perf_counter() - start
        self._loop_seconds += elapsed
        checkpoints = self._folder.rglob("*.ckpt") if unit == "steps" else ()  # the stage removes them after training
        self.largest_checkpoint = max([self.largest_checkpoint, *(file.stat().st_size for file in checkpoints)])
        if done[-1]:
            seconds_per_unit = _seconds_per_unit(done, times)
            seconds_once = max(0.0, elapsed - seconds_per_unit * done[-1])
            count = total
            if self._subset and unit != "steps":
                count = round(total * self._subset.image_factor)
                seconds_per_unit *= self._subset.pixel_factor
            seconds = seconds_once + seconds_per_unit * count
            self.timings.append(LoopTiming(self._stage, description, unit, count, seconds_per_unit, seconds))


def _seconds_per_unit(done: Sequence[int], times: Sequence[float]) -> float:
    """Return the time per unit, without the first report: until then workers start and caches fill.

    Args:
        done: the numbers of units done; the first is 0.
        times: the seconds after which they were reported.
    """
    first = 1 if len(done) > 2 else 0
    return (times[-1] - times[first]) / (done[-1] - done[first])
