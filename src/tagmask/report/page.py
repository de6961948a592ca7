"""The report: what it shows, and the HTML page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tagmask.artifacts import write_text
from tagmask.evaluate import MapScores
from tagmask.measure import SegmentationReport
from tagmask.report import sections
from tagmask.report.pictures import thumbnail


@dataclass(frozen=True)
class Example:
    """An image of the report and what became of it.

    Attributes:
        id: the image's.
        note: what to say about it; may be empty.
        columns: title → picture [H, W, 3] uint8; "image", "map", "seed", "refined", "final", "truth" come in this
            order, any others after them. What is missing is left empty.
    """

    id: str
    note: str
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StageSummary:
    """A stage of a run: `seconds` it took for so many `images`; `status` is "done" or else."""

    name: str
    method: str
    seconds: float
    images: int
    status: str


@dataclass(frozen=True)
class Report:
    """All that the page shows. What is empty leaves its section out.

    Attributes:
        title: of the run.
        description: of the recipe, a sentence.
        recipe: as YAML.
        classes: names; class id k is classes[k - 1].
        counts: what there is of the data, in words → how many.
        tags_per_class: class → images that have it.
        stages: in the order in which they ran.
        histories: stage → an entry an epoch, as `training.fit` writes them.
        maps: what was measured → the figures of its response maps.
        chosen: of these, the threshold that the run used.
        scores: what was measured → its figures; the last one is what the run is judged by.
        examples: pictures of some images.
        worst: pictures of the images with the lowest scores.
        notes: sentences on what cannot be known, what was left out, versions, seed.
        places: what was made → where it is.
    """

    title: str
    description: str
    recipe: str
    classes: tuple[str, ...]
    counts: Mapping[str, int | str]
    tags_per_class: Mapping[str, int]
    stages: Sequence[StageSummary]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    maps: Mapping[str, MapScores]
    chosen: Mapping[str, float]
    scores: Mapping[str, SegmentationReport]
    examples: Sequence[Example]
    worst: Sequence[Example]
    notes: Sequence[str]
    places: Mapping[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """The page: one HTML document that loads nothing and runs no script.

    Names, notes and the recipe are data: whatever they hold is shown as text.
    """
    used = {column for example in (*report.examples, *report.worst) for column in example.columns}
    known = [column for column in sections.COLUMNS if column in used]
    per_class = sections.per_class(report)
    page = _template().render(
        report=report,
        summary=sections.summary(report),
        tiles=sections.tiles(report),
        results=sections.results(report),
        maps=sections.map_results(report),
        threshold_chart=sections.threshold_chart(report),
        per_class=per_class,
        unmeasured=len(report.classes) + 1 - len(per_class),
        training=sections.training(report),
        tags=sections.tag_counts(report),
        times=sections.times(report),
        colors=sections.colors(report.classes),
        columns={column: sections.COLUMNS.get(column, "") for column in [*known, *sorted(used - set(known))]},
        thumbnail=thumbnail,
        many=sections.MANY,
    )
    return str(page).lstrip()


def write_report(report: Report, file: Path) -> None:
    """Write `render` to a file, atomically. Raises RunError if it cannot be written."""
    # A name that is no valid UTF-8 is shown with "?" instead of not at all.
    write_text(file, render(report).encode("utf-8", "replace").decode("utf-8"))


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=sections.percent, plain=sections.plain, count=sections.count, duration=sections.duration
    )
    return environment.get_template("template.html.j2")
