"""The folder of one stage: where its files are, and the records that it holds."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import tagmask
from tagmask.artifacts import RUN_AGAIN, read_bytes, read_model, remove_unfinished, write_json
from tagmask.data.shard_file import read_shard_row
from tagmask.errors import DataError, RunError, message_of
from tagmask.label_map import MAX_CLASSES, decode_label_map
from tagmask.maps import ResponseMaps
from tagmask.stage_shards import FILE_SUFFIXES, MAX_FILE_BYTES, FileKind, find_row

if TYPE_CHECKING:
    from tagmask.compute import Processes
    from tagmask.data.samples import Sample

MASKS_ENTRY, TAGS_ENTRY = "reviewed", "tags"
"""The entries of a key that say what people have reviewed. A stage in which only these change is made again."""

_TRAINED_FILES = ("*.safetensors", "config.json", "history.json", "weights-license.txt", "training")
"""What a training leaves in the folder of a stage."""

Storage = Literal["files", "shards"]


class StageRecord(BaseModel):
    """What `stage.json` holds.

    Attributes:
        status: "running" until every process has finished the stage.
        key: everything that the results depend on (settings, images, inputs); another key means other results.
        versions: of tagmask and of the libraries that computed the results.
        seconds: the time that the stage took, over all interruptions.
        num_images: the number of images that the stage processed.
        storage: whether its maps and masks are single files or in shards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["running", "done"]
    key: dict[str, Any]
    versions: dict[str, str] = {}
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    num_images: int = Field(0, ge=0)
    storage: Storage = "files"


class ThresholdRecord(BaseModel):
    """What `threshold.json` holds: the threshold at which a stage cut its maps.

    Attributes:
        threshold: of the whole run.
        per_image: whether each image has a threshold of its own near it.
    """

    threshold: float = Field(ge=0, le=1)
    per_image: bool = False


