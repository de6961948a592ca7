"""Pseudo-masks from response maps: a threshold against background, then the dense CRF (methods, section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from joblib import delayed
from pydantic import Field

from tagmask.artifacts import read_json, write_json, write_label_map
from tagmask.data.images import read_image
from tagmask.data.samples import Sample
from tagmask.maps import ResponseMaps
from tagmask.measure import ActivationHistogram
from tagmask.refine.seeds import crf_label_map
from tagmask.refine.settings import CrfSettings
from tagmask.stage import Kind, Method, Work, maps_file

Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]
THRESHOLD_FILE = "threshold.json"


class Crf(Method):
    """Cut the maps at one threshold and let the dense CRF move the masks to the image's edges."""

    needs: ClassVar[tuple[Kind, ...]] = ("maps",)
    makes: ClassVar[tuple[Kind, ...]] = ("masks",)

    threshold: Threshold = Field(
        "auto", description="of activation, 0..1, above which a pixel is a class; auto: Otsu's on all maps of the run"
    )
    gt_prob: float = Field(0.7, gt=0, lt=1, description="how sure the CRF is of the labels it starts from")
    crf: CrfSettings | None = Field(CrfSettings(), description="null: no CRF, just the threshold")

    def run(self, work: Work) -> None:
        threshold = self.choose_threshold(work)
        groups = work.missing([[sample] for sample in work.images.samples], work.mask_file)
        if groups and self.crf:
            self.crf.compile(work.say)
        jobs = (
            delayed(self.write_mask)(sample, maps_file(work.inputs["maps"], sample), work.mask_file(sample), threshold)
            for (sample,) in groups
        )
        work.in_parallel("pseudo-masks (CRF)" if self.crf else "pseudo-masks", jobs, len(groups))

    def choose_threshold(self, work: Work) -> float:
        """The threshold given, or Otsu's over the strongest activation of every pixel of the run."""
        file = work.folder / THRESHOLD_FILE
        if file.exists():
            return float(read_json(file)["threshold"])
        threshold = self.threshold
        if threshold == "auto":
            activations = ActivationHistogram()
            tagged = work.compute.share([sample for sample in work.images.samples if sample.tags])
            with work.progress("choosing the threshold", len(tagged)) as advance:
                for sample in tagged:
                    activations.update(ResponseMaps.load(maps_file(work.inputs["maps"], sample)).maps)
                    advance(1)
            threshold = activations.otsu()  # summed over the processes
            work.say(f"threshold {threshold:.2f} (Otsu's on the activations)")
        work.compute.barrier()  # all have looked for the file before it is there
        if work.compute.main:
            write_json(file, {"threshold": threshold})
        return float(threshold)

    def write_mask(self, sample: Sample, maps_path: Path, mask_path: Path, threshold: float) -> None:
        """Make one image's pseudo-mask, in whichever process."""
        write_label_map(mask_path, self.mask(read_image(sample.image), ResponseMaps.load(maps_path), threshold))

    def mask(self, image: np.ndarray, maps: ResponseMaps, threshold: float) -> np.ndarray:
        """Image [H, W, 3] uint8 and its maps → label map [H, W] uint8."""
        return crf_label_map(image, maps, threshold, self.crf, self.gt_prob)
