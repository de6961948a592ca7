"""Whether the files of a finished stage are all there and can be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tagmask.artifacts import read_arrays, read_json, write_json
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.progress import Progress
from tagmask.run_folder import RunFolder, StageFolder


def discard_damaged_files(
    stage: StageFolder, makes: Iterable[str], image_ids: Sequence[str], progress: Progress
) -> list[Path]:
    """Remove the files of a stage that cannot be read, so that the stage makes them again.

    If the stage had finished and files are missing now, its record becomes "running". Files are only opened if the
    paths, sizes and mtimes of a finished stage have changed since `remember_files`, or if it has not finished.

    Args:
        stage: the stage; nothing happens if it has not begun.
        makes: the kinds of artifacts that it makes.
        image_ids: the images of the run.
        progress: reports each file.

    Returns:
        The files that were missing or damaged, if the stage had finished; else those that were damaged.
    """
    if stage.read_record_if_any() is None:
        return []
    files = _artifact_files(stage, makes, image_ids)
    remembered = _read_remembered(RunFolder(stage.path.parent))
    if stage.is_done and remembered.get(stage.name, {}).get("stamp") == _stamp(files):
        return []
    damaged = []
    with progress(f"checking the files of {stage.name}", len(files)) as advance:
        for path, read in files.items():
            if path.exists() and not _is_readable(path, read):
                path.unlink()
                damaged.append(path)
            advance(1)
    if stage.is_done:
        damaged = [path for path in files if not path.exists()]
        if damaged:
            stage.reopen()
    return damaged


def remember_files(folder: RunFolder, makes: dict[str, Sequence[str]], image_ids: Sequence[str]) -> None:
    """Remember the sizes and mtimes of the files of all stages, which have finished, in a cache in the run folder.

    Args:
        folder: the run folder.
        makes: the kinds of artifacts that each stage makes.
        image_ids: the images of the run.
    """
    remembered = {
        name: {"makes": list(kinds), "stamp": _stamp(_artifact_files(folder.stage(name), kinds, image_ids))}
        for name, kinds in makes.items()
    }
    with suppress(RunError):  # the only loss is that the files are checked again
        write_json(folder.file_cache_path, remembered)


def files_are_as_remembered(folder: RunFolder, stages: Iterable[str], image_ids: Sequence[str]) -> bool:
    """Whether no file of these stages has changed since `remember_files`; no file of theirs is opened."""
    remembered = _read_remembered(folder)
    try:
        return all(
            remembered[name]["stamp"]
            == _stamp(_artifact_files(folder.stage(name), remembered[name]["makes"], image_ids))
            for name in stages
        )
    except (KeyError, TypeError):
        return False


def _artifact_files(
    stage: StageFolder, makes: Iterable[str], image_ids: Sequence[str]
) -> dict[Path, Callable[[Path], Any]]:
    """Return the files that a finished stage must have, and what else lies beside its record, with readers."""
    files: dict[Path, Callable[[Path], Any]] = {}
    for kind in makes:
        if kind == "maps":
            files |= {stage.maps_path(image_id): ResponseMaps.load for image_id in image_ids}
        elif kind == "masks":
            files |= {stage.mask_path(image_id): read_label_map for image_id in image_ids}
        else:
            files |= {stage.path / f"{kind}.safetensors": read_arrays, stage.path / "config.json": read_json}
    files |= dict.fromkeys(sorted(stage.path.glob("*.safetensors")), read_arrays)
    files |= {file: read_json for file in sorted(stage.path.glob("*.json")) if file != stage.record_path}
    return files


def _stamp(files: Iterable[Path]) -> str:
    """Return a digest of the names, sizes and mtimes of files; a missing file counts, too."""
    hashed = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = os.stat(file)
            hashed.update(f"{file.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        except FileNotFoundError:
            hashed.update(b"-\n")
    return hashed.hexdigest()


def _is_readable(path: Path, read: Callable[[Path], Any]) -> bool:
    try:
        read(path)
        return True
    except (RunError, ValueError, KeyError):
        return False


def _read_remembered(folder: RunFolder) -> dict[str, Any]:
    with suppress(RunError):
        remembered = read_json(folder.file_cache_path)
        if isinstance(remembered, dict):
            return remembered
    return {}
