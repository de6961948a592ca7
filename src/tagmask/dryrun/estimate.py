"""Estimate what a run takes, by carrying out its recipe on a few images in a temporary folder."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from tagmask.api import resolve_recipe
from tagmask.compute import Compute, Precision
from tagmask.data.source import DataSource
from tagmask.dryrun.costs import DryRun
from tagmask.dryrun.subset import ImageSubset, choose_subset
from tagmask.dryrun.timing import LoopTimer
from tagmask.dryrun.weights import find_external_weights
from tagmask.errors import RunError
from tagmask.evaluate import evaluate_run, held_out_folder
from tagmask.expected_times import save_expected_times
from tagmask.pipeline import check_stages, expected_times_key, run_stages, write_run_record
from tagmask.progress import make_reporter, stop_workers
from tagmask.recipe import Recipe
from tagmask.report.update import update_report
from tagmask.run_data import read_run_data
from tagmask.run_folder import RunFolder, RunSources

MAX_STEPS = {"cpu": 5, "gpu": 50}  # per training; a GPU only queues the first ones, for which images are loaded ahead
NUM_PIXELS = {"cpu": 1.5e6, "gpu": 12e6}  # of all images of the subset; eight images of 500×375 have 1.5 million
DISK_BLOCK = 4096  # bytes; a file occupies whole blocks

# Parts of a run that are not stages; with a space, they differ from the name of any stage
DATA, REPORT, HELD_OUT, CHECKPOINT = "the data", "the report", "held-out images", "largest checkpoint"


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
    """Check a run before it starts, and estimate its time, disk space and memory.

    All images are verified. Then a few of them go through every stage in a temporary folder, with the batch and crop
    sizes of the recipe, and each training takes a few steps. Nothing is downloaded: random weights, which cost as
    much, replace those of timm's hub. `out` is not written. The estimated times are kept in the user's cache folder,
    so that the run can tell the time that is left of it.

    Args:
        images: see `run`, as all other arguments.
        out: the run folder that the run would write.
        tags: a table `image,tags`.
        held_out: images with ground truth, on which the run would measure the final network.
        recipe: the name of a shipped recipe, a YAML file or a `Recipe`.
        settings: changes of single settings, "stage.setting=value".
        seed: replaces the recipe's seed.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "float32" or "bfloat16".
        workers: processes that load images and run CRFs; None: one per core.
        skip_bad: leave out images that cannot be read, instead of stopping.
        redo: the run would run the stages again whose settings or inputs have changed.
        quiet: print nothing.

    Raises:
        DataError: the images, tags or masks cannot be used.
        RecipeError: the recipe or a setting is not valid.
        RunError: `out` holds something else or a run with other settings, a stage does not fit into memory, or there
            are several processes.

    Example:
        >>> estimate = tagmask.dry_run(
        ...     "photos", "run2", tags="tags.csv", recipe="scratch", settings=TOY_SETTINGS, quiet=True
        ... )
        >>> estimate.seconds > 0
        True
    """
    source = images if isinstance(images, DataSource) else DataSource(root=str(images), tags=tags and str(tags))
    compute = Compute.detect(device, precision, workers)
    if compute.world_size > 1:
        raise RunError("a dry run measures one process: start it without torchrun or srun.")
    chosen = resolve_recipe(recipe, settings, seed, compute)
    weights = find_external_weights(chosen)
    RunFolder(Path(out)).check_usable()
    with tempfile.TemporaryDirectory(prefix="tagmask-") as temporary:
        folder = RunFolder(Path(temporary))
        timer = LoopTimer(make_reporter(quiet).console, folder.path)
        with timer.time_stage(DATA):
            data = read_run_data(
                source, held_out, skip_bad=skip_bad, workers=compute.workers, reporter=timer,
                reviews=RunFolder(Path(out)).review.read_reviews(copy=False),
            )  # fmt: skip
            check_stages(chosen, data[0], RunFolder(Path(out)), redo=redo)
            write_run_record(folder, chosen, data[0], RunSources(images=source, held_out=held_out))
        num_pixels = NUM_PIXELS["cpu" if compute.device.type == "cpu" else "gpu"]
        subset = choose_subset(data[0], num_pixels)
        held_out_subset = choose_subset(data[1], num_pixels) if data[1] is not None else None
        disk = _run_timed(_for_dry_run(chosen), folder, subset, held_out_subset, compute, timer)
        disk[CHECKPOINT] = timer.largest_checkpoint
        memory = peak_memory(compute)
    result = DryRun(tuple(timer.timings), weights, disk, available_disk_space(Path(out)), memory)
    save_expected_times(expected_times_key(chosen, *data, compute), result.seconds_by_stage(leave_out=(DATA,)))
    return result


def _for_dry_run(recipe: Recipe) -> Recipe:
    """Return the recipe with random weights instead of downloads, and almost no learning."""
    return recipe.model_copy(update={"stages": {name: method.for_dry_run() for name, method in recipe.stages.items()}})


def _run_timed(
    recipe: Recipe,
    folder: RunFolder,
    subset: ImageSubset,
    held_out: ImageSubset | None,
    compute: Compute,
    timer: LoopTimer,
) -> dict[str, int]:
    """Run all stages and write the report, as a run does.

    Returns:
        The bytes that the whole run would write, by stage.
    """
    max_steps = MAX_STEPS["cpu" if compute.device.type == "cpu" else "gpu"]
    disk = {}
    for number, name in enumerate(recipe.stages, 1):
        stages_so_far = recipe.model_copy(update={"stages": dict(list(recipe.stages.items())[:number])})
        with timer.time_stage(name, subset):
            run_stages(
                stages_so_far, subset.images, folder, compute=compute, reporter=timer,
                max_steps=max_steps, epoch_size=subset.num_images,
            )  # fmt: skip
        disk[name] = estimate_folder_size(folder.stage(name).path, subset)
    with timer.time_stage(REPORT, subset):
        update_report(recipe, folder, subset.images, None, compute, timer)
    disk[REPORT] = folder.report_path.stat().st_size
    if held_out and recipe.latest("segmenter"):
        no_training_images = subset.images.select(lambda sample: False)
        with timer.time_stage(HELD_OUT, held_out):
            evaluate_run(recipe, folder, no_training_images, held_out.images, compute, timer)
        disk[HELD_OUT] = estimate_folder_size(held_out_folder(folder, held_out.images).path, held_out)
    return disk


def peak_memory(compute: Compute) -> dict[str, int | None]:
    """Return the largest memory use so far, see `DryRun.memory`, and stop the worker processes of joblib."""
    stop_workers()  # getrusage counts only workers that have ended
    unit = 1 if sys.platform == "darwin" else 1024
    process, worker = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    gpu = torch.cuda.max_memory_reserved(compute.device) if compute.device.type == "cuda" else None
    return {"process": process, "worker": worker, "gpu": gpu}


def estimate_folder_size(folder: Path, subset: ImageSubset) -> int:
    """Return the bytes that a stage's folder would occupy with the full set of images.

    Files in subfolders are one per image, and files in the folder itself do not depend on the number of images.
    """
    factor = subset.image_factor * subset.pixel_factor
    total = 0.0
    for file in folder.rglob("*"):
        if file.is_file():
            size = -(-file.stat().st_size // DISK_BLOCK) * DISK_BLOCK
            total += size if file.parent == folder else size * factor
    return round(total)


def available_disk_space(out: Path) -> int:
    """Return the bytes that a run folder can take: those that are free there, and those that it takes already."""
    out = out.absolute()
    existing = next(path for path in (out, *out.parents) if path.exists())
    return shutil.disk_usage(existing).free + sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
