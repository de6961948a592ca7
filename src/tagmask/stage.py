"""What a method is: a set of settings that does one stage of a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.progress import Progress, run_parallel

ArtifactKind = Literal["classifier", "maps", "masks", "segmenter"]
"""What a stage makes, and the next ones may need:
`classifier`  classifier.safetensors + config.json
`maps`        maps/<id>.safetensors, one `ResponseMaps` an image
`masks`       masks/<id>.png, one label map an image
`segmenter`   segmenter.safetensors + config.json
"""
ARTIFACT_NAMES: dict[ArtifactKind, str] = {
    "classifier": "a classifier", "maps": "response maps", "masks": "masks", "segmenter": "a segmentation network",
}  # fmt: skip


@dataclass(frozen=True)
class StageContext:
    """What a method is given to work with.

    Attributes:
        folder: this stage's own folder; everything it makes goes here.
        images: the training images with their tags.
        inputs: for each kind in the method's `needs`, the folder of the latest stage that made it.
        seed: of everything random.
        compute: device and processes.
        progress: shows how far a long loop has come.
        say: prints one line for the user.
        max_steps: a training ends after so many; None: when it is done.
    """

    folder: Path
    images: TaggedImages
    inputs: Mapping[ArtifactKind, Path]
    seed: int
    compute: Compute
    progress: Progress
    info: Callable[[str], None]
    max_steps: int | None = None

    def maps_path(self, sample: Sample) -> Path:
        """Where this stage writes a sample's response maps."""
        return maps_path(self.folder, sample)

    def mask_path(self, sample: Sample) -> Path:
        """Where this stage writes a sample's label map."""
        return mask_path(self.folder, sample)

    def pending_shard(
        self, groups: Sequence[Sequence[Sample]], file: Callable[[Sample], Path]
    ) -> Sequence[Sequence[Sample]]:
        """This process's groups in which some sample has no file yet.

        Groups are never regrouped after an interruption, so that a network sees the same batches, bit by bit.
        """
        return [g for g in self.compute.shard(groups) if not all(file(sample).exists() for sample in g)]

    def run_parallel(self, what: str, jobs: Iterable[Any], total: int) -> None:
        """Do this process's `total` jobs (each a joblib `delayed` call) in worker processes, showing how far it is."""
        run_parallel(what, jobs, total, self.compute.workers, self.progress)


class Method(BaseModel):
    """One stage of a run: its fields are its settings, `run` does the work.

    A module in `tagmask.methods` (or anywhere: recipes take a dotted name) defines one subclass; the fields'
    defaults are its paper's. `run` reads `work.inputs`, writes under `work.folder`, skips what exists there
    already, and in a run of many processes does its share (`work.missing`, `work.compute`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[tuple[ArtifactKind, ...]] = ()
    makes: ClassVar[tuple[ArtifactKind, ...]] = ()

    def check(self, images: TaggedImages) -> None:
        """Raise a DataError if the images lack what the method needs; called before the run begins."""

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        """A hash of what else of the images the result depends on (saliency), so that a change of it is noticed."""
        return None

    @abstractmethod
    def run(self, context: StageContext) -> None: ...


def maps_path(folder: Path, sample: Sample) -> Path:
    return folder / "maps" / f"{sample.id}.safetensors"


def mask_path(folder: Path, sample: Sample) -> Path:
    return folder / "masks" / f"{sample.id}.png"


def group_by_size(samples: Sequence[Sample], batch_size: int, pixels: int) -> list[list[Sample]]:
    """Group samples of equal image size into batches, in a fixed order.

    A batch holds at most `batch_size` images, and at most so many `pixels` unless it is a single image.
    """
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        by_size.setdefault(sample.size or (1, 1), []).append(sample)
    groups = []
    for (height, width), group in by_size.items():
        n = min(batch_size, max(1, pixels // (height * width)))
        groups += [group[i : i + n] for i in range(0, len(group), n)]
    return groups
