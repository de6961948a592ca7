"""Response maps and instances from response maps and a boundary, by the random walk (IRN)."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tagmask.maps import ResponseMaps, strongest
from tagmask.refine.instances import Instance, find_instances
from tagmask.refine.random_walk import propagate


class Walk(BaseModel):
    """The random walk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    power: float = Field(1.0, gt=0, description="of the maps before the walk; AMN's code has 1.3")
    radius: int = Field(5, ge=1, description="in cells of 4 pixels; nearer cells are connected")
    beta: float = Field(10, gt=0, description="the larger, the fewer ways across weak boundaries")
    steps: int = Field(256, ge=0)

    def walked(self, maps: ResponseMaps, boundary: np.ndarray, threads: int | None = None) -> ResponseMaps:
        """The maps after the walk with the boundary [h, w] in 0..1, divided by the image's highest activation."""
        start = self.start(maps).maps
        settings = self.model_dump(exclude={"power"})
        walked = propagate(start, boundary, **settings, threads=threads) if len(start) else start
        highest = strongest(walked, maps.size)[0].max()
        return ResponseMaps(maps.classes, walked / (highest or 1), maps.size)

    def instances(
        self,
        maps: ResponseMaps,
        boundary: np.ndarray,
        displacement: np.ndarray,
        threshold: float,
        threads: int | None = None,
    ) -> list[Instance]:
        """As `find_instances`, with these settings."""
        settings = self.model_dump(exclude={"power"})
        return find_instances(
            self.start(maps), boundary, displacement, threshold=threshold, **settings, threads=threads
        )

    def start(self, maps: ResponseMaps) -> ResponseMaps:
        return ResponseMaps(maps.classes, maps.maps.astype(np.float32) ** self.power, maps.size)
