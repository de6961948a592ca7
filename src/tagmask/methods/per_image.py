"""Pseudo-masks at a threshold for each image, chosen with the help of a first segmentation network (ours)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from joblib import delayed
from pydantic import Field

from tagmask.data.saliency import read_saliency, saliency_hash
from tagmask.data.samples import Sample, TaggedImages
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods._settings import Scales
from tagmask.methods._threshold import threshold_of_run
from tagmask.methods.segment import segmented
from tagmask.models.inference import prepare_for_inference
from tagmask.models.segmenter import Segmenter
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, typical_root
from tagmask.refine.settings import CrfSettings
from tagmask.stage import ArtifactKind, Method, StageContext, maps_path


class PerImage(Method):
    """Cut each image's maps where the region agrees best with a network that learned from one global threshold.

    To be placed after a first `crf` and `segment`, and before a second `segment`. Where an image has saliency, this
    takes the network's place, which then adds nothing (docs/thresholds.md).
    """

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "segmenter")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    scales: Scales = Field((1.0,), description="of the network's input, each with its mirror")
    batch: int = Field(8, ge=1, description="images of one size that the network sees together")
    gt_prob: float = Field(0.7, gt=0, lt=1, description="how sure the CRF is of the labels it starts from")
    crf: CrfSettings | None = Field(CrfSettings(), description="null: no CRF, just the thresholds")

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return saliency_hash(images)

    def run(self, context: StageContext) -> None:
        threshold = threshold_of_run(context, "per-image")
        typical = typical_root(sample.tags for sample in context.images.samples)
        network = prepare_for_inference(Segmenter.load(context.inputs["segmenter"]), context.compute)
        seen, missing = segmented(network, context, scales=self.scales, batch_size=self.batch)
        if missing and self.crf:
            self.crf.compile(context.info)
        jobs = (
            delayed(self.write_mask)(
                sample,
                image,
                1 - probs[0],
                maps_path(context.inputs["maps"], sample),
                context.mask_path(sample),
                expected_threshold(threshold, len(sample.tags or ()), typical),
            )
            for sample, image, _, probs in seen
        )
        context.run_parallel("pseudo-masks (a threshold for each)", jobs, missing)

    def write_mask(
        self, sample: Sample, image: np.ndarray, foreground: np.ndarray, maps_path: Path, path: Path, expected: float
    ) -> None:
        """Make one image's pseudo-mask, in whichever process; `foreground` [H, W] float is the network's."""
        maps = ResponseMaps.load(maps_path)
        if sample.saliency:
            foreground = read_saliency(sample.saliency, maps.size)
        choice = choose_threshold(image, maps, expected, self.crf, self.gt_prob, foreground=foreground)
        write_label_map(path, choice.labels)
