"""What a method is, and the context that it runs in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tagmask import stage_shards
from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import RunPaused
from tagmask.execution import INTO_FILES, Execution
from tagmask.progress import Reporter, run_in_workers
from tagmask.stage_folder import StageFolder
from tagmask.stage_shards import FileKind

ArtifactKind = Literal["classifier", "maps", "masks", "segmenter", "boundary"]
"""What a stage makes, and what later stages may need:

classifier: classifier.safetensors and config.json.
maps: maps/<id>.safetensors, the `ResponseMaps` of each image; or in shards.
masks: masks/<id>.png, the label map of each image; or in shards.
segmenter: segmenter.safetensors and config.json.
boundary: boundary.safetensors and config.json, IRN's network of boundaries.
"""
ARTIFACT_NAMES: dict[ArtifactKind, str] = {
    "classifier": "a classifier", "maps": "response maps", "masks": "masks", "segmenter": "a segmentation network",
    "boundary": "a network of boundaries",
}  # fmt: skip


MakeFiles = Callable[["StageContext"], None]
"""Writes the files of those images of a context that have none yet."""
PrepareFiles = Callable[["StageContext"], MakeFiles]
"""Gets the context of a stage, loads what its work on single images needs, e.g. a network, and returns the function
that does this work. With single files, that function gets the same context. With shards, it is called for each shard,
with a context that has the images of the shard, and folders with the files of these images. This happens on one or on
many machines: a `PrepareFiles` is picklable by cloudpickle, and the files of an image depend on nothing else."""


@dataclass(frozen=True)
class InferenceContext:
    """What is needed to run a network on a set of images and to write a file for each.

    Attributes:
        folder: where the files are written.
        images: the images, verified (their sizes are known).
        compute: device and processes.
        reporter: prints messages and progress.
    """

    folder: StageFolder
    images: TaggedImages
    compute: Compute
    reporter: Reporter

    def pending_shard(
        self, groups: Sequence[Sequence[Sample]], path: Callable[[str], Path]
    ) -> Sequence[Sequence[Sample]]:
        """Return this process's groups that hold at least one image whose file does not exist yet.

        A resumed run keeps the groups, so that a network sees the same batches and gives the same bits.

        Args:
            groups: the samples of each batch.
            path: maps an image id to the file that is to be written.
        """
        return [g for g in self.compute.shard(groups) if not all(path(sample.id).exists() for sample in g)]

    def batches(self, batch_size: int) -> list[list[Sample]]:
        """Return batches of images of equal size, at most `batch_size` images each and small enough for the device.

        No batch has images of two shards, so that a network sees the same batches if the stage has shards.
        """
        n, samples = stage_shards.IMAGES_PER_SHARD, self.images.samples
        parts = [samples[i : i + n] for i in range(0, len(samples), n)]
        return [batch for part in parts for batch in group_by_size(part, batch_size, self.compute.batch_pixels)]

    def run_in_workers(self, description: str, delayed_calls: Iterable[Any], num_calls: int) -> None:
        """Run this process's joblib `delayed` calls in worker processes and report the progress."""
        run_in_workers(description, delayed_calls, num_calls, self.compute.workers, self.reporter.progress)


@dataclass(frozen=True)
class StageContext(InferenceContext):
    """What a method gets to run its stage.

    Attributes:
        folder: this stage's own folder; everything that the stage makes goes here.
        images: the training images with their tags.
        inputs: for each kind of artifact that the method needs, the folder of the stage that made it.
        seed: seeds all random numbers of the stage.
        max_steps: the number of steps after which a training ends early (dry runs); None: when it is complete.
        epoch_size: the number of images of an epoch; None: that of `images`. In dry runs, `images` are only a few of
            them.
        execution: how and where the work on single images is done.
        key: everything that the results depend on, as in the record of the stage; None: the stage has no record.
    """

    inputs: Mapping[ArtifactKind, StageFolder]
    seed: int
    max_steps: int | None = None
    epoch_size: int | None = None
    execution: Execution = INTO_FILES
    key: Mapping[str, Any] | None = None

    @property
    def images_per_epoch(self) -> int:
        """The number of images of an epoch."""
        return len(self.images) if self.epoch_size is None else self.epoch_size

    def make_files(self, kind: FileKind, prepare: PrepareFiles, *, uses: Sequence[FileKind] = ()) -> None:
        """Write one kind of files of all images that have none yet; every process calls it and does its share.

        Args:
            kind: the kind; the files are written to `file_path(kind, image_id)` of the folder of the context.
            prepare: returns the function that writes them.
            uses: other kinds of files of this stage that the function reads.

        Raises:
            RunPaused: `execution` says to stop here.
        """
        from tagmask.image_work import make_files  # here, because it needs the contexts

        make_files(self, kind, prepare, uses)

    def require_all_images(self, what: str) -> None:
        """Raise RunPaused if this process works on a part of the images only.

        Args:
            what: what comes now and needs all of them, e.g. "trains a network".
        """
        if self.execution.part:
            raise RunPaused(
                f"There is nothing to do for a part of the images: stage {self.folder.name!r} {what} now. Run the same "
                "command with --prepare in place of --shard."
            )


