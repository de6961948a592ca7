"""What each section of the page says: figures as rows and charts, words for those who do not know the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from tagmask.label_map import IGNORE_INDEX, voc_palette
from tagmask.report.charts import Axis, Series, line_chart

if TYPE_CHECKING:
    from tagmask.report.page import Report, StageSummary

MANY = 30  # classes; more are folded away
COLUMNS = {
    "image": "",
    "map": "where the classifier looked",
    "seed": "the map, cut at the threshold",
    "refined": "moved to the image’s edges",
    "final": "the last stage’s mask",
    "truth": "the true mask",
}
_NO_CURVE = {"epoch", "lr", "seconds", "data_wait"}  # entries of a history that are no losses
_PALETTE = voc_palette()


def percent(share: float) -> str:
    """0.4561 → "45.6"; nan → "–"."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "–"


def plain(value: float) -> str:
    """2.345 → "2.35"; nan → "–"."""
    return f"{value:.2f}" if not math.isnan(value) else "–"


def count(value: int | str) -> str:
    """12345 → "12,345"; text as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """0.42 → "0.4 s", 75 → "1 min 15 s", 3700 → "1 h 2 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def color(class_id: int) -> str:
    """A class's colour in the VOC palette, for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*_PALETTE[3 * (class_id % 256) :][:3])


def colors(classes: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, name) of all that a label map may hold."""
    return [(color(k), name) for k, name in [(0, "background"), *enumerate(classes, 1), (IGNORE_INDEX, "unsure")]]


def summary(report: Report) -> list[str]:
    """The run in plain sentences."""
    n = next((report.counts[key] for key in ("training images", "images") if key in report.counts), None)
    images = f"{count(n)} images" if n is not None else "images"
    one = len(report.classes) == 1
    given = f"whether it shows {report.classes[0]}" if one else "the list of what it shows"
    made = "that" if one else f"one of the {len(report.classes)} classes"
    told = [
        f"tagmask was given {images} and, for each, only {given}. From these it made masks: "
        f"every pixel is marked as {made}, or as background."
    ]
    if not report.scores and report.maps:
        row = max(map_results(report), key=lambda row: row.best_miou)
        told.append(
            f"Compared with true masks, the response maps of {row.name} are the best: cut at {row.best_threshold:.2f} "
            f"they reach {percent(row.best_miou)} % mIoU (the overlap of mask and truth, averaged over the classes)."
        )
        return told
    if not report.scores:
        return [*told, "No true masks were given, so how good these are is not known: look at the pictures below."]
    name, final = list(report.scores.items())[-1]
    told.append(
        f"Compared with true masks, {name} reaches {percent(final.miou)} % mIoU (the overlap of mask and truth, "
        f"averaged over the classes; 100 % is perfect), and {percent(final.pixel_accuracy)} % of its pixels are right."
    )
    rated = [(x, k) for k, x in enumerate(final.iou[1:].tolist()) if math.isfinite(x)]
    if len(rated) > 1:
        (best, first), (worst, last) = max(rated), min(rated)
        told.append(
            f"The best class is {report.classes[first]} ({percent(best)} %), "
            f"the weakest {report.classes[last]} ({percent(worst)} %)."
        )
    return told


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """The few figures that come first: (value, unit, what it is)."""
    found = [(count(value), "", what) for what, value in list(report.counts.items())[:3]]
    if report.scores:
        name, final = list(report.scores.items())[-1]
        found.insert(0, (percent(final.miou), "%", f"mIoU of {name}"))
    if report.stages:
        found.append((duration(sum(stage.seconds for stage in report.stages)), "", "total time"))
    return found


class ResultRow(NamedTuple):
    """Shares in 0..1."""

    name: str
    miou: float
    boundary_f: float
    pixel_accuracy: float
    unsure: float


def results(report: Report) -> list[ResultRow]:
    """The figures of all masks that were measured."""
    return [ResultRow(name, s.miou, s.boundary_f, s.pixel_accuracy, s.unsure) for name, s in report.scores.items()]


class MapRow(NamedTuple):
    """Figures of response maps; `chosen` is the threshold that the run used, else the automatic one."""

    name: str
    chosen: float
    miou: float
    best_threshold: float
    best_miou: float
    interval: tuple[float, float]
    oracle_miou: float
    imbalance: float
    gap: float


