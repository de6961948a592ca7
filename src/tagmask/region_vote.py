"""The vote of a run's stage `regions` on the masks of new images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tagmask.artifacts import digest
from tagmask.compute import Compute
from tagmask.data.samples import Sample
from tagmask.errors import RunError
from tagmask.label_map import present_classes
from tagmask.large_images import reduce_image
from tagmask.methods.regions import Regions
from tagmask.models.boundary_network import BoundaryNetwork, predict_image_boundaries
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.recipe import Recipe
from tagmask.run_folder import RunFolder


@dataclass(frozen=True)
class RegionVote:
    """What a stage `regions` does to the masks of a network, for images that are not those of the run.

    Attributes:
        method: the settings of the stage.
        boundary_network: prepared for inference; None if no source of regions needs it.
        compute: where it is computed.
        key: a digest of the settings and of all that they depend on.
    """

    method: Regions
    boundary_network: BoundaryNetwork | None
    compute: Compute
    key: str

    @classmethod
    def load(cls, recipe: Recipe, folder: RunFolder, segmenter: str, compute: Compute) -> RegionVote:
        """Load the vote on the masks of a stage that trains a segmentation network.

        Raises:
            RunError: no finished stage `regions` changes the masks of this stage, or its regions are made before a run.
        """
        name = find_region_stage(recipe, segmenter)
        if name is None:
            raise RunError(
                f"{folder.path} has no stage `regions` that changes the masks of {segmenter}: add one with "
                f"`tagmask add-stage {folder.path} regions --set vote_on=masks`."
            )
        method, stage = recipe.stages[name], folder.stage(name)
        assert isinstance(method, Regions)
        if not stage.is_done:
            raise RunError(f"stage {name!r} of {folder.path} is not finished: run the original command again first.")
        if unknown := {"sam", "folder"} & set(method.source):
            raise RunError(
                f"stage {name!r} of {folder.path} has regions of the source {min(unknown)}, which new images do not "
                "have; add a stage with regions of felzenszwalb, slic or boundaries."
            )
        network = None
        if "boundary" in method.inputs:
            network = BoundaryNetwork.load(folder.stage(method.inputs["boundary"]).path)
            network = prepare_for_inference_inplace(network, compute)
        return cls(method, network, compute, digest(stage.read_key_if_any()))

    def prepare(self, image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that changes the label map [H, W] uint8 of an image; a worker process can call it.

        Args:
            image: [H, W, 3] uint8 RGB. A large image is reduced, as in the stage.
        """
        image, network = reduce_image(image), self.boundary_network
        boundary = None if network is None else predict_image_boundaries(network, image, self.compute)
        return partial(_changed_labels, self.method, image, boundary)


def find_region_stage(recipe: Recipe, segmenter: str) -> str | None:
    """Return the last stage `regions` that changes the masks of a stage; None if there is none."""
    stages = [
        name
        for name, method in recipe.stages.items()
        if isinstance(method, Regions) and method.inputs.get("masks") == segmenter
    ]
    return stages[-1] if stages else None


def _changed_labels(method: Regions, image: np.ndarray, boundary: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Return a label map [H, W] uint8 after the vote on the (reduced) image; its classes take the place of tags."""
    sample = Sample("", "", tuple(present_classes(labels)))
    return method.changed_labels(sample, image, labels, boundary)
