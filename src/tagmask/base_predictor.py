"""`BasePredictor`: what a trained network offers for new images, whatever library computes it. Imports no PyTorch."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from tagmask.artifacts import read_model, write_json
from tagmask.data.new_images import find_new_images
from tagmask.data.samples import TaggedImages
from tagmask.data.verify import verify_images
from tagmask.errors import DataError, RunError
from tagmask.folder_lock import lock_folder
from tagmask.outputs.formats import check_format, find_format
from tagmask.outputs.png import write_legend
from tagmask.outputs.settings import ExportSettings
from tagmask.progress import Reporter, make_reporter
from tagmask.stage_folder import StageFolder
from tagmask.text import did_you_mean, shorten

if TYPE_CHECKING:
    from tagmask.compute import Processes

IMAGES_FILE = "images.json"  # beside predicted masks: the image of each mask, and the tags that were known
MAX_RECORD_BYTES = 2**30  # of a million images


class _PredictedImage(BaseModel):
    """An entry of images.json: the image that a mask was predicted from, and the tags that were known."""

    model_config = ConfigDict(extra="forbid")

    image: str
    tags: list[int] | None


class BasePredictor(ABC):
    """A trained segmentation network that is applied to new images.

    `tagmask.Predictor` computes with PyTorch, `tagmask.OnnxPredictor` with onnxruntime.
    """

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The class names; class id k is `classes[k - 1]`."""

    @property
    @abstractmethod
    def network_key(self) -> str:
        """A digest of the network and of how it is applied, by which masks of another network are noticed."""

    @property
    @abstractmethod
    def processes(self) -> Processes:
        """The processes that segment files."""

    @abstractmethod
    def single_pass(self) -> Self:
        """Return the same network, but each image is seen once, at its own size: no scales, no flip, no CRF."""

    def with_regions(self) -> Self:
        """Return the same network, whose masks then follow regions, as those of the run's stage `regions` do.

        Raises:
            RunError: the network does not belong to a run with such a stage.
        """
        raise RunError("an exported network has no regions: use the folder of the run.")

    @abstractmethod
    def segment(self, image: np.ndarray, tags: Sequence[int] | None) -> np.ndarray:
        """Segment one image.

        Args:
            image: [H, W, 3] uint8 RGB; an image of more than 1024 × 1024 pixels is divided into overlapping tiles.
            tags: the class ids that can appear beside background; None: all.

        Returns:
            The label map [H, W] uint8.
        """

    @abstractmethod
    def write_missing_masks(self, folder: StageFolder, images: TaggedImages, reporter: Reporter) -> None:
        """Write the label map of every image that has none yet in the folder. The sizes of the images are known."""

    def predict(self, image: np.ndarray, tags: Sequence[str] | None = None) -> np.ndarray:
        """Segment one image; an image of more than 1024 × 1024 pixels in overlapping tiles.

        Args:
            image: [H, W, 3] uint8 RGB.
            tags: the classes that are known to be present; no other class can appear. None: any class can.

        Returns:
            The label map [H, W] uint8: 0 background, else 1 + the index of the class in `classes`.

        Raises:
            ValueError: the array is not such an image.
            DataError: a tag is not one of `classes`.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(f"image is a {type(image).__name__}, not an array; use tagmask.read_image to read a file")
        if isinstance(tags, str):
            raise ValueError(f"tags is the text {tags!r}, not a list of class names")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"image is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]")
        return self.segment(image, None if tags is None else [self._class_id(tag) for tag in tags])

    def predict_files(
        self,
        paths: Sequence[str | Path],
        out: str | Path,
        *,
        tags: str | Path | None = None,
        split: str | None = None,
        also: Iterable[str] = (),
        competition: Literal["comp5", "comp6"] = "comp6",
        single_pass: bool = False,
        regions: bool = False,
        skip_bad: bool = False,
        redo: bool = False,
        quiet: bool = False,
    ) -> dict[str, Path]:
        """Segment image files and folders of images: writes `out`/masks/<id>.png, and a legend.

        Args:
            paths: image files, folders of images, or URLs.
            out: the folder to write to; masks that exist there are kept.
            tags: a table `image,tags`; only the tagged classes can appear in an image that it names.
            split: only the images of a list: its path, or in a folder with VOC's layout its name, e.g. "test". `paths`
                is then one folder.
            also: further formats to write, see `Run.export`. They get the name of the list as the name of the set.
            competition: in the format "voc-server", see `ExportSettings`.
            single_pass: see each image once, at its own size: no scales, no flip, no CRF, as an ONNX file does.
            regions: then let regions vote on each mask, see `with_regions`.
            skip_bad: leave out images that cannot be read.
            redo: replace masks in `out` that another network made, or that belong to other images or tags.
            quiet: print nothing.

        Returns:
            The path of each image's mask, by id.

        Raises:
            DataError: an image, the list or the table cannot be read.
            RunError: `out`/masks holds something else, one of the formats cannot hold the masks, or there are no
                regions.
        """
        if single_pass or regions:
            chosen = self.single_pass() if single_pass else self
            chosen = chosen.with_regions() if regions else chosen
            return chosen.predict_files(
                paths, out, tags=tags, split=split, also=also, competition=competition, skip_bad=skip_bad, redo=redo,
                quiet=quiet,
            )  # fmt: skip
        reporter, formats, folder = make_reporter(quiet), list(also), Path(out)
        subset = None if split is None else re.sub(r"[^\w.-]", "_", Path(split).name.removesuffix(".txt"))
        settings = ExportSettings(subset=subset, competition=competition)
        for format in formats:
            find_format(format)
        table = None if tags is None else str(tags)
        images = find_new_images([str(path) for path in paths], self.classes, table, leave_out=[folder], split=split)
        for format in formats:  # before the work begins
            check_format(format, self.classes, [sample.id for sample in images.samples])
        images = verify_images(
            images, skip_bad=skip_bad, workers=self.processes.workers, progress=reporter.progress,
            processes=self.processes,
        )  # fmt: skip
        for problem in images.problems:
            if problem.severity == "error":
                reporter.info(f"left out: {problem}")
        with lock_folder(folder, self.processes):
            masks = self._write_masks(images, folder, reporter, redo=redo)
        for format in formats if self.processes.is_main_process else ():
            from tagmask.outputs.writer import write_masks_as  # here, because it imports SciPy

            read_mask = StageFolder(folder).read_mask_of
            write_masks_as(images.samples, read_mask, self.classes, folder, format, settings)
        return masks

    def _write_masks(self, images: TaggedImages, out: Path, reporter: Reporter, *, redo: bool) -> dict[str, Path]:
        """Write the masks of verified images to `out`/masks, with a legend; existing masks are kept."""
        folder, record, processes = StageFolder(out), StageFolder(out / "masks"), self.processes
        if record.path.exists() and not record.record_path.exists() and any(record.path.iterdir()):
            raise RunError(f"{record.path} holds files that tagmask did not make; choose another --out.")
        record.begin({"network": self.network_key}, processes, redo=redo)
        start = time.time()
        if processes.is_main_process:
            _record_images(folder, images, record.path / IMAGES_FILE, redo=redo)
        processes.barrier()
        self.write_missing_masks(folder, images, reporter)
        record.mark_done(processes, time.time() - start, len(images))
        if processes.is_main_process:
            write_legend(out, self.classes)
        return {sample.id: folder.mask_path(sample.id) for sample in images.samples}

    def _class_id(self, tag: str) -> int:
        if tag not in self.classes:
            raise DataError(f"tag {tag!r} is not a class of this network{did_you_mean(tag, self.classes)}")
        return self.classes.index(tag) + 1


def _record_images(folder: StageFolder, images: TaggedImages, path: Path, *, redo: bool) -> None:
    """Record the image and the tags of each mask, and check the masks that exist against the record."""
    before: dict[str, _PredictedImage] = {}
    if path.exists():
        before = read_model(path, dict[str, _PredictedImage], max_bytes=MAX_RECORD_BYTES)
    now = {
        sample.id: _PredictedImage(image=sample.image, tags=None if sample.tags is None else list(sample.tags))
        for sample in images.samples
    }
    for sample in images.samples:
        mask, recorded = folder.mask_path(sample.id), before.get(sample.id)
        if recorded in (None, now[sample.id]) or not mask.exists():
            continue
        if not redo:
            reason = f"from {shorten(recorded.image)}" if recorded.image != sample.image else "with other tags"
            raise RunError(f"{mask} was made {reason}; choose another --out, or add --redo to replace it.")
        mask.unlink()
    write_json(path, {image_id: entry.model_dump() for image_id, entry in (before | now).items()})