def map_results(report: Report) -> list[MapRow]:
    """Figures of all response maps that were measured; of thresholds between the measured ones, at the nearest."""
    rows = []
    for name, (curve, auto, activation) in report.maps.items():
        chosen, miou = report.chosen.get(name, auto), math.nan
        if math.isfinite(chosen):
            miou = float(curve.miou[np.abs(curve.thresholds - chosen).argmin()])
        rows.append(
            MapRow(name, chosen, miou, curve.best_threshold, curve.best_miou, curve.interval, curve.oracle_miou,
                   activation.imbalance, activation.gap)
        )  # fmt: skip
    return rows


def threshold_chart(report: Report) -> Markup:
    """mIoU against the threshold."""
    rows = map_results(report)
    lines = [
        Series(
            row.name,
            curve.thresholds.tolist(),
            (100 * curve.miou).tolist(),
            (("chosen", row.chosen, 100 * row.miou), ("best", row.best_threshold, 100 * row.best_miou)),
            row.interval,
        )
        for row, (curve, _, _) in zip(rows, report.maps.values(), strict=True)
    ]
    label = "; ".join(f"{row.name}: best {percent(row.best_miou)} % at {row.best_threshold:.2f}" for row in rows)
    x, y = Axis("threshold", "{:.2f}".format), Axis("mIoU, %", "{:.4g}".format)
    return line_chart(lines, x, y, label=f"mIoU against the threshold. {label}")


class ClassRow(NamedTuple):
    """A class's IoU in each of the scores, 0..1 or nan."""

    color: str
    name: str
    iou: list[float]


def per_class(report: Report) -> list[ClassRow]:
    """Background and classes, the lowest IoU of the last score first; those measured nowhere are left out."""
    if not report.scores:
        return []
    table = np.stack([scores.iou for scores in report.scores.values()], axis=1)
    rows = [ClassRow(color(k), name, table[k].tolist()) for k, name in enumerate(("background", *report.classes))]
    measured = [row for row in rows if not all(map(math.isnan, row.iou))]
    return sorted(measured, key=lambda row: (math.isnan(row.iou[-1]), row.iou[-1]))


class TrainingChart(NamedTuple):
    """A stage's training: its curves, and what there is to say of it."""

    stage: str
    names: list[str]
    chart: Markup
    caption: str


def training(report: Report) -> list[TrainingChart]:
    """The losses of each stage that trained, an epoch a point."""
    found = []
    for stage, history in report.histories.items():
        names = [name for name in dict.fromkeys(k for entry in history for k in entry) if name not in _NO_CURVE]
        epochs = [entry["epoch"] for entry in history]
        lines = [Series(name, epochs, [_number(entry.get(name)) for entry in history]) for name in names]
        last = ", ".join(f"{line.name} {line.y[-1]:.3g}" for line in lines if line.y)
        chart = line_chart(
            lines, Axis("epoch", whole=True), Axis("loss", "{:.3g}".format), label=f"Training of {stage}. Last: {last}"
        )
        if chart:
            found.append(TrainingChart(stage, names, chart, _training_caption(history, last)))
    return found


def _training_caption(history: Sequence[Mapping[str, Any]], last: str) -> str:
    seconds = sum(_number(entry.get("seconds", 0)) for entry in history)
    told = f"{len(history)} epoch{'s' * (len(history) != 1)}, {last} at the end; {duration(seconds)}"
    waits = [_number(entry["data_wait"]) for entry in history if "data_wait" in entry]
    return told + (f", {100 * np.mean(waits):.0f} % of it waiting for data." if waits else ".")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def tag_counts(report: Report) -> list[tuple[str, str, int, float]]:
    """(colour, class, images, share of the most frequent class's), the most frequent first."""
    ids = {name: k for k, name in enumerate(report.classes, 1)}
    most = max(report.tags_per_class.values(), default=0) or 1
    rows = [(color(ids.get(name, 0)), name, n, n / most) for name, n in report.tags_per_class.items()]
    return sorted(rows, key=lambda row: -row[2])


def times(report: Report) -> list[tuple[StageSummary, float, str]]:
    """(stage, share of the slowest one's time, time of an image in words), the slowest first."""
    most = max((stage.seconds for stage in report.stages), default=0) or 1
    ordered = sorted(report.stages, key=lambda stage: -stage.seconds)
    return [(s, s.seconds / most, _each(s.seconds / s.images) if s.images else "") for s in ordered]


def _each(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)
