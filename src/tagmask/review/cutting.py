"""How the masks of a run were cut from response maps, and cutting them again at other thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.refine.image_threshold import expected_threshold
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.settings import CrfSettings
from tagmask.results import Run
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder, ThresholdRecord


@dataclass(frozen=True)
class Cutting:
    """How the masks of a run were cut from response maps.

    Attributes:
        maps: the folder of the stage that made the maps; None if the run has none.
        threshold: at which they were cut, if it is known.
        crf: settings of the CRF.
        gt_prob: probability, in (0, 1), with which the CRF takes its input labels to be right.
        color_weight: weight of the colors of each label in the CRF (`refine_labels`).
    """

    maps: StageFolder | None
    threshold: ThresholdRecord | None
    crf: CrfSettings
    gt_prob: float
    color_weight: float

    @classmethod
    def of_run(cls, run: Run, stage: str) -> Self:
        """Return how the masks of a stage were cut, or the masks that they were made from.

        Raises:
            RunError: the recorded threshold is damaged.
        """
        recipe, folder, first = run.recipe, RunFolder(run.folder), stage
        while (source := recipe.stages[first].inputs.get("masks")) is not None:
            first = source
        maps = recipe.maps_behind(stage) or recipe.latest("maps")
        crf = getattr(recipe.stages[first], "crf", None)
        return cls(
            maps=folder.stage(maps) if maps else None,
            threshold=folder.stage(first).read_threshold_if_any(),
            crf=crf if isinstance(crf, CrfSettings) else CrfSettings(),
            gt_prob=getattr(recipe.stages[first], "gt_prob", 0.7),
            color_weight=getattr(recipe.stages[first], "color_weight", 0.0),
        )

    def expected_threshold(self, num_tags: int, typical: float) -> float | None:
        """Return the threshold of an image, or the expected one if each image has its own; None if it is not known."""
        if self.threshold is None:
            return None
        if not self.threshold.per_image:
            return self.threshold.threshold
        return expected_threshold(self.threshold.threshold, num_tags, typical)

    def cut(self, image: np.ndarray, maps: ResponseMaps, thresholds: Sequence[float]) -> np.ndarray:
        """Cut response maps at one threshold per class, and refine the mask with the dense CRF.

        As in the method `pseudo_masks`, a large image is cut at its reduced size, and the mask is then enlarged.

        Args:
            image: [h, w, 3] uint8, RGB, of the reduced size of the image (`tagmask.large_images`).
            maps: response maps of the image.
            thresholds: activation, 0..1, for each class of the maps.

        Returns:
            [H, W] uint8, 0 background and class ids.

        Raises:
            ValueError: the image has another size.
        """
        reduced = maps.resized(reduced_size(maps.size))
        return resize_labels(cut_maps(image, reduced, thresholds, self.crf, self.gt_prob, self.color_weight), maps.size)
