"""Pseudo-masks at a threshold for each image, chosen with the help of a first segmentation network (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import delayed
from pydantic import Field

from tagmask.artifacts import write_label_map
from tagmask.data.loading import whole_images
from tagmask.data.saliency import read_saliency, saliency_hash
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.transforms import normalised
from tagmask.maps import ResponseMaps
from tagmask.methods.crf import Crf
from tagmask.methods.segment import probabilities
from tagmask.models.segmenter import Segmenter
from tagmask.refine.per_image import choose_threshold, expected_threshold, typical_root
from tagmask.refine.settings import CrfSettings
from tagmask.stage import Kind, Method, Work, batches, maps_file


class PerImage(Method):
    """Cut each image's maps where the region agrees best with a network that learned from one global threshold.

    To be placed after a first `crf` and `segment`, and before a second `segment`. Where an image has saliency, this
    takes the network's place, which then adds nothing (docs/thresholds.md).
    """

    needs: ClassVar[tuple[Kind, ...]] = ("maps", "segmenter")
    makes: ClassVar[tuple[Kind, ...]] = ("masks",)

    scales: tuple[float, ...] = Field((1.0,), min_length=1, description="of the network's input, each with its mirror")
    batch: int = Field(8, ge=1, description="images of one size that the network sees together")
    gt_prob: float = Field(0.7, gt=0, lt=1, description="how sure the CRF is of the labels it starts from")
    crf: CrfSettings | None = Field(CrfSettings(), description="null: no CRF, just the thresholds")

    def reads_besides(self, images: TaggedImages) -> str | None:
        return saliency_hash(images)

    def run(self, work: Work) -> None:
        threshold = Crf().choose_threshold(work)
        typical = typical_root(sample.tags for sample in work.images.samples)
        groups = work.missing(batches(work.images.samples, self.batch, work.compute.batch_pixels), work.mask_file)
        if groups and self.crf:
            self.crf.compile(work.say)
        network = Segmenter.load(work.inputs["segmenter"]).to(work.compute.device)
        network = network.to(memory_format=torch.channels_last).eval()

        def jobs() -> Iterator[Any]:
            for samples, pixels in whole_images(groups, work.compute):
                images = normalised(pixels.to(work.compute.device), network.mean, network.std)
                with work.compute.autocast(network):
                    found = probabilities(network, images, [s.tags for s in samples], self.scales)
                for sample, rgb, (_, probs) in zip(samples, pixels, found, strict=True):
                    if work.mask_file(sample).exists():  # it is here to make the batch what it was
                        continue
                    expected = expected_threshold(threshold, len(sample.tags or ()), typical)
                    image = rgb.permute(1, 2, 0).contiguous().numpy()
                    yield delayed(self.write_mask)(
                        sample,
                        image,
                        1 - probs[0],
                        maps_file(work.inputs["maps"], sample),
                        work.mask_file(sample),
                        expected,
                    )

        missing = [sample for group in groups for sample in group if not work.mask_file(sample).exists()]
        work.in_parallel("pseudo-masks (a threshold for each)", jobs() if groups else (), len(missing))

    def write_mask(
        self, sample: Sample, image: np.ndarray, foreground: np.ndarray, maps_path: Path, path: Path, expected: float
    ) -> None:
        """Make one image's pseudo-mask, in whichever process; `foreground` [H, W] float is the network's."""
        maps = ResponseMaps.load(maps_path)
        if sample.saliency:
            foreground = read_saliency(sample.saliency, maps.size)
        choice = choose_threshold(image, maps, expected, self.crf, self.gt_prob, foreground=foreground)
        write_label_map(path, choice.labels)
