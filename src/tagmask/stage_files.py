"""Whether the files of a finished stage are all there and can be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from tagmask.artifacts import read_arrays, read_json, read_model, write_json
from tagmask.data.images import read_number_image
from tagmask.data.samples import TaggedImages
from tagmask.data.shard_format import require_pyarrow
from tagmask.errors import DataError, RunError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.progress import Progress
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import HistoryEntry, StageFolder, ThresholdRecord
from tagmask.stage_shards import FileKind, StageShard, check_shard, shard_key, stage_shards

_OTHER_KINDS: tuple[FileKind, ...] = ("seeds", "saliency", "instances")  # which methods make on the way


def discard_damaged_files(
    stage: StageFolder, makes: Iterable[str], images: TaggedImages, progress: Progress
) -> list[Path]:
    """Remove the files of a stage that cannot be read, so that the stage makes them again.

    If the stage had finished and files are missing now, its record becomes "running". Files are only opened if the
    paths, sizes and mtimes of a finished stage have changed since `remember_files`, or if it has not finished.

    Args:
        stage: the stage; nothing happens if it has not begun.
        makes: the kinds of artifacts that it makes.
        images: the images of the run, verified.
        progress: reports each file.

    Returns:
        The files that were missing or damaged, if the stage had finished; else those that were damaged.

    Raises:
        DataError: the stage has shards, and pyarrow is not installed.
    """
    record = stage.read_record_if_any()
    if record is None:
        return []
    is_done = record.status == "done"
    if record.storage == "shards":
        require_pyarrow()  # or no shard could be read, and all would count as damaged
    files = _artifact_files(stage, makes, images)
    remembered = _read_remembered(RunFolder(stage.path.parent))
    if is_done and remembered.get(stage.name, {}).get("stamp") == _stamp(files):
        return []
    damaged = []
    with progress(f"checking the files of {_title(stage)}", len(files)) as advance:
        for path, read in files.items():
            if path.exists() and not _is_readable(path, read):
                path.unlink()
                damaged.append(path)
            advance(1)
    if is_done:
        damaged = [path for path in files if not path.exists()]
        if damaged:
            stage.reopen()
    return damaged


def _title(stage: StageFolder) -> str:
    """Return the name of a stage; the folders of held-out masks are named after a digest of their images."""
    run = RunFolder(stage.path.parent.parent)
    return "the held-out images" if stage.path.parent == run.held_out_path else stage.name


def remember_files(folder: RunFolder, makes: dict[str, Sequence[str]], images: TaggedImages) -> None:
    """Remember the sizes and mtimes of the files of stages that have finished, in a cache in the run folder.

    Args:
        folder: the run folder.
        makes: the kinds of artifacts that each of these stages makes. What is remembered of others stays.
        images: the images of the run, verified.
    """
    remembered = _read_remembered(folder) | {
        name: {"makes": list(kinds), "stamp": _stamp(_artifact_files(folder.stage(name), kinds, images))}
        for name, kinds in makes.items()
    }
    with suppress(RunError):  # the only loss is that the files are checked again
        write_json(folder.file_cache_path, remembered)


def files_are_as_remembered(folder: RunFolder, stages: Iterable[str], images: TaggedImages) -> bool:
    """Whether no file of these stages has changed since `remember_files`; no file of theirs is opened."""
    remembered = _read_remembered(folder)
    try:
        return all(
            remembered[name]["stamp"] == _stamp(_artifact_files(folder.stage(name), remembered[name]["makes"], images))
            for name in stages
        )
    except (KeyError, TypeError):
        return False


def _artifact_files(
    stage: StageFolder, makes: Iterable[str], images: TaggedImages
) -> dict[Path, Callable[[Path], Any]]:
    """Return the files that a finished stage must have, and what else lies beside its record, with readers."""
    files: dict[Path, Callable[[Path], Any]] = {}
    num_classes, storage = len(images.classes), stage.read_storage()
    shards: list[StageShard] = []
    for kind in makes:
        if kind in ("maps", "masks") and storage == "shards":
            shards += stage_shards(cast(FileKind, kind), len(images))
        elif kind == "maps":
            for sample in images.samples:
                read = partial(ResponseMaps.load, size=sample.size, num_classes=num_classes)
                files[stage.maps_path(sample.id)] = read
        elif kind == "masks":
            for sample in images.samples:
                files[stage.mask_path(sample.id)] = partial(read_label_map, size=sample.size, num_classes=num_classes)
        else:
            files |= {stage.path / f"{kind}.safetensors": _read_network, stage.path / "config.json": read_json}
    files |= dict.fromkeys(sorted(stage.path.glob("*.safetensors")), _read_network)
    files |= {file: read_json for file in sorted(stage.path.glob("*.json")) if file != stage.record_path}
    for path, model in ((stage.threshold_path, ThresholdRecord), (stage.history_path, list[HistoryEntry])):
        if path in files:
            files[path] = partial(read_model, model=model)
    for other in _OTHER_KINDS if storage == "shards" else ():
        shards += [shard for shard in stage_shards(other, len(images)) if shard.path(stage.path).exists()]
    key = stage.read_key_if_any() if shards else None
    for shard in shards:
        ids = [sample.id for sample in shard.part_of(images.samples)]
        files[shard.path(stage.path)] = partial(_check_shard, shard, stage.path, ids, shard_key(key, shard))
    for folder in ("seeds", "saliency"):  # what methods make on the way
        files |= dict.fromkeys(sorted((stage.path / folder).rglob("*.png")), read_label_map)
    return files | dict.fromkeys(sorted((stage.path / "regions").rglob("*.png")), read_number_image)


def _check_shard(shard: StageShard, stage: Path, ids: list[str], key: str, path: Path) -> None:
    check_shard(shard, stage, ids, key)


def _read_network(path: Path) -> None:
    """Read a network of tagmask and build it; of another method's file, read the arrays."""
    from tagmask.models.boundary_network import BoundaryNetwork  # here, because they import PyTorch
    from tagmask.models.classifier import Classifier
    from tagmask.models.label_conditioned import LabelConditionedNetwork
    from tagmask.models.segmenter import Segmenter

    for network in (Classifier, Segmenter, LabelConditionedNetwork, BoundaryNetwork):
        if path.name == network.file_name:
            network.load(path.parent)
            return
    read_arrays(path)


def _stamp(files: Iterable[Path]) -> str:
    """Return a digest of the names, sizes and mtimes of files; a missing file counts, too."""
    hashed = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = os.stat(file)
            hashed.update(f"{file.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        except (OSError, ValueError):  # it does not exist, or no file can have this name
            hashed.update(b"-\n")
    return hashed.hexdigest()


def _is_readable(path: Path, read: Callable[[Path], Any]) -> bool:
    try:
        read(path)
        return True
    except (RunError, DataError):
        return False


def _read_remembered(folder: RunFolder) -> dict[str, Any]:
    with suppress(RunError):
        remembered = read_json(folder.file_cache_path)
        if isinstance(remembered, dict):
            return remembered
    return {}
