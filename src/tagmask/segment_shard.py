"""One shard of images in, one shard of masks out: the unit of work and of recovery."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tagmask.artifacts import digest
from tagmask.base_predictor import BasePredictor
from tagmask.data.samples import TaggedImages
from tagmask.data.shard_format import ShardIndex
from tagmask.data.shard_reader import read_shard, shard_samples
from tagmask.data.shard_writer import write_shard
from tagmask.data.storage import copy_to_local, find_file
from tagmask.data.verify import verify_images
from tagmask.errors import DataError, RunError, StorageError, WorkerKilledError, message_of
from tagmask.label_map import present_classes, read_label_map
from tagmask.progress import Reporter
from tagmask.stage_folder import StageFolder

ATTEMPTS = 3  # at a shard, if storage fails or the process that works on it is killed
RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class ShardTask:
    """A shard to segment.

    Attributes:
        in_url: the path or URL of the shard of images.
        out_url: that of the shard of masks.
    """

    in_url: str
    out_url: str


@dataclass(frozen=True)
class ShardSettings:
    """How shards are segmented.

    Attributes:
        skip_bad: leave out images that cannot be read.
        redo: replace masks of another network or of other images.
    """

    skip_bad: bool = False
    redo: bool = False


@dataclass(frozen=True)
class ShardOutcome:
    """What has become of a shard.

    Attributes:
        task: the shard.
        num_images: the number of its masks.
        kept: whether its masks existed before.
        left_out: what was wrong with images that were left out.
        error: why there are no masks; None if there are.
    """

    task: ShardTask
    num_images: int = 0
    kept: bool = False
    left_out: tuple[str, ...] = ()
    error: str | None = None


def segment_shard(
    network: BasePredictor, in_url: str, out_url: str, settings: ShardSettings
) -> tuple[ShardIndex, bool]:
    """Segment the images of one shard, without their tags, and write a shard of masks.

    The result depends on the arguments only, so any process can do it, and do it again. The masks exist when they are
    complete; if they exist already, nothing is done.

    Args:
        network: the network.
        in_url: the path or URL of the shard of images.
        out_url: that of the shard of masks.
        settings: what happens to bad images, and to masks of another network.

    Returns:
        The index of the masks, and whether they existed before.

    Raises:
        DataError: the shard or one of its images cannot be used.
        StorageError: object storage cannot be reached.
        RunError: `out_url` holds masks of another network or of other images.
    """
    in_file = find_file(in_url)
    if in_file is None:
        raise DataError(f"{in_url} does not exist any more; run the command again that made it.")
    source = read_shard(in_file)
    key = digest([network.network_key, source.key, network.classes])
    existing = find_file(out_url)
    if existing is not None and (done := _read_existing(existing.url, key, settings)) is not None:
        return done, True
    with TemporaryDirectory(prefix="tagmask-") as folder:
        local = copy_to_local(in_url, Path(folder))
        try:
            index = _segment(network, local, source, key, StageFolder(Path(folder)), out_url, settings)
        except DataError as error:
            raise type(error)(message_of(error).replace(local, in_url)) from error
    return index, False


def segment_with_retries(network: BasePredictor, task: ShardTask, settings: ShardSettings) -> ShardOutcome:
    """Segment a shard; a shard that cannot be used becomes an outcome with an error.

    It begins again if storage fails or a worker process is killed.

    Raises:
        RunError: see `segment_shard`; or the memory or the disk is full, which other shards would find, too.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            index, kept = segment_shard(network, task.in_url, task.out_url, settings)
            return ShardOutcome(task, len(index.ids), kept, index.left_out)
        except StorageError as error:
            if attempt == ATTEMPTS:
                return ShardOutcome(task, error=f"{message_of(error)} ({ATTEMPTS} attempts)")
            time.sleep(RETRY_SECONDS * attempt)
        except DataError as error:
            return ShardOutcome(task, error=message_of(error))
        except (WorkerKilledError, RuntimeError) as error:
            is_killed = isinstance(error, WorkerKilledError) or str(error).startswith("DataLoader worker")
            if not is_killed:
                raise
            if attempt == ATTEMPTS:
                raise WorkerKilledError from error
    raise AssertionError("the last attempt returns or raises")


def _read_existing(url: str, key: str, settings: ShardSettings) -> ShardIndex | None:
    """Return the index of masks that exist; None if they are to be made again."""
    try:
        file = find_file(url)
        index = None if file is None else read_shard(file, "masks")
    except StorageError:
        raise
    except DataError:
        if not settings.redo:
            raise
        return None
    if index is None or index.key == key:
        return index
    if not settings.redo:
        raise RunError(
            f"{url} holds masks of another network or of other images; choose another --out, or add --redo to replace "
            "it."
        )
    return None


def _segment(
    network: BasePredictor,
    path: str,
    source: ShardIndex,
    key: str,
    folder: StageFolder,
    out_url: str,
    settings: ShardSettings,
) -> ShardIndex:
    """Segment the images of a local shard with files in a temporary folder, and write the shard of masks."""
    samples = tuple(replace(sample, tags=None, mask=None) for sample in shard_samples(path, source))
    images = TaggedImages(network.classes, samples, name=Path(path).name)
    if samples:
        images = verify_images(
            images, skip_bad=settings.skip_bad, workers=network.processes.workers, progress=Reporter().progress
        )
        network.write_missing_masks(folder, images, Reporter())
    rows = [_read_row(folder, sample.id, network.classes) for sample in images.samples]
    index = ShardIndex(
        kind="masks", key=key, classes=network.classes, split=source.split,
        ids=tuple(row["id"] for row in rows), suffixes=("",) * len(rows), has_mask="1" * len(rows),
        tags=tuple(tuple(network.classes.index(name) + 1 for name in row["classes"]) for row in rows),
        left_out=tuple(str(problem).replace(path, Path(path).name) for problem in images.problems),
    )  # fmt: skip
    write_shard(out_url, "masks", network.classes, rows, lambda: index)
    return index


def _read_row(folder: StageFolder, image_id: str, classes: Sequence[str]) -> Mapping[str, Any]:
    """Return the mask of an image as a row of a shard."""
    path = folder.mask_path(image_id)
    names = [classes[class_id - 1] for class_id in present_classes(read_label_map(path))]
    return {"id": image_id, "mask": {"bytes": path.read_bytes(), "path": f"{image_id}.png"}, "classes": names}
