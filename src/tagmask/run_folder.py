"""The run folder: where its files are, and where its images come from.

run/
    run.json             where the data came from, and which request the run has finished
    recipe.yaml          every setting of every stage
    evaluation.json      what was measured
    recommendation.json  the stage whose masks are probably the best
    report.html
    review/              masks and tags that people have reviewed
    <stage>/stage.json   record: settings, inputs, versions, status, time
    <stage>/maps/<id>.safetensors, masks/<id>.png, *.safetensors + config.json
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import tagmask
from tagmask.artifacts import read_json, read_model, write_json
from tagmask.data.source import DataSource
from tagmask.errors import RunError
from tagmask.label_map import MAX_CLASSES
from tagmask.review_folder import ReviewFolder
from tagmask.stage_folder import StageFolder
from tagmask.text import shorten

RUN_FORMAT: Literal[2] = 2  # tagmask 0.1.0 wrote no format number


class RunSources(BaseModel):
    """Where the images of a run come from.

    Attributes:
        images: the training images.
        held_out: the held-out images, or None.
        skip_bad: whether images that cannot be read are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: DataSource
    held_out: DataSource | None = None
    skip_bad: bool = False

    def with_absolute_paths(self) -> RunSources:
        """Return the same sources with absolute paths."""
        held_out = self.held_out and self.held_out.with_absolute_paths()
        return self.model_copy(update={"images": self.images.with_absolute_paths(), "held_out": held_out})


class RunRecord(BaseModel):
    """What `run.json` holds.

    Attributes:
        format: the number of the format of run folders.
        tagmask: the version that wrote the file.
        classes: the class names.
        sources: where the images come from.
        finished: a digest of the request and the data that the run has finished, once it has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = RUN_FORMAT
    tagmask: str = tagmask.__version__
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    sources: RunSources
    finished: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder.

    Attributes:
        path: the folder that `tagmask run --out` wrote.
    """

    path: Path

    @property
    def record_path(self) -> Path:
        """The path of `run.json`."""
        return self.path / "run.json"

    @property
    def recipe_path(self) -> Path:
        """The path of the recipe with every setting."""
        return self.path / "recipe.yaml"

    @property
    def evaluation_path(self) -> Path:
        """The path of the measured figures."""
        return self.path / "evaluation.json"

    @property
    def recommendation_path(self) -> Path:
        """The path of the recommendation of the stage with the best masks."""
        return self.path / "recommendation.json"

    @property
    def report_path(self) -> Path:
        """The path of the HTML report."""
        return self.path / "report.html"

    @property
    def verification_cache_path(self) -> Path:
        """The path of the list of training images that were verified before (a cache; it can be removed)."""
        return self.path / ".verified.json"

    @property
    def held_out_verification_cache_path(self) -> Path:
        """The path of the list of held-out images that were verified before (a cache; it can be removed)."""
        return self.path / ".verified-held-out.json"

    @property
    def file_cache_path(self) -> Path:
        """The path of the sizes and mtimes of all files of a finished run (a cache; it can be removed)."""
        return self.path / ".files.json"

    @property
    def held_out_path(self) -> Path:
        """The folder of the network's masks of held-out images."""
        return self.path / "held_out"

    @property
    def review(self) -> ReviewFolder:
        """The reviewed masks of the run."""
        return ReviewFolder(self.path / "review")

    def stage(self, name: str) -> StageFolder:
        """Return the folder of a stage."""
        return StageFolder(self.path / name)

    def read_record(self) -> RunRecord:
        """Read `run.json`.

        Raises:
            RunError: the folder is not a run, another version of tagmask made it, or the file is damaged.
        """
        if not self.record_path.exists():
            raise RunError(
                f"{self.path} is not a tagmask run (it has no {self.record_path.name}): give the folder that "
                "`tagmask run --out` made."
            )
        content = read_json(self.record_path)
        if isinstance(content, dict) and content.get("format") != RUN_FORMAT:
            made_by = shorten(str(content.get("tagmask", "another version")))
            raise RunError(
                f"{self.path} was made by tagmask {made_by}, whose run folders this version ({tagmask.__version__}) "
                "cannot read: choose another --out, or open it with the version that made it."
            )
        return read_model(self.record_path, RunRecord)

    def write_record(
        self, sources: RunSources, classes: Sequence[str], finished_request_key: str | None = None
    ) -> None:
        """Write `run.json`.

        Args:
            sources: where the images come from.
            classes: the class names.
            finished_request_key: a digest of the request and the data that the run has finished, once it has.
        """
        record = RunRecord(classes=tuple(classes), sources=sources, finished=finished_request_key)
        write_json(self.record_path, record.model_dump(mode="json"))

    def check_usable(self) -> None:
        """Raise RunError if the folder holds something that is not a run of this version."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file, not a folder: choose another --out.")
        if self.record_path.exists():
            self.read_record()
        elif self.path.exists() and not self._has_stages() and any(self.path.glob("[!.]*")):
            raise RunError(f"{self.path} is not empty and holds no tagmask run: choose another --out.")

    def _has_stages(self) -> bool:
        """Whether the folder holds the recipe and a stage of a run, whose run.json was removed."""
        return self.recipe_path.exists() and any(self.path.glob("*/stage.json"))

    def discard_unused(self) -> None:
        """Remove what was written to a folder in which no run was begun, because the run was refused."""
        if self.record_path.exists():
            return
        for path in (self.verification_cache_path, self.held_out_verification_cache_path):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or does not exist
            self.path.rmdir()
