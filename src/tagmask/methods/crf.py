"""Pseudo-masks from response maps: a threshold against background, then the dense CRF (methods, section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from joblib import delayed
from pydantic import Field

from tagmask.data.images import read_image
from tagmask.data.saliency import read_saliency, saliency_hash
from tagmask.data.samples import Sample, TaggedImages
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods._threshold import Threshold, threshold_of_run
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, typical_root
from tagmask.refine.label_maps import ConfidentSeeds, crf_label_map
from tagmask.refine.settings import CrfSettings
from tagmask.stage import ArtifactKind, Method, StageContext, maps_path


class Crf(Method):
    """Cut the maps at one threshold and let the dense CRF move the masks to the image's edges."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    threshold: Threshold = Field(
        "auto",
        description="of activation, 0..1, above which a pixel is a class; auto: Otsu's on all maps of the run; "
        "per-image: one for each image, near Otsu's (11 times the CRF's time; best where the data has saliency)",
    )
    margin: float = Field(
        0.0, ge=0, lt=0.5, description="pixels that are a class at threshold − margin alone are unsure (255); 0: none"
    )
    gt_prob: float = Field(0.7, gt=0, lt=1, description="how sure the CRF is of the labels it starts from")
    crf: CrfSettings | None = Field(CrfSettings(), description="null: no CRF, just the threshold")

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return saliency_hash(images) if self.threshold == "per-image" else None

    def run(self, context: StageContext) -> None:
        threshold = threshold_of_run(context, self.threshold)
        groups = context.pending_shard([[sample] for sample in context.images.samples], context.mask_path)
        if groups and self.crf:
            self.crf.compile(context.info)
        typical = typical_root(sample.tags for sample in context.images.samples)
        jobs = (
            delayed(self.write_mask)(
                sample, maps_path(context.inputs["maps"], sample), context.mask_path(sample), threshold, typical
            )
            for (sample,) in groups
        )
        context.run_parallel("pseudo-masks (CRF)" if self.crf else "pseudo-masks", jobs, len(groups))

    def write_mask(self, sample: Sample, maps_path: Path, mask_path: Path, threshold: float, typical: float) -> None:
        """Make one image's pseudo-mask, in whichever process."""
        image, maps, saliency = read_image(sample.image), ResponseMaps.load(maps_path), None
        if self.threshold == "per-image" and len(maps.classes):
            threshold = expected_threshold(threshold, len(maps.classes), typical)
            saliency = read_saliency(sample.saliency, maps.size) if sample.saliency else None
        write_label_map(mask_path, self.mask(image, maps, threshold, saliency))

    def mask(
        self, image: np.ndarray, maps: ResponseMaps, threshold: float, saliency: np.ndarray | None = None
    ) -> np.ndarray:
        """Image [H, W, 3] uint8 and its maps → label map [H, W] uint8. `saliency` [H, W] float: for `per-image`."""
        if self.threshold == "per-image":
            choice = choose_threshold(image, maps, threshold, self.crf, self.gt_prob, foreground=saliency)
            if not self.margin:
                return choice.labels
            threshold = choice.threshold
        if not self.margin:
            return crf_label_map(image, maps, threshold, self.crf, self.gt_prob)
        fg, bg = min(1, threshold + self.margin), max(0, threshold - self.margin)
        return ConfidentSeeds(fg=fg, bg=bg, gt_prob=self.gt_prob, crf=self.crf).label_map(image, maps)
