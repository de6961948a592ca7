"""A run rehearsed on a few of its images: whether it works here, and how much time, disk and memory it would take.

The recipe is carried out for real in a temporary folder, and every loop that tells its progress is timed; so nothing
here knows a method by name.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor
from rich.console import Console

from tagmask.api import REPORT, Run, read_data, resolve_recipe
from tagmask.compute import Compute, Precision
from tagmask.data.source import DataSource
from tagmask.dryrun.subset import ImageSubset
from tagmask.dryrun.timing import LoopTimer, Timing
from tagmask.dryrun.weights import weights_from_outside, without_downloads
from tagmask.errors import RunError
from tagmask.evaluate import HELD_OUT, evaluate_run
from tagmask.pipeline import check_run_folder, check_stages, run_stages, write_run_record
from tagmask.recipe import Recipe
from tagmask.report.collect import collect_report
from tagmask.report.page import write_report

STEPS = {"cpu": 5, "other": 50}  # of each training: the first ones on a GPU only queue, their images loaded ahead
PIXELS = {"cpu": 1.5e6, "other": 12e6}  # of the images gone through; eight photographs of 500×375 have 1.5 million
BLOCK = 4096  # bytes; a file takes whole ones of a disk


@dataclass(frozen=True)
class DryRun:
    """What a run would take, from its beginning.

    Attributes:
        timings: its loops, in order.
        weights: for each stage that begins with weights from outside what they are, and whether they are here.
        disk: bytes by stage, and of the largest checkpoint, which is there while a training lasts.
        disk_free: bytes, where the run folder is to be, with those that it has already.
        memory: bytes at most seen of this process, of the largest of its workers, and of the GPU (None: none used).
    """

    timings: tuple[Timing, ...]
    weights: dict[str, dict[str, Any]]
    disk: dict[str, int]
    disk_free: int
    memory: dict[str, int | None]

    @property
    def seconds(self) -> float:
        return sum(timing.seconds for timing in self.timings)

    @property
    def disk_needed(self) -> int:
        return sum(self.disk.values())

    def check(self, out: Path) -> None:
        """Raises RunError if the run is certain to fail."""
        if self.disk_needed > self.disk_free:
            raise RunError(
                f"{out} would take {gigabytes(self.disk_needed)}, and {gigabytes(self.disk_free)} are free there: "
                "free some, or choose another --out."
            )

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "disk_needed": self.disk_needed, **asdict(self)}


def dry_run(
    images: str | Path | DataSource,
    out: str | Path,
    *,
    tags: str | Path | None = None,
    held_out: DataSource | None = None,
    recipe: str | Path | Recipe = "auto",
    settings: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    skip_bad: bool = False,
    redo: bool = False,
    quiet: bool = False,
) -> DryRun:
    """Find out what `tagmask.run` with these arguments would take, without making `out` or downloading anything.

    All images are checked, a few go through every stage at the recipe's own batch and crop sizes, and each training
    takes a few of its steps. Weights from timm's hub are replaced by random ones, which cost as much.

    Raises:
        DataError, RecipeError, RunError: the run would fail; with one sentence that says what to do.
    """
    source = images if isinstance(images, DataSource) else DataSource(root=str(images), tags=tags and str(tags))
    compute = Compute.detect(device, precision, workers)
    if compute.world_size > 1:
        raise RunError("a dry run measures one process: start it without torchrun or srun.")
    chosen = resolve_recipe(recipe, settings, seed, compute)
    weights = weights_from_outside(chosen)
    check_run_folder(Path(out))
    with tempfile.TemporaryDirectory(prefix="tagmask-") as temporary:
        folder = Path(temporary)
        clock = LoopTimer(None if quiet else Console(stderr=True), folder)
        with clock.part("the data"):
            read = read_data(Run(folder, chosen, source, held_out, compute), skip_bad, clock)
            write_run_record(folder, chosen, read[0], {})
            check_stages(chosen, read[0], Path(out), redo)
        pixels = PIXELS.get(compute.device.type, PIXELS["other"])
        few = ImageSubset.of(read[0], pixels)
        few_held_out = ImageSubset.of(read[1], pixels) if read[1] else None
        disk = _carry_out(without_downloads(chosen), few, few_held_out, compute, clock)
        disk["a checkpoint"] = clock.checkpoint
        memory = _memory(compute)
    return DryRun(tuple(clock.timings), weights, disk, _free(Path(out)), memory)


def _carry_out(
    recipe: Recipe, images: ImageSubset, held_out: ImageSubset | None, compute: Compute, clock: LoopTimer
) -> dict[str, int]:
    """Do what a run does, timed; returns the bytes that it would write, by stage."""
    folder = clock.folder
    steps = STEPS.get(compute.device.type, STEPS["other"])
    disk = {}
    for number, name in enumerate(recipe.stages, 1):
        so_far = recipe.model_copy(update={"stages": dict(list(recipe.stages.items())[:number])})
        with clock.part(name, images), _memory_suffices(name, compute):
            run_stages(so_far, images, folder, compute=compute, reporter=clock, max_steps=steps)
        disk[name] = _size_for_all(folder / name, images)
    with clock.part("the report", images):
        evaluation = evaluate_run(recipe, folder, images, None, compute, clock)
        write_report(collect_report(recipe, folder, images, None, evaluation), folder / REPORT)
    if held_out:
        with clock.part(HELD_OUT, held_out), _memory_suffices(HELD_OUT, compute):
            evaluate_run(recipe, folder, images.select(lambda sample: False), held_out, compute, clock)
        disk[HELD_OUT] = _size_for_all(folder / HELD_OUT, held_out)
    return disk | {"the report": (folder / REPORT).stat().st_size}


@contextmanager
def _memory_suffices(stage: str, compute: Compute) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has a class of its own for a GPU's memory alone
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunError(
            f"stage {stage!r} does not fit into the memory of {compute.device}: lower its batch_size or crop "
            f"(e.g. --set {stage}.batch_size=...), or use a larger machine."
        ) from error


def _memory(compute: Compute) -> dict[str, int | None]:
    get_reusable_executor(reuse=True).shutdown()  # workers count once they have ended, and joblib's would stay
    unit = 1 if sys.platform == "darwin" else 1024
    process, worker = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    gpu = torch.cuda.max_memory_reserved(compute.device) if compute.device.type == "cuda" else None
    return {"process": process, "worker": worker, "gpu": gpu}


def _size_for_all(stage: Path, images: ImageSubset) -> int:
    """The bytes of a stage's folder, were it made of all images: one file an image in folders, the others beside."""
    factor = len(images) / len(images.samples) * images.pixels
    total = 0.0
    for file in stage.rglob("*"):
        if file.is_file():
            blocks = -(-file.stat().st_size // BLOCK) * BLOCK
            total += blocks if file.parent == stage else blocks * factor
    return round(total)


def _free(out: Path) -> int:
    """The bytes that a run folder may come to hold: those free there, and those that it has already."""
    out = out.absolute()
    nearest = next(path for path in (out, *out.parents) if path.exists())
    return shutil.disk_usage(nearest).free + sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
