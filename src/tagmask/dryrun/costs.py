"""The result of a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tagmask.dryrun.timing import LoopTiming
from tagmask.dryrun.weights import ExternalWeights
from tagmask.errors import RunError
from tagmask.formatting import format_bytes


@dataclass(frozen=True)
class DryRun:
    """An estimate of the time, disk space and memory of a run that starts from the beginning.

    Attributes:
        timings: the time of each loop of the run, in order.
        weights: the initial weights of each stage that reads them from a file or from timm's hub, by stage name.
        disk: the bytes that the run writes, by stage; "largest checkpoint" exists only while a network is trained.
        disk_free: the bytes that the run folder can take, including those that it takes already.
        memory: the largest number of bytes in use by this "process", by one "worker" process and by the "gpu" (None
            if no GPU was used).

    Example:
        >>> estimate = tagmask.dry_run(
        ...     "photos", "other", tags="tags.csv", recipe="scratch", settings=TOY_SETTINGS, quiet=True
        ... )
        >>> sorted(estimate.memory), estimate.disk_needed > 0
        (['gpu', 'process', 'worker'], True)
    """

    timings: tuple[LoopTiming, ...]
    weights: dict[str, ExternalWeights]
    disk: dict[str, int]
    disk_free: int
    memory: dict[str, int | None]

    @property
    def seconds(self) -> float:
        """The time of the whole run."""
        return sum(timing.seconds for timing in self.timings)

    def seconds_by_stage(self, leave_out: Sequence[str] = ()) -> dict[str, float]:
        """Return the time of each stage and of each other part of the run, in order."""
        names = [name for name in dict.fromkeys(timing.stage for timing in self.timings) if name not in leave_out]
        return {name: sum(timing.seconds for timing in self.timings if timing.stage == name) for name in names}

    @property
    def disk_needed(self) -> int:
        """The number of bytes that the whole run writes."""
        return sum(self.disk.values())

    def check_disk_space(self, out: str | Path) -> None:
        """Raise RunError if the run folder `out` needs more disk space than there is."""
        if self.disk_needed > self.disk_free:
            raise RunError(
                f"{out} needs {format_bytes(self.disk_needed)} of disk space, but only "
                f"{format_bytes(self.disk_free)} are free: free some space, or choose another --out."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return {"seconds": self.seconds, "disk_needed": self.disk_needed, **asdict(self)}
