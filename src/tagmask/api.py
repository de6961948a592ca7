"""The Python API: `tagmask.run`, `tagmask.resume` and `tagmask.load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tagmask
from tagmask.artifacts import digest
from tagmask.compute import Compute, Engine, Precision
from tagmask.data.images import is_file
from tagmask.data.saliency import saliency_fingerprint
from tagmask.data.samples import TaggedImages
from tagmask.data.shard_reader import ShardedMasks
from tagmask.data.source import DataSource, align_classes
from tagmask.data.tag_warnings import tag_warnings
from tagmask.data.verify import ground_truth_fingerprint, verify_images
from tagmask.errors import DataError, RecipeError, RunError, RunPaused, TagmaskError
from tagmask.evaluate import read_mask_in_folder, score_label_maps, score_masks, segment_held_out
from tagmask.execution import Execution
from tagmask.expected_times import load_expected_times
from tagmask.folder_lock import lock_folder, refuse_if_locked
from tagmask.measure import SegmentationReport
from tagmask.pipeline import (
    check_processes,
    expected_times_key,
    fingerprint,
    run_stages,
    with_added_stages,
    write_run_record,
)
from tagmask.progress import Reporter, make_reporter
from tagmask.recipe import Recipe, load_recipe, read_recipe_text, read_stage_names
from tagmask.results import Run
from tagmask.reviews import count_reviewed_masks, reviewed_mask_paths, reviews_fingerprint
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage_files import files_are_as_remembered
from tagmask.text import join_first_names, pluralize

if TYPE_CHECKING:
    from tagmask.predict import Predictor


def run(
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
    execution: Execution | None = None,
    quiet: bool = False,
) -> Run:
    """Make masks and a segmentation network from tagged images.

    The same call again resumes the run; a finished run returns at once.

    Args:
        images: a folder (its layout is detected), or a `DataSource` with more settings.
        out: the run folder to make or to resume.
        tags: a table `image,tags` (CSV, TSV or JSON Lines).
        held_out: images with ground truth, on which the final network is measured.
        recipe: the name of a shipped recipe, a YAML file or a `Recipe`; "auto" is "cam" with a GPU, else "small".
        settings: changes of single settings, "stage.setting=value".
        seed: replaces the recipe's seed.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "float32" or "bfloat16".
        workers: processes that load images and run CRFs; None: one per core.
        skip_bad: leave out images that cannot be read.
        redo: run the stages again whose settings or inputs have changed.
        execution: how and where the work on single images is done; None: the defaults.
        quiet: print nothing.

    Raises:
        TagmaskError: one sentence about the data (`DataError`), the recipe (`RecipeError`) or the folder (`RunError`).
        RunPaused: `execution` says to stop before all stages are done.

    Example:
        >>> run = tagmask.run("photos", "run", tags="tags.csv", recipe="scratch", settings=TOY_SETTINGS, quiet=True)
        >>> sorted(path.name for path in run.masks_dir.glob("beach/*.png"))
        ['001.png', '002.png', '003.png']
    """
    source = images if isinstance(images, DataSource) else DataSource(root=str(images), tags=tags and str(tags))
    reporter = make_reporter(quiet)
    execution = execution or Execution()
    result = Run(
        out, source, held_out, device=device, precision=precision, workers=workers, engine=execution.engine,
        actors=execution.actors,
    )  # fmt: skip
    folder = RunFolder(result.folder)
    folder.check_usable()
    if execution.part is None:
        refuse_if_locked(folder.path)
    try:
        data = result.read_and_verify_images(reporter, skip_bad)
        finished = _request_key(_describe_request(recipe, settings, seed, device), *data)
        if _is_finished(folder, finished, data[0]):
            reporter.info(f"{result.folder} is already finished")
            return result
        recipe_of_run = partial(resolve_recipe, recipe, settings, seed, result.compute)
        if execution.part:  # beside others, so it writes nothing but the files of the stage
            chosen = with_added_stages(recipe_of_run(), data[0], folder)
            run_stages(chosen, data[0], folder, compute=result.compute, reporter=reporter, execution=execution)
            raise RunPaused(
                "There is nothing to do for a part of the images: all stages are done. Run the same command with "
                "--prepare in place of --shard."
            )
        with lock_folder(folder.path, result.compute):
            chosen = with_added_stages(recipe_of_run(), data[0], folder)
            check_processes(chosen, result.compute.world_size)
            if execution.engine == "ray" and result.compute.world_size > 1:
                raise RunError("Ray divides the work itself: start one process, not several with torchrun or srun.")
            result.compute.barrier()  # every process has read the stages that were added before
            if result.compute.is_main_process:
                folder.review.remove_unused_copies(reviewed_mask_paths(data[0]))
            sources = RunSources(images=source, held_out=held_out, skip_bad=skip_bad).with_absolute_paths()
            if result.compute.is_main_process:
                write_run_record(folder, chosen, data[0], sources, redo=redo)
            result.compute.barrier()
            _print_data_summary(data[0], folder.path, reporter)
            _run_and_report(chosen, folder, data, result.compute, reporter, redo, execution)
            if result.compute.is_main_process:
                folder.write_record(sources, data[0].classes, finished)
            result.compute.barrier()
    except TagmaskError:
        folder.discard_unused()
        raise
    return result


def resume(
    folder: str | Path,
    *,
    settings: Iterable[str] = (),
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    redo: bool = False,
    execution: Execution | None = None,
    quiet: bool = False,
) -> Run:
    """Resume a run: finish it if it was stopped, and learn from masks that people have reviewed since.

    The images and the recipe are those that its folder records.

    Args:
        folder: a folder that `run` made.
        settings: changes of single settings, "stage.setting=value".
        device, precision, workers, quiet: as in `run`.
        redo: run the stages again whose settings or inputs have changed.
        execution: as in `run`.

    Raises:
        TagmaskError: the folder is not a run (`RunError`), or as `run`.

    Example:
        >>> tagmask.resume("run", quiet=True)
        Run('run')
    """
    saved = RunFolder(Path(folder))
    sources = saved.read_record().sources
    if not saved.recipe_path.exists():
        raise RunError(
            f"{saved.path} has no {saved.recipe_path.name}: use `tagmask run` with the images and the recipe."
        )
    return run(
        sources.images, folder, held_out=sources.held_out, skip_bad=sources.skip_bad, recipe=saved.recipe_path,
        settings=settings, device=device, precision=precision, workers=workers, redo=redo, execution=execution,
        quiet=quiet,
    )  # fmt: skip


def load(
    folder: str | Path, *, device: str = "auto", precision: Precision = "auto", workers: int | None = None
) -> Run | Predictor:
    """Open a run folder, or a published network.

    Args:
        folder: a folder that `run` or `tagmask run` made; or a network that `tagmask export --format hub` wrote: its
            folder, or its address on Hugging Face Hub, "hf://owner/name" or "hf://owner/name@revision".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "float32" or "bfloat16".
        workers: processes that load images and run CRFs; None: one per core.

    Returns:
        A `Run`, or of a published network its `Predictor`. Both have `classes`, `predict` and `predict_files`.

    Raises:
        RunError: the folder is neither, another version of tagmask made it, or the network cannot be downloaded.

    Example:
        >>> tagmask.load("run")
        Run('run')
    """
    if not _is_published(folder):
        return load_run(folder, device=device, precision=precision, workers=workers)
    from tagmask.deploy.hub_source import load_published

    return load_published(str(folder), Compute.detect(device, precision, workers))


def load_run(
    folder: str | Path, *, device: str = "auto", precision: Precision = "auto", workers: int | None = None
) -> Run:
    """Open a run folder; see `load`."""
    sources = RunFolder(Path(folder)).read_record().sources
    return Run(folder, sources.images, sources.held_out, device=device, precision=precision, workers=workers)


def resolve_recipe(recipe: str | Path | Recipe, settings: Iterable[str], seed: int | None, compute: Compute) -> Recipe:
    """Return the recipe that the arguments of `run` describe."""
    if recipe == "auto":
        recipe = "small" if compute.device.type == "cpu" else "cam"
    if isinstance(recipe, Recipe):
        if list(settings):
            raise RecipeError("settings change a recipe that is given by name or file, but this one is a Recipe.")
        chosen = recipe
    else:
        chosen = load_recipe(str(recipe), settings)
    return chosen if seed is None else chosen.with_seed(seed)


def evaluate_predictions(
    run_or_masks: str | Path,
    data: DataSource,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine = "local",
    quiet: bool = False,
    boundary: bool = True,
    skip_bad: bool = False,
) -> tuple[tuple[str, ...], SegmentationReport]:
    """Measure a run's network or masks of any tool against the ground truth of `data`.

    Masks are a folder of label maps `<id>.png`, or a folder or URL of shards that `tagmask predict` wrote.

    The network does not get the tags of the images. Images without ground truth are left out. `boundary` says whether
    to measure the boundary F-score, which takes most of the time; otherwise it is NaN. `skip_bad` leaves out
    images that cannot be read.

    Returns:
        The class names, and the scores.

    Raises:
        DataError: there is no ground truth.
        RunError: the folder is neither a run nor holds masks of these images.
    """
    folder = RunFolder(Path(run_or_masks))
    opened = None
    if is_file(run_or_masks) and folder.record_path.exists():
        opened = load_run(folder.path, device=device, workers=workers)
    sharded = None if opened else ShardedMasks.open_if_any(str(run_or_masks))
    compute = opened.compute if opened else Compute.detect(device, workers=workers)
    compute = replace(compute, engine=engine, actors=workers)
    reporter = make_reporter(quiet)
    images = verify_images(
        data.read(), skip_bad=skip_bad, workers=compute.workers, progress=reporter.progress, processes=compute
    )
    if predicted := opened or sharded:
        if others := [name for name in images.classes if name not in predicted.classes]:
            reporter.info(f"classes that the network does not know, measured as background: {', '.join(others)}")
        images = align_classes(images, data, predicted.classes)
    labeled = images.select(lambda sample: sample.mask is not None)
    if not len(labeled):
        fix = f"name PNG files in {data.masks} like {images.samples[0].id}.png" if data.masks else "give --masks FOLDER"
        raise DataError(f"no image of {images.name} has a ground-truth mask: {fix}.")
    if opened:
        segmenter = opened.latest_stage("segmenter").name
        with lock_folder(folder.path, compute):
            stage = segment_held_out(folder, segmenter, labeled, compute, reporter)
        return labeled.classes, score_masks(labeled, stage, compute, reporter, boundary)
    read_mask = sharded.read if sharded else partial(read_mask_in_folder, folder.path)
    if not sharded and not any((folder.path / f"{sample.id}.png").exists() for sample in labeled.samples):
        raise RunError(f"{folder.path} is not a run, and holds no mask named after an image (<id>.png).")
    return labeled.classes, score_label_maps(labeled, read_mask, compute, reporter, boundary)


def _is_published(folder: str | Path) -> bool:
    """Whether this is the address or the folder of a published network, not a run folder."""
    if str(folder).startswith("hf://"):
        return True
    path = Path(folder)
    return (path / "config.json").exists() and not (path / "run.json").exists()


def _run_and_report(
    recipe: Recipe,
    folder: RunFolder,
    data: tuple[TaggedImages, TaggedImages | None],
    compute: Compute,
    reporter: Reporter,
    redo: bool,
    execution: Execution,
) -> None:
    from tagmask.report.update import update_report  # here, because it imports PyTorch

    expected = load_expected_times(expected_times_key(recipe, *data, compute))
    run_stages(
        recipe, data[0], folder, compute=compute, reporter=reporter, redo=redo, execution=execution,
        expected_seconds=expected,
    )  # fmt: skip
    update_report(recipe, folder, *data, compute, reporter)


def _print_data_summary(images: TaggedImages, out: Path, reporter: Reporter) -> None:
    """Print one line about the training images, and the warnings about their tags."""
    num_bad = sum(problem.severity == "error" for problem in images.problems)
    bad = f" ({num_bad} bad ones left out)" if num_bad else ""
    names = join_first_names(images.classes, 10)
    reviewed = f", {pluralize(count, 'reviewed mask')}" if (count := count_reviewed_masks(images)) else ""
    reporter.info(f"{len(images)} images{bad}, {len(images.classes)} classes ({names}){reviewed} → {out}")
    for warning in tag_warnings(images):
        reporter.info(f"warning: {warning}")


def _describe_request(
    recipe: str | Path | Recipe, settings: Iterable[str], seed: int | None, device: str
) -> Mapping[str, Any]:
    """Return what the arguments of `run` say about the results, without importing the methods of the recipe."""
    if isinstance(recipe, Recipe):
        text = recipe.to_yaml()
    else:
        text = "auto" if recipe == "auto" else read_recipe_text(str(recipe))
    return {"recipe": text, "settings": list(settings), "seed": seed, "device": device, "tagmask": tagmask.__version__}


def _request_key(request: Mapping[str, Any], images: TaggedImages, held_out: TaggedImages | None) -> str:
    """Return a digest of all inputs that a finished run and its report depend on."""
    sets = [images, *([held_out] if held_out is not None else [])]
    data = [(fingerprint(s), ground_truth_fingerprint(s), saliency_fingerprint(s), s.name) for s in sets]
    reviews = reviews_fingerprint(images)
    return digest([request, data] if reviews is None else [request, data, reviews])


def _is_finished(folder: RunFolder, request_key: str, images: TaggedImages) -> bool:
    """Whether the run folder holds the complete results of a request."""
    if not folder.record_path.exists() or folder.read_record().finished != request_key:
        return False
    files = (folder.recipe_path, folder.evaluation_path, folder.report_path)
    if not all(path.exists() for path in files):
        return False
    try:
        stages = read_stage_names(str(folder.recipe_path))
    except RecipeError:  # the file is damaged: it is written again
        return False
    return all(folder.stage(name).is_done for name in stages) and files_are_as_remembered(folder, stages, images)
