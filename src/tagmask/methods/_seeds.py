"""The confident seeds of a stage on disk, for the methods that learn from them (AMN, IRN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import delayed

from tagmask.data.images import read_image
from tagmask.data.samples import Sample
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps
from tagmask.refine.label_maps import ConfidentSeeds
from tagmask.stage import StageContext, maps_path


@dataclass(frozen=True)
class SeedFolder:
    """`seeds/<id>.png` of a stage; called with a sample it is a layer "labels" of the training (`Layers`)."""

    stage: Path

    def file(self, sample: Sample) -> Path:
        return self.stage / "seeds" / f"{sample.id}.png"

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {"labels": read_label_map(self.file(sample))}


def write_seeds(seeds: ConfidentSeeds, context: StageContext) -> SeedFolder:
    """Write the seeds of every image that has none yet, from the stage's input maps, in parallel."""
    folder = SeedFolder(context.folder)
    groups = context.pending_shard([[sample] for sample in context.images.samples], folder.file)
    if groups and seeds.crf:
        seeds.crf.compile(context.info)
    jobs = (
        delayed(_write)(seeds, sample.image, maps_path(context.inputs["maps"], sample), folder.file(sample))
        for (sample,) in groups
    )
    context.run_parallel("seeds", jobs, len(groups))
    context.compute.barrier()
    return folder


def _write(seeds: ConfidentSeeds, image: str, maps_path: Path, path: Path) -> None:
    write_label_map(path, seeds.label_map(read_image(image), ResponseMaps.load(maps_path)))