class HistoryEntry(BaseModel):
    """One epoch in `history.json`. Further entries are the mean losses, the learning rate and times."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, float]

    epoch: int = Field(ge=1)


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage, and its record.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.path.name

    def file_path(self, kind: FileKind, image_id: str) -> Path:
        """Return the path of the file of an image. It does not exist if the stage has shards in place of files."""
        return self.path / kind / f"{image_id}{FILE_SUFFIXES[kind]}"

    def maps_path(self, image_id: str) -> Path:
        """Return the path of the response maps of an image; see `file_path`."""
        return self.file_path("maps", image_id)

    def mask_path(self, image_id: str) -> Path:
        """Return the path of the label map of an image; see `file_path`."""
        return self.file_path("masks", image_id)

    def file_address(self, kind: FileKind, image_id: str) -> str:
        """Return the path of the file of an image, or its place in a shard as text, see `ShardRow`."""
        path = self.file_path(kind, image_id)
        row = None if path.exists() else find_row(self.path, kind, image_id)
        return str(row or path)

    def has_file(self, kind: FileKind, image_id: str) -> bool:
        """Return whether there is a file of an image, by itself or in a shard."""
        return self.file_path(kind, image_id).exists() or find_row(self.path, kind, image_id) is not None

    def read_file(self, kind: FileKind, image_id: str) -> tuple[bytes, str]:
        """Read the file of an image, by itself or in a shard.

        Returns:
            Its content, and what to call it in messages: its path, or its place in a shard.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        path = self.file_path(kind, image_id)
        row = None if path.exists() else find_row(self.path, kind, image_id)
        if row is None:
            return read_bytes(path, MAX_FILE_BYTES), str(path)
        try:
            return read_shard_row(row), str(row)
        except DataError as error:
            raise RunError(message_of(error)) from error

    def read_maps(
        self, image_id: str, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES
    ) -> ResponseMaps:
        """Read the response maps of an image; see `ResponseMaps.load`."""
        path = self.maps_path(image_id)
        if path.exists():
            return ResponseMaps.load(path, size=size, num_classes=num_classes)
        content, name = self.read_file("maps", image_id)
        return ResponseMaps.decode(content, name, size=size, num_classes=num_classes)

    def read_mask(
        self, image_id: str, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES
    ) -> np.ndarray:
        """Read the label map of an image, [H, W] uint8; see `read_label_map`."""
        return self.read_label_map("masks", image_id, size=size, num_classes=num_classes)

    def read_mask_of(self, sample: Sample) -> np.ndarray:
        """Read the label map of an image of known size, [H, W] uint8; see `read_label_map`."""
        return self.read_mask(sample.id, size=sample.size)

    def read_label_map(
        self,
        kind: FileKind,
        image_id: str,
        *,
        size: tuple[int, int] | None = None,
        num_classes: int = MAX_CLASSES,
    ) -> np.ndarray:
        """Read a label map of an image, [H, W] uint8: a mask, seeds or completed saliency."""
        content, name = self.read_file(kind, image_id)
        return decode_label_map(content, name, size=size, num_classes=num_classes)

    @property
    def record_path(self) -> Path:
        """The path of the record."""
        return self.path / "stage.json"

    @property
    def threshold_path(self) -> Path:
        """The path of the recorded threshold."""
        return self.path / "threshold.json"

    @property
    def history_path(self) -> Path:
        """The path of the training curves."""
        return self.path / "history.json"

    def read_record_if_any(self) -> StageRecord | None:
        """Read the record, or return None if the stage has not begun. Raises RunError if the file is damaged."""
        return read_model(self.record_path, StageRecord) if self.record_path.exists() else None

    def read_storage(self) -> Storage:
        """Return whether the stage keeps its maps and masks in single files or in shards."""
        record = self.read_record_if_any()
        return "files" if record is None else record.storage

    def read_key_if_any(self) -> dict[str, Any] | None:
        """Read everything that the results depend on, or return None if the stage has not begun. Raises RunError."""
        record = self.read_record_if_any()
        return None if record is None else record.key

    def read_threshold_if_any(self) -> ThresholdRecord | None:
        """Read the threshold at which the stage cut maps, or return None if it cut none. Raises RunError if damaged."""
        path = self.threshold_path
        return read_model(path, ThresholdRecord, remedy=RUN_AGAIN) if path.exists() else None

    @property
    def is_done(self) -> bool:
        """Whether the record says that the stage has finished."""
        record = self.read_record_if_any()
        return record is not None and record.status == "done"

    def check_complete(self, num_masks: int, num_images: int) -> None:
        """Raise RunError if the stage is not finished, or lacks masks.

        Args:
            num_masks: the number of its masks.
            num_images: the number of images of the run, bad ones included.
        """
        record = self.read_record_if_any()
        is_done = record is not None and record.status == "done"
        expected = record.num_images if record is not None and is_done else num_images
        if not is_done or num_masks < expected:
            raise RunError(
                f"{self.path} holds only {num_masks} of {expected} masks: finish the run first (run its command "
                "again), or add --partial to export these."
            )

    def record_with_key(self, key: dict[str, Any], *, redo: bool) -> StageRecord | None:
        """Read the record if it has this key; None if the stage has to be made from the start.

        Raises:
            RunError: the stage was made from something else than before, reviews aside, and `redo` is False.
        """
        record = self.read_record_if_any()
        if record is None or record.key == key:
            return record
        if self.has_results and not redo and without_reviews(record.key) != without_reviews(key):
            raise RunError(
                f"{self.path} was made with other settings ({_describe_difference(record.key, key)}); choose another "
                "--out, or add --redo to make this stage and the stages that depend on it again."
            )
        return None

    @property
    def has_results(self) -> bool:
        """Whether the folder holds more than the record."""
        return self.path.is_dir() and any(path.name != self.record_path.name for path in self.path.iterdir())

    def begin(
        self,
        key: dict[str, Any],
        processes: Processes,
        *,
        redo: bool = False,
        storage: Storage = "files",
        keep_network: bool = False,
    ) -> bool:
        """Prepare the folder to start or resume the stage; every process calls it.

        Results of another key are removed if `redo` is True, or if only reviews have changed. Unfinished temporary
        files are removed, unless the stage has shards: another command may be writing one.

        Args:
            key: everything that the results depend on.
            processes: this process.
            redo: remove results of another key.
            storage: recorded for a stage that begins; one that is resumed keeps its own.
            keep_network: of the results of another key, only what the network made is removed.

        Returns:
            False if the stage with this key is done already, and there is nothing to do.

        Raises:
            RunError: the stage was made from something else, and `redo` is False.
        """
        record = self.record_with_key(key, redo=redo)
        processes.barrier()  # every process reads the record before the main process writes it
        if record is None and processes.is_main_process:
            if keep_network:
                self._remove_results_of_network()
            else:
                _remove_folder(self.path)
            versions = {"tagmask": tagmask.__version__, **_installed_versions("torch", "timm", "lightning", "numpy")}
            self._write(StageRecord(status="running", key=key, versions=versions, storage=storage))
        is_done = record is not None and record.status == "done"
        if processes.is_main_process and not is_done and self.read_storage() == "files":
            remove_unfinished(self.path)
        processes.barrier()
        return not is_done

    @property
    def has_network(self) -> bool:
        """Whether the folder belongs to this run, and holds a network or an unfinished training."""
        return not self.path.is_symlink() and any(map(_is_of_training, self.path.glob("*")))

    def _remove_results_of_network(self) -> None:
        """Remove all but the record and what the training left. After a kill, `begin` does the rest."""
        for path in self.path.iterdir():
            if path.is_dir() and not _is_of_training(path):
                shutil.rmtree(path)
            elif path != self.record_path and not _is_of_training(path):
                path.unlink()

    def mark_done(self, processes: Processes, seconds: float, num_images: int) -> None:
        """Record that all processes have finished the stage; every process calls it.

        Args:
            processes: this process.
            seconds: since the stage was started or resumed; they are added to those recorded before.
            num_images: the number of images that the stage processed.
        """
        processes.barrier()
        if processes.is_main_process and (record := self.read_record_if_any()):
            if record.storage == "shards":
                remove_unfinished(self.path)
            total = round(record.seconds + seconds, 1)
            self._write(record.model_copy(update={"status": "done", "seconds": total, "num_images": num_images}))
        processes.barrier()

    def reopen(self) -> None:
        """Record that the stage has to be resumed, because some of its files are missing."""
        if record := self.read_record_if_any():
            self._write(record.model_copy(update={"status": "running"}))

    def _write(self, record: StageRecord) -> None:
        write_json(self.record_path, record.model_dump(mode="json"))


def without_reviews(key: dict[str, Any]) -> dict[str, Any]:
    """Return the key of a stage without what people have reviewed."""
    return {name: value for name, value in key.items() if name not in (MASKS_ENTRY, TAGS_ENTRY)}


def _is_of_training(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _TRAINED_FILES)


def _installed_versions(*packages: str) -> dict[str, str]:
    """Return the version of each package that is installed: `tagmask predict model.onnx` needs no PyTorch."""
    versions = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _remove_folder(folder: Path) -> None:
    """Remove a folder, or the symbolic link to one, so that a kill at any moment leaves it whole or gone."""
    if folder.is_symlink():  # what it points to may belong to another run
        folder.unlink()
        return
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    descriptions = {
        "method": "another method",
        "seed": "another seed",
        "images": "other images or tags",
        "extra": "other saliency maps",
        "inputs": "another input",
        "network": "another network",
    }
    for part, description in descriptions.items():
        if old.get(part) != new.get(part):
            return description
    before, now = old.get("settings", {}), new.get("settings", {})
    changed = [f"{k} {before.get(k)!r} → {now[k]!r}" for k in now if before.get(k) != now[k]]
    return ", ".join(changed[:3]) or "a setting that no longer exists"
