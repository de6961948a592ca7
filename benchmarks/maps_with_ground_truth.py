"""Which response maps per_image_threshold.py and region_vote.py measure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagmask import DataSource
from tagmask.data.samples import Sample, TaggedImages
from tagmask.maps import ResponseMaps
from tagmask.measure.metrics import ActivationHistogram
from tagmask.stage_folder import StageFolder


@dataclass(frozen=True)
class MapsWithGroundTruth:
    """Response maps of a run, and images with ground truth.

    Attributes:
        stage: contains the maps.
        images: all images of the run.
        samples: those that are measured.
    """

    stage: StageFolder
    images: TaggedImages
    samples: Sequence[Sample]

    @property
    def tagged(self) -> list[Sample]:
        """All images that show a class."""
        return [sample for sample in self.images.samples if sample.tags]

    def otsu_threshold(self) -> float:
        """Return Otsu's threshold of the strongest activation of every pixel of all images."""
        histogram = ActivationHistogram()
        for sample in self.tagged:
            histogram.update(ResponseMaps.load(self.stage.maps_path(sample.id)).maps)
        return float(histogram.otsu())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read_maps` reads."""
    parser.add_argument("stage", type=Path, help="stage folder with maps/")
    parser.add_argument("data", help="the data of the run, with ground-truth masks")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--images", type=int, help="number of images, drawn at random (seed 0); default: all")
    parser.add_argument("--skip", type=int, default=0, help="number of images to leave out at the start of that order")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")


def read_maps(arguments: argparse.Namespace) -> MapsWithGroundTruth:
    """Return what the arguments name."""
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    images = DataSource(root=arguments.data, split=arguments.split, classes=classes).read()
    order = np.random.default_rng(0).permutation(len(images))[arguments.skip :][: arguments.images]
    return MapsWithGroundTruth(StageFolder(arguments.stage), images, [images.samples[i] for i in order])
