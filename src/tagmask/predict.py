"""A trained segmentation network, applied to new images with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tagmask.artifacts import REMOVE, RUN_AGAIN, digest, read_model
from tagmask.base_predictor import BasePredictor
from tagmask.compute import Compute, explain_out_of_memory
from tagmask.data.samples import TaggedImages
from tagmask.errors import RunError
from tagmask.methods.segment import segment_in_tiles, write_missing_masks
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.models.saved_network import CONFIG_FILE
from tagmask.models.segmenter import SINGLE_PASS, InferenceConfig, Segmenter, SegmenterConfig
from tagmask.progress import Reporter
from tagmask.region_vote import RegionVote
from tagmask.stage import InferenceContext
from tagmask.stage_folder import StageFolder

BATCH_SIZE = 8
_MEMORY_ADVICE = "close other programs, use fewer workers (--workers), or use a larger machine"


@dataclass(frozen=True)
class Predictor(BasePredictor):
    """A segmentation network with the inference settings of its recipe.

    Attributes:
        network: the network, prepared for inference.
        inference: the factors by which images are resized, whether each view is used with its horizontal flip, and
            the dense CRF.
        compute: device and processes.
        weights_key: identifies the weights.
        regions: the vote that changes the network's masks; None: they stay as they are.
        load_regions: loads the vote of the run; None: the network does not belong to a run.

    Example:
        >>> predictor = tagmask.load("run").predictor
        >>> predictor.classes
        ('dog', 'person')
        >>> predictor.predict(tagmask.read_image("photos/beach/001.jpg")).shape
        (40, 48)
    """

    network: Segmenter
    inference: InferenceConfig
    compute: Compute
    weights_key: str = ""
    regions: RegionVote | None = None
    load_regions: Callable[[], RegionVote] | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        compute: Compute,
        weights_key: str = "",
        load_regions: Callable[[], RegionVote] | None = None,
    ) -> Predictor:
        """Load the network of a stage folder. Raises RunError if there is none."""
        network = prepare_for_inference_inplace(Segmenter.load(folder), compute)
        inference = read_model(folder / CONFIG_FILE, SegmenterConfig, remedy=RUN_AGAIN).test
        if inference is None:
            raise RunError(f"{folder / CONFIG_FILE} does not say how the network is applied: {REMOVE}.")
        return cls(network, inference, compute, weights_key, load_regions=load_regions)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; class id k is `classes[k - 1]`."""
        return self.network.classes

    @property
    def network_key(self) -> str:
        key = digest([self.weights_key, "single pass"]) if self.inference == SINGLE_PASS else self.weights_key
        return key if self.regions is None else digest([key, self.regions.key])

    @property
    def processes(self) -> Compute:
        return self.compute

    def single_pass(self) -> Predictor:
        return replace(self, inference=SINGLE_PASS)

    def with_regions(self) -> Predictor:
        if self.load_regions is None:
            return super().with_regions()
        return replace(self, regions=self.load_regions())

    def segment(self, image: np.ndarray, tags: Sequence[int] | None) -> np.ndarray:
        with explain_out_of_memory("the segmentation network", self.compute.device, _MEMORY_ADVICE):
            labels = segment_in_tiles(self.network, image, tags, self.inference, self.compute)
            return labels if self.regions is None else self.regions.prepare(image)(labels)

    def write_missing_masks(self, folder: StageFolder, images: TaggedImages, reporter: Reporter) -> None:
        context = InferenceContext(folder, images, self.compute, reporter)
        with explain_out_of_memory("the segmentation network", self.compute.device, _MEMORY_ADVICE):
            write_missing_masks(
                self.network, context, self.inference, BATCH_SIZE, self.regions.prepare if self.regions else None
            )
