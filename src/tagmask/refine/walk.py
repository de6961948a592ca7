"""Label maps and instances from response maps and a boundary, by the random walk (IRN)."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tagmask.maps import ResponseMaps, upsample
from tagmask.refine.instances import Instance, find_instances
from tagmask.refine.random_walk import propagate


class Walk(BaseModel):
    """The random walk and the label map after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    power: float = Field(1.0, gt=0, description="of the maps before the walk; AMN's code has 1.3")
    radius: int = Field(5, ge=1, description="in cells of 4 pixels; nearer cells are connected")
    beta: float = Field(10, gt=0, description="the larger, the fewer ways across weak boundaries")
    steps: int = Field(256, ge=0)
    threshold: float = Field(0.25, ge=0, le=1, description="share of the image's highest activation, below: background")

    def label_map(self, maps: ResponseMaps, boundary: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Maps and the boundary [h, w] in 0..1 → label map [H, W] uint8. Maps that are all 0 are background."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        walked = propagate(
            self.start(maps).maps, boundary, radius=self.radius, beta=self.beta, steps=self.steps, threads=threads
        )
        highest = upsample(walked, maps.size).max(initial=0)
        return ResponseMaps(maps.classes, walked / (highest or 1), maps.size).label_map(self.threshold)

    def instances(
        self, maps: ResponseMaps, boundary: np.ndarray, displacement: np.ndarray, threads: int | None = None
    ) -> list[Instance]:
        """As `find_instances`, with these settings."""
        settings = self.model_dump(exclude={"power"})
        return find_instances(self.start(maps), boundary, displacement, **settings, threads=threads)

    def start(self, maps: ResponseMaps) -> ResponseMaps:
        return ResponseMaps(maps.classes, maps.maps.astype(np.float32) ** self.power, maps.size)
