"""The content of a report, before it is laid out as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tagmask.evaluate import MapScores
from tagmask.measure import SegmentationReport
from tagmask.stage import ArtifactKind


@dataclass(frozen=True)
class Picture:
    """A picture of an image: the image itself, a response map or a mask drawn over it.

    Attributes:
        pixels: [H, W, 3] uint8, RGB.
        class_id: the class whose response map it is; None: it is of no single class.
        file: the path of the file that it shows, relative to the page; empty if there is none.
    """

    pixels: np.ndarray
    class_id: int | None = None
    file: str = ""


@dataclass(frozen=True)
class Example:
    """An image of the report, with its maps and masks.

    Attributes:
        id: the id of the image.
        note: a text beside the id; it can be empty.
        pictures: column title → pictures. The titles are keys of `Report.columns`; the cell of a column without a
            picture says "none".
        tags: the class ids of the image; None: not known.
    """

    id: str
    note: str
    pictures: Mapping[str, Sequence[Picture]]
    tags: Sequence[int] | None = ()


@dataclass(frozen=True)
class NextStep:
    """Something to do after the run.

    Attributes:
        text: one or two sentences.
        command: a command line that does it; it can be empty.
    """

    text: str
    command: str = ""


@dataclass(frozen=True)
class StageSummary:
    """A stage of a run.

    Attributes:
        name: the name of the stage.
        method: the name of its method; empty for the prediction of held-out images.
        inputs: the kind of artifact that the stage reads → the name of the stage that made it.
        seconds: the time that it took.
        num_images: the number of images that it processed.
        status: "done", "running" or "not started".
    """

    name: str
    method: str
    inputs: Mapping[ArtifactKind, str]
    seconds: float
    num_images: int
    status: str


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. The page leaves out the section of an empty field.

    Attributes:
        title: the name of the run.
        description: the description of the recipe, one line.
        recipe: the recipe as YAML.
        classes: the class names; class id k is `classes[k - 1]`.
        counts: what is counted → its number, e.g. "training images".
        images_per_class: class name → number of images that have this tag.
        stages: the stages in the order in which they ran.
        histories: stage name → one entry per epoch, as `training.fit` writes them.
        maps: the figures of response maps, by "stage (images)".
        thresholds: for those of `maps` that were cut, the threshold; NaN if each image has its own.
        scores: the scores of masks, by "stage (images)".
        columns: the columns of the examples, in order: title → caption.
        examples: images from all over the data set.
        worst: the images with the lowest mIoU; without ground truth, those with the largest doubt.
        notes: sentences on versions, bad images and missing ground truth.
        outputs: what the run made → its path relative to the page.
        warnings: sentences on tags from which nothing can be learned.
        training_set: the name of the training images in `maps`, `thresholds` and `scores`.
        recommended: the stage whose masks are recommended; empty: that of the last masks.
        recommendation: one sentence that says which masks are recommended, and why; it can be empty.
        next_steps: what to do next.
    """

    title: str
    description: str
    classes: tuple[str, ...]
    recipe: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    images_per_class: Mapping[str, int] = field(default_factory=dict)
    stages: Sequence[StageSummary] = ()
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    maps: Mapping[str, MapScores] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, SegmentationReport] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    worst: Sequence[Example] = ()
    notes: Sequence[str] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    training_set: str = ""
    recommended: str = ""
    recommendation: str = ""
    next_steps: Sequence[NextStep] = ()