@dataclass(frozen=True)
class InitialWeights:
    """Where a method's network takes its initial weights from.

    Attributes:
        backbone: a timm model name; None: the backbone of the run's classifier.
        source: "pretrained" (timm's hub), "classifier" (the run's), "none" (random) or the path of a file.
    """

    backbone: str | None
    source: str

    @property
    def file(self) -> Path | None:
        """The weights file, if the source is one."""
        return None if self.source in ("pretrained", "classifier", "none") else Path(self.source)


class Method(BaseModel):
    """One stage of a run: the fields are its settings, `run` does the work.

    A module in `tagmask.methods`, or any module of your own, defines one subclass; the defaults of its fields are
    those of its paper. `run` reads the folders in `context.inputs`, writes to `context.folder`, skips files that
    exist already, and, if there are several processes, does its share (`context.pending_shard`, `context.compute`).
    What it does for single images goes through `context.make_files`, so that it can be done shard by shard.

    Attributes:
        needs: the kinds of artifacts that the method reads.
        makes: the kinds of artifacts that it writes.
        learns_from_pixels: whether the method learns from labels of single pixels, so that it uses reviewed masks;
            methods that read or write masks always do. The other methods do not see them.
        free_settings: settings that do not change the results, so that a run resumes with other values of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    needs: ClassVar[tuple[ArtifactKind, ...]] = ()
    makes: ClassVar[tuple[ArtifactKind, ...]] = ()
    learns_from_pixels: ClassVar[bool] = False
    free_settings: ClassVar[tuple[str, ...]] = ()

    inputs: dict[ArtifactKind, str] = Field(
        {}, description="stages to read from, e.g. {maps: cam}; by default the latest stage that makes what is needed"
    )

    def required_inputs(self) -> tuple[ArtifactKind, ...]:
        """Return the kinds of artifacts that the method reads with these settings; by default `needs`."""
        return self.needs

    def made_artifacts(self) -> tuple[ArtifactKind, ...]:
        """Return the kinds of artifacts that the method writes with these settings; by default `makes`."""
        return self.makes

    def inference_settings(self) -> tuple[str, ...]:
        """Return the settings on which the trained network does not depend; it stays if only these change."""
        return ()

    def uses_reviewed_masks(self) -> bool:
        """Return whether the results depend on the reviewed masks of the images."""
        return self.learns_from_pixels or "masks" in (*self.required_inputs(), *self.made_artifacts())

    def check_images(self, images: TaggedImages) -> None:
        """Check the images before the run begins.

        Raises:
            DataError: they lack something that the method needs.
            RecipeError: the settings do not fit their classes.
        """

    def check_processes(self, num_processes: int) -> None:
        """Raise a RecipeError if the method cannot run in so many processes; called before the run begins."""

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        """Return a hash of further inputs of the method, e.g. saliency maps, so that a change of them is noticed."""
        return None

    def initial_weights(self) -> InitialWeights | None:
        """Return where the initial weights come from; None if the method has no network of its own."""
        return None

    def for_dry_run(self) -> Self:
        """Return the same method for a dry run: random weights instead of downloads, almost no learning."""
        return self

    @abstractmethod
    def run(self, context: StageContext) -> None:
        """Do the work of the stage, or what is left of it after an interruption."""


def group_by_size(samples: Sequence[Sample], batch_size: int, max_pixels: int) -> list[list[Sample]]:
    """Group samples of equal image size into batches, in a fixed order.

    Args:
        samples: with known sizes.
        batch_size: the largest number of images in a batch.
        max_pixels: the largest number of pixels in a batch of more than one image.
    """
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        by_size.setdefault(sample.size or (1, 1), []).append(sample)
    batches = []
    for (height, width), group in by_size.items():
        n = min(batch_size, max(1, max_pixels // (height * width)))
        batches += [group[i : i + n] for i in range(0, len(group), n)]
    return batches
