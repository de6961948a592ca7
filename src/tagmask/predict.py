"""A trained segmentation network, for new images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tagmask.artifacts import read_json, write_json
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.errors import DataError, RunError
from tagmask.methods.segment import decide, probabilities, write_masks
from tagmask.models.inference import prepare_for_inference
from tagmask.models.segmenter import Segmenter
from tagmask.outputs.folder import write_legend
from tagmask.pipeline import RECORD, claim, finish
from tagmask.progress import Reporter
from tagmask.refine.settings import CrfSettings
from tagmask.stage import StageContext
from tagmask.text import did_you_mean

IMAGES = "images.json"  # beside predicted masks: which image each is of, and the tags that were known


@dataclass(frozen=True)
class Predictor:
    """A segmentation network with the test settings it was trained for.

    Attributes:
        scales: of the image, each with its mirror image.
        crf: after the network, or None.
    """

    network: Segmenter
    scales: tuple[float, ...]
    crf: CrfSettings | None
    compute: Compute

    @classmethod
    def load(cls, folder: Path, compute: Compute) -> Predictor:
        """Load the network of a stage folder. Raises RunError if there is none."""
        network = prepare_for_inference(Segmenter.load(folder), compute)
        test = read_json(folder / "config.json")["test"]
        crf = CrfSettings(**test["crf"]) if test["crf"] else None
        return cls(network, tuple(test["scales"]), crf, compute)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.network.classes

    def predict(self, image: np.ndarray, tags: Sequence[str] | None = None) -> np.ndarray:
        """Segment one image.

        Args:
            image: [H, W, 3] uint8 RGB.
            tags: the classes known to be present; only these can appear. None: any can.

        Returns:
            [H, W] uint8: 0 background, else 1 + the class's place in `classes`.

        Raises:
            ValueError: the array is no such image. DataError: a tag is not one of `classes`.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(
                f"image is a {type(image).__name__}, not an array; read_image of tagmask.data.images makes one"
            )
        if isinstance(tags, str):
            raise ValueError(f"tags is the text {tags!r}, not a list of class names")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"image is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]")
        ids = None if tags is None else [self._id(tag) for tag in tags]
        image = np.array(image)  # torch takes no mirrored views, and warns of read-only arrays
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(self.compute.device)
        with self.compute.autocast(self.network):
            images = normalize_images(pixels, self.network.mean, self.network.std)
            [(channels, probs)] = probabilities(self.network, images, [ids], self.scales)
        return decide(image, channels, probs, self.crf)

    def write_masks(self, context: StageContext) -> None:
        """Write `work.mask_file` of every image of `work` that has none yet."""
        write_masks(self.network, context, scales=self.scales, crf=self.crf, batch_size=8)

    def _id(self, tag: str) -> int:
        if tag not in self.classes:
            raise DataError(f"tag {tag!r} is not a class of this network{did_you_mean(tag, self.classes)}")
        return self.classes.index(tag) + 1


def predict_folder(
    predictor: Predictor, images: TaggedImages, made: str, out: Path, *, reporter: Reporter, redo: bool = False
) -> dict[str, Path]:
    """Write the masks of new images under `out`/masks, with a legend; those that exist are kept.

    Args:
        images: verified; a sample's tags, where known, are the only classes that can appear in it.
        made: says which network this is.
        redo: make masks of `out` anew that are another network's, another image's of this name, or were made
            with other tags; without it that is an error.

    Returns:
        Each image's mask, by id.

    Raises:
        RunError: `out`/masks holds something else.
    """
    masks, compute = out / "masks", predictor.compute
    if masks.exists() and not (masks / RECORD).exists() and any(masks.iterdir()):
        raise RunError(f"{masks} holds files that no network of tagmask made; choose another --out.")
    claim(masks, {"network": made}, compute, redo)
    started = time.time()
    context = StageContext(out, images, {}, 0, compute, reporter.progress, reporter.info)
    if compute.is_main_process:
        _keep_apart(context, masks / IMAGES, redo)
    compute.barrier()
    predictor.write_masks(context)
    finish(masks, compute, time.time() - started, len(images))
    if predictor.compute.is_main_process:
        write_legend(out, predictor.classes)
    return {sample.id: context.mask_path(sample) for sample in images.samples}


def _keep_apart(context: StageContext, file: Path, redo: bool) -> None:
    """See to it that every mask there is, is of this image with these tags."""
    before = read_json(file) if file.exists() else {}
    now = {s.id: {"image": s.image, "tags": None if s.tags is None else list(s.tags)} for s in context.images.samples}
    for sample in context.images.samples:
        mask, was = context.mask_path(sample), before.get(sample.id)
        if was in (None, now[sample.id]) or not mask.exists():
            continue
        if not redo:
            how = f"of {was['image']}" if was["image"] != sample.image else "with other tags"
            raise RunError(f"{mask} was made {how}; choose another --out, or say --redo to replace it.")
        mask.unlink()
    write_json(file, before | now)
