"""Confident seeds on disk, for the methods that learn from them (AMN, IRN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from joblib import delayed

from tagmask.data.samples import Sample
from tagmask.label_map import write_label_map
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.refine.dense_crf import compile_crf_kernels
from tagmask.refine.map_cutting import confident_seeds
from tagmask.refine.settings import SeedSettings
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder


@dataclass(frozen=True)
class SeedFolder:
    """The seeds `seeds/<id>.png` of a stage, which training reads as `ExtraTargets` of the name "labels"."""

    stage: StageFolder

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {"labels": self.stage.read_label_map("seeds", sample.id)}


def make_seeds(settings: SeedSettings, context: StageContext) -> SeedFolder:
    """Write the seeds of every image that has none yet, from the stage's input maps, in parallel.

    The seeds of an image with a reviewed mask are this mask.
    The seeds of a large image have its reduced size (`tagmask.large_images`), as `TrainingSet` expects.
    """
    context.make_files("seeds", lambda stage: partial(_write_missing_seeds, settings))
    return SeedFolder(context.folder)


def _write_missing_seeds(settings: SeedSettings, context: StageContext) -> None:
    path = partial(context.folder.file_path, "seeds")
    groups = context.pending_shard([[sample] for sample in context.images.samples], path)
    if groups and settings.crf:
        compile_crf_kernels(context.reporter.info)
    jobs = (
        delayed(_write_seeds)(settings, sample, context.inputs["maps"].maps_path(sample.id), path(sample.id))
        for (sample,) in groups
    )
    context.run_in_workers("seeds", jobs, len(groups))


def _write_seeds(settings: SeedSettings, sample: Sample, maps_path: Path, seeds_path: Path) -> None:
    maps = ResponseMaps.load(maps_path)
    size = reduced_size(maps.size)
    if sample.reviewed_mask:
        seeds = resize_labels(sample.reviewed_mask.read(), size)
    else:
        seeds = confident_seeds(sample.read_reduced_image(), maps.resized(size), settings)
    write_label_map(seeds_path, seeds)
