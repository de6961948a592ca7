"""The work of a stage on single images: into single files, or shard by shard, here or on other machines.

A shard is the unit of work and of recovery: its files are made in a temporary folder, from the shards of the inputs
that have the same images, and it exists when it is complete. So any process can make it, and make it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import NamedTuple

from tagmask.compute import Compute
from tagmask.data.samples import Sample
from tagmask.errors import RunError, RunPaused, WorkerKilledError, message_of
from tagmask.label_map import write_label_map
from tagmask.progress import Reporter
from tagmask.stage import ArtifactKind, MakeFiles, PrepareFiles, StageContext
from tagmask.stage_folder import StageFolder
from tagmask.stage_shards import FILE_NAMES, FileKind, StageShard, pack_files, shard_key, stage_shards, unpack_files
from tagmask.text import pluralize


class ShardOfImages(NamedTuple):
    """A shard to make, and its images. It is sent to the process that makes it."""

    shard: StageShard
    samples: Sequence[Sample]


def make_files(context: StageContext, kind: FileKind, prepare: PrepareFiles, uses: Sequence[FileKind] = ()) -> None:
    """Do the work of `StageContext.make_files`."""
    if context.execution.storage == "files":
        if context.execution.needs_shards:
            raise RunError(
                f"stage {context.folder.name!r} has begun with single files, which are not divided: finish it without "
                "--engine ray, --shard and --prepare, or remove its folder."
            )
        prepare(context)(context)
        context.compute.barrier()
        return
    context.compute.barrier()  # every process sees the same shards
    shards = stage_shards(kind, len(context.images))
    missing = [shard for shard in shards if not shard.path(context.folder.path).exists()]
    context.compute.barrier()
    if not missing:
        return
    execution, name = context.execution, context.folder.name
    if execution.prepare:
        raise RunPaused(
            f"stage {name!r} is ready to make {pluralize(len(missing), 'shard')} of {FILE_NAMES[kind]}. Run the same "
            "command with --shard i/n in place of --prepare, for each i from 1 to n."
        )
    tasks = [ShardOfImages(shard, shard.part_of(context.images.samples)) for shard in missing]
    if execution.part:
        number, count = execution.part
        tasks = [task for task in tasks if task.shard.number % count == number - 1]
    if context.compute.engine == "ray":
        _make_on_ray(context, kind, prepare, uses, tasks)
    elif own := context.compute.shard(tasks):
        work = prepare(context)
        for task in own:
            title = f", shard {task.shard.number + 1}/{len(shards)}" if len(shards) > 1 else ""
            make_shard(context, work, uses, task, context.reporter.with_suffix(title))
    context.compute.barrier()
    if execution.part:
        number, count = execution.part
        raise RunPaused(
            f"part {number}/{count} of the {FILE_NAMES[kind]} of stage {name!r} is made. When all parts are made, run "
            "the same command with --prepare in place of --shard."
        )


def make_shard(
    context: StageContext,
    work: MakeFiles,
    uses: Sequence[FileKind],
    task: ShardOfImages,
    reporter: Reporter,
) -> None:
    """Make one shard of files, unless it exists.

    Args:
        context: of the stage.
        work: writes the files.
        uses: other kinds of files of the stage that it reads.
        task: the shard.
        reporter: reports the progress.

    Raises:
        RunError: another command has begun the stage again with other settings.
    """
    shard, stage = task.shard, context.folder
    if shard.path(stage.path).exists():
        return
    with _temporary_folder() as temporary:
        folder = StageFolder(Path(temporary) / stage.name)
        folder.path.mkdir()
        for kind in uses:
            unpack_files(shard._replace(kind=kind), stage.path, folder.path / kind)
        part = replace(
            context,
            folder=folder,
            images=replace(context.images, samples=tuple(task.samples)),
            inputs={
                kind: _unpacked_input(kind, source, shard, Path(temporary) / "inputs" / kind / source.name)
                for kind, source in context.inputs.items()
            },
            compute=replace(context.compute, rank=0, world_size=1),
            reporter=reporter,
        )
        if shard.kind == "masks":
            write_missing_reviewed_masks(part)
        work(part)
        paths = {sample.id: folder.file_path(shard.kind, sample.id) for sample in task.samples}
        key = stage.read_key_if_any()
        if key != context.key:  # the files were made with the old settings
            raise RunError(
                f"stage {stage.name!r} has begun again with other settings or images while this command worked on it: "
                "run this command again with these settings."
            )
        try:
            pack_files(paths, shard, stage.path, context.images.classes, shard_key(key, shard))
        except RunError:
            if not shard.path(stage.path).exists():  # another process has not made it in the meantime
                raise


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Yield a temporary folder. Raises RunError, which names TMPDIR, if it or a file in it cannot be written."""
    try:
        temporary = TemporaryDirectory(prefix="tagmask-")
    except OSError as error:
        raise RunError(f"cannot write {gettempdir()}: {error.strerror}; set TMPDIR to another folder.") from error
    with temporary as folder:
        try:
            yield folder
        except RunError as error:
            message, found, _ = message_of(error).partition("; free space or choose another folder")
            if not (found and message.startswith(f"cannot write {folder}")):
                raise
            raise RunError(f"{message}; free space there, or set TMPDIR to another folder.") from error


def _unpacked_input(kind: ArtifactKind, source: StageFolder, shard: StageShard, target: Path) -> StageFolder:
    """Return a folder with the files of an input that belong to the images of a shard."""
    if kind != "maps" and kind != "masks":
        return source
    of_input = shard._replace(kind=kind)
    if not of_input.path(source.path).exists():  # the input has single files
        return source
    unpack_files(of_input, source.path, target / kind)
    return StageFolder(target)


def write_missing_reviewed_masks(context: StageContext) -> None:
    """Write the reviewed masks to a stage that makes masks. The method makes only those that do not exist."""
    reviewed = [sample for sample in context.images.samples if sample.reviewed_mask]
    for sample in context.compute.shard(reviewed):
        path = context.folder.mask_path(sample.id)
        if sample.reviewed_mask and not path.exists():
            write_label_map(path, sample.reviewed_mask.read())
    context.compute.barrier()


def _make_on_ray(
    context: StageContext, kind: FileKind, prepare: PrepareFiles, uses: Sequence[FileKind], tasks: list[ShardOfImages]
) -> None:
    """Let the actors of a Ray cluster make shards."""
    from tagmask.engines import ray

    start = partial(
        _start_actor, replace(context, images=replace(context.images, samples=()), reporter=Reporter()), prepare, uses
    )
    with context.reporter.progress(FILE_NAMES[kind], len(tasks), "shards") as advance:
        for _ in ray.run_tasks(start, tasks, _killed, num_actors=context.compute.actors):
            advance(1)


def _killed(task: ShardOfImages) -> None:
    """Raise an error for a shard on which each actor was killed."""
    raise WorkerKilledError


def _start_actor(
    context: StageContext, prepare: PrepareFiles, uses: Sequence[FileKind], workers: int
) -> Callable[[ShardOfImages], None]:
    """Return the function that makes a shard in an actor."""
    device, precision = context.compute.device.type, context.compute.precision
    compute = Compute.detect("cpu" if device == "cpu" else "auto", precision, workers)
    own = replace(context, compute=compute)
    work = prepare(own)
    return lambda task: make_shard(own, work, uses, task, own.reporter)
