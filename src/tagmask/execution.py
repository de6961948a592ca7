"""How and where the work of a run on single images is done: into files or shards, here, in an array job or on Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from tagmask.compute import Engine
from tagmask.errors import RunError
from tagmask.stage_folder import Storage

MAX_FILES = 100_000  # of images; file systems become slow with more files, and backups, too


def check_part(part: tuple[int, int] | None) -> None:
    """Raise RunError if there is no such part (i, n); None is all of the work."""
    if part and not 1 <= part[0] <= part[1]:
        raise RunError(f"part {part[0]}/{part[1]} does not exist: give i/n with i from 1 to n.")


@dataclass(frozen=True)
class Execution:
    """How and where the work on single images is done. It does not change the results.

    Attributes:
        storage: "files": one file for the maps and one for the mask of each image; "shards": parquet shards of 1,000
            images; "auto": shards if the run has more than 100,000 images, if another stage of it has shards, if Ray
            or array jobs work on them, or if `prepare` is True. A stage that has begun keeps its form.
        engine: who works on shards. "local": this process, or those of torchrun and srun; "ray": actors on the cluster
            that RAY_ADDRESS names, or else on this machine.
        actors: with Ray, the number of actors; None: one for each GPU, or for each CPU but one.
        part: (i, n): work only on every n-th shard of the stage whose turn it is, beginning with the i-th, and stop.
            n processes need not know of each other.
        prepare: do what only one command can do, such as training, and stop before the work on shards begins.

    Raises:
        RunError: the values do not fit each other.

    Example:
        >>> run = tagmask.run(
        ...     "photos", "run-in-shards", tags="tags.csv", recipe="scratch", settings=TOY_SETTINGS,
        ...     execution=tagmask.Execution(storage="shards"), quiet=True,
        ... )
        >>> sorted(path.name for path in run.masks_dir.iterdir())
        ['masks-00000-of-00001.parquet']
    """

    storage: Storage | Literal["auto"] = "auto"
    engine: Engine = "local"
    actors: int | None = None
    part: tuple[int, int] | None = None
    prepare: bool = False

    def __post_init__(self) -> None:
        check_part(self.part)
        if self.part and self.prepare:
            raise RunError("a part and the preparation for all parts are two commands: give --shard or --prepare.")

    @property
    def needs_shards(self) -> bool:
        """Whether the work is divided, or stops before it is."""
        return self.engine == "ray" or self.part is not None or self.prepare

    def resolve_storage(self, num_images: int) -> Storage:
        """Return "files" or "shards" for a run of so many images.

        Raises:
            RunError: shards are needed, but pyarrow is not installed, or `storage` says otherwise.
        """
        if self.storage == "files" and self.needs_shards:
            raise RunError("--engine ray, --shard and --prepare work on shards: leave out --storage files.")
        has_pyarrow = find_spec("pyarrow") is not None
        storage = self.storage
        if storage == "auto":
            is_large = num_images > MAX_FILES and has_pyarrow
            storage = "shards" if self.needs_shards or is_large else "files"
        if storage == "shards" and not has_pyarrow:
            raise RunError('shards need pyarrow; install it with pip install "tagmask[shards]".')
        return storage


INTO_FILES = Execution(storage="files")


def parse_part(text: str | None) -> tuple[int, int] | None:
    """Return the i and n of "i/n"; None for None. Raises RunError if the text is something else.

    Example:
        >>> parse_part("3/8")
        (3, 8)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise RunError(f"--shard {text!r} is not a part: write it as i/n with i from 1 to n, e.g. 3/8.")
    return int(match[1]), int(match[2])
