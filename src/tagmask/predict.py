"""A trained segmentation network, applied to new images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from tagmask.artifacts import REMOVE, RUN_AGAIN, read_model, write_json
from tagmask.compute import Compute, explain_out_of_memory
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError, RunError
from tagmask.methods.segment import segment_in_tiles, write_missing_masks
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.models.saved_network import CONFIG_FILE
from tagmask.models.segmenter import Segmenter, SegmenterConfig
from tagmask.outputs.png import write_legend
from tagmask.progress import Reporter
from tagmask.refine.settings import CrfSettings
from tagmask.stage import InferenceContext
from tagmask.stage_folder import StageFolder
from tagmask.text import did_you_mean, shorten

IMAGES_FILE = "images.json"  # beside predicted masks: the image of each mask, and the tags that were known
MAX_RECORD_BYTES = 2**30  # of a million images
BATCH_SIZE = 8
_MEMORY_ADVICE = "close other programs, use fewer workers (--workers), or use a larger machine"


class _PredictedImage(BaseModel):
    """An entry of images.json: the image that a mask was predicted from, and the tags that were known."""

    model_config = ConfigDict(extra="forbid")

    image: str
    tags: list[int] | None


@dataclass(frozen=True)
class Predictor:
    """A segmentation network with the inference settings of its recipe.

    Attributes:
        network: the network, prepared for inference.
        scales: factors by which images are resized; each view is used with its horizontal flip.
        crf: dense CRF on the network's probabilities, or None.
        compute: device and processes.

    Example:
        >>> predictor = tagmask.load("run").predictor
        >>> predictor.classes
        ('dog', 'person')
        >>> predictor.predict(tagmask.read_image("photos/beach/001.jpg")).shape
        (40, 48)
    """

    network: Segmenter
    scales: tuple[float, ...]
    crf: CrfSettings | None
    compute: Compute

    @classmethod
    def load(cls, folder: Path, compute: Compute) -> Predictor:
        """Load the network of a stage folder. Raises RunError if there is none."""
        network = prepare_for_inference_inplace(Segmenter.load(folder), compute)
        inference = read_model(folder / CONFIG_FILE, SegmenterConfig, remedy=RUN_AGAIN).test
        if inference is None:
            raise RunError(f"{folder / CONFIG_FILE} does not say how the network is applied: {REMOVE}.")
        return cls(network, inference.scales, inference.crf, compute)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; class id k is `classes[k - 1]`."""
        return self.network.classes

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
        ids = None if tags is None else [self._class_id(tag) for tag in tags]
        with explain_out_of_memory("the segmentation network", self.compute.device, _MEMORY_ADVICE):
            return segment_in_tiles(self.network, image, ids, self.scales, self.crf, self.compute)

    def write_missing_masks(self, context: InferenceContext) -> None:
        """Write the label map of every image of the context that has none yet."""
        with explain_out_of_memory("the segmentation network", self.compute.device, _MEMORY_ADVICE):
            write_missing_masks(self.network, context, scales=self.scales, crf=self.crf, batch_size=BATCH_SIZE)

    def _class_id(self, tag: str) -> int:
        if tag not in self.classes:
            raise DataError(f"tag {tag!r} is not a class of this network{did_you_mean(tag, self.classes)}")
        return self.classes.index(tag) + 1


def predict_folder(
    predictor: Predictor,
    images: TaggedImages,
    network_key: str,
    out: Path,
    *,
    reporter: Reporter,
    redo: bool = False,
) -> dict[str, Path]:
    """Write the masks of new images to `out`/masks, with a legend; existing masks are kept.

    Args:
        predictor: the network.
        images: verified; if the tags of an image are known, no other class can appear in it.
        network_key: identifies the network, so that masks of another one are noticed.
        out: the folder to write to.
        reporter: prints messages and progress.
        redo: replace masks in `out` that were made by another network, from another image of the same name, or with
            other tags; without it they are an error.

    Returns:
        The path of each image's mask, by id.

    Raises:
        RunError: `out`/masks holds something else.
    """
    folder, record, compute = StageFolder(out), StageFolder(out / "masks"), predictor.compute
    if record.path.exists() and not record.record_path.exists() and any(record.path.iterdir()):
        raise RunError(f"{record.path} holds files that tagmask did not make; choose another --out.")
    record.begin({"network": network_key}, compute, redo=redo)
    start = time.time()
    context = InferenceContext(folder, images, compute, reporter)
    if compute.is_main_process:
        _record_images(context, record.path / IMAGES_FILE, redo=redo)
    compute.barrier()
    predictor.write_missing_masks(context)
    record.mark_done(compute, time.time() - start, len(images))
    if compute.is_main_process:
        write_legend(out, predictor.classes)
    return {sample.id: folder.mask_path(sample.id) for sample in images.samples}


def _record_images(context: InferenceContext, path: Path, *, redo: bool) -> None:
    """Record the image and the tags of each mask, and check the masks that exist against the record."""
    before: dict[str, _PredictedImage] = {}
    if path.exists():
        before = read_model(path, dict[str, _PredictedImage], max_bytes=MAX_RECORD_BYTES)
    now = {
        sample.id: _PredictedImage(image=sample.image, tags=None if sample.tags is None else list(sample.tags))
        for sample in context.images.samples
    }
    for sample in context.images.samples:
        mask, recorded = context.folder.mask_path(sample.id), before.get(sample.id)
        if recorded in (None, now[sample.id]) or not mask.exists():
            continue
        if not redo:
            reason = f"from {shorten(recorded.image)}" if recorded.image != sample.image else "with other tags"
            raise RunError(f"{mask} was made {reason}; choose another --out, or add --redo to replace it.")
        mask.unlink()
    write_json(path, {image_id: entry.model_dump() for image_id, entry in (before | now).items()})
