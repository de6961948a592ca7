"""The sections of the report on the result: sentences, scores, response maps and stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from tagmask.evaluate import MapScores
from tagmask.formatting import format_count, format_duration, format_percent
from tagmask.measure import SegmentationReport
from tagmask.report.charts import Axis, Series, line_chart
from tagmask.report.content import Report, StageSummary

_INPUT_NAMES = {"segmenter": "network"}  # artifact kinds in the words of the report
_COMPARED = "Compared with the ground truth (the correct masks),"
_EXPLAIN_MIOU = (
    "mIoU (mean intersection over union) is the overlap of masks and ground truth divided by their union, averaged "
    "over the classes and the background; 100 % is perfect."
)


def summary_sentences(report: Report) -> list[str]:
    """Return the first paragraphs of the page, which describe the run and its result."""
    sentences = [_describe_task(report)]
    entries = headline_entries(report)
    for entry in entries:
        scores = report.scores[entry]
        explanation = _EXPLAIN_MIOU if entry == entries[0] else ""
        sentences.append(
            f"{_COMPARED} the masks of {entry} reach {format_percent(scores.miou)} mIoU, and "
            f"{format_percent(scores.pixel_accuracy)} of their pixels are correct. {explanation}".rstrip()
        )
    if entries:
        known = [(v, k) for k, v in enumerate(report.scores[entries[0]].iou[1:].tolist()) if math.isfinite(v)]
        if len(known) > 1:
            (best, best_id), (worst, worst_id) = max(known), min(known)
            sentences.append(
                f"The class with the highest IoU is {report.classes[best_id]} ({format_percent(best)}), the class "
                f"with the lowest is {report.classes[worst_id]} ({format_percent(worst)})."
            )
    elif report.maps:
        best_maps = max(map_rows(report.maps, report.thresholds), key=lambda row: row.best_miou)
        sentences.append(
            f"{_COMPARED} the response maps of {best_maps.name} are the best: cut at the threshold "
            f"{best_maps.best_threshold:.2f}, they reach {format_percent(best_maps.best_miou)} mIoU. {_EXPLAIN_MIOU}"
        )
    else:
        sentences.append("There is no ground truth, so the quality of the masks is unknown: look at the examples.")
    return sentences


def headline_entries(report: Report) -> list[str]:
    """Return the entries of `Report.scores` that are the result: the recommended masks, then the held-out images.

    Without a recommendation, the masks of the last stage are the result.
    """
    of_training = training_entries(report)
    recommended = [entry for entry in of_training if entry == f"{report.recommended} ({report.training_set})"]
    return [*(recommended or of_training[-1:]), *(entry for entry in report.scores if entry not in of_training)]


def training_entries(report: Report) -> list[str]:
    """Return the entries of `Report.scores` that measure masks of the training images."""
    return [entry for entry in report.scores if entry.endswith(f" ({report.training_set})")]


def _describe_task(report: Report) -> str:
    count = report.counts.get("training images")
    images = "images" if count is None else f"{format_count(count)} images"
    if len(report.classes) == 1:
        tags, labels = f"which say only whether an image shows {report.classes[0]}", report.classes[0]
    else:
        tags, labels = "which say only what classes an image shows", f"one of {len(report.classes)} classes"
    return (
        f"tagmask learned from {images} and their tags, {tags}. The masks that it made label each pixel as {labels} "
        "or as background."
    )


def tiles(report: Report) -> list[tuple[str, str]]:
    """Return the figures at the top of the page as (value, label) pairs."""
    figures = [(format_percent(report.scores[name].miou), f"mIoU of {name}") for name in headline_entries(report)]
    figures += [(format_count(count), label) for label, count in list(report.counts.items())[:3]]
    if report.stages:
        figures.append((format_duration(sum(stage.seconds for stage in report.stages)), "total time"))
    return figures


class ScoreRow(NamedTuple):
    """The scores of the masks of one stage, in 0..1."""

    name: str
    miou: float
    boundary_f: float
    pixel_accuracy: float
    ignored: float


def score_rows(scores: Mapping[str, SegmentationReport]) -> list[ScoreRow]:
    """Return the table of the scores of masks."""
    return [ScoreRow(name, s.miou, s.boundary_f, s.pixel_accuracy, s.ignored) for name, s in scores.items()]


class MapRow(NamedTuple):
    """The figures of the response maps of one stage.

    Attributes:
        name: "stage (images)".
        threshold: the threshold that the run used; Otsu's threshold if no stage cut these maps; NaN if there is none.
        per_image: whether the run used one threshold per image; `threshold` is then NaN.
        miou: mIoU at `threshold`; NaN if there is none.
        best_threshold: the threshold with the highest mIoU.
        best_miou: mIoU at `best_threshold`.
        interval: the thresholds between which mIoU stays within two points of the best.
        oracle_miou: mIoU if each image is cut at its own best threshold.
        imbalance: see `ActivationStats`.
        gap: see `ActivationStats`.
    """

    name: str
    threshold: float
    per_image: bool
    miou: float
    best_threshold: float
    best_miou: float
    interval: tuple[float, float]
    oracle_miou: float
    imbalance: float
    gap: float


def map_rows(maps: Mapping[str, MapScores], thresholds: Mapping[str, float]) -> list[MapRow]:
    """Return the table of the figures of response maps.

    The mIoU at a threshold is that of the nearest threshold at which the maps were measured.

    Args:
        maps: see `Report.maps`.
        thresholds: see `Report.thresholds`.
    """
    rows = []
    for name, (curve, auto_threshold, activation) in maps.items():
        threshold, miou = thresholds.get(name, auto_threshold), math.nan
        if math.isfinite(threshold):
            miou = float(curve.miou[np.abs(curve.thresholds - threshold).argmin()])
        rows.append(
            MapRow(
                name=name,
                threshold=threshold,
                per_image=name in thresholds and math.isnan(threshold),
                miou=miou,
                best_threshold=curve.best_threshold,
                best_miou=curve.best_miou,
                interval=curve.interval,
                oracle_miou=curve.oracle_miou,
                imbalance=activation.imbalance,
                gap=activation.gap,
            )
        )
    return rows


def threshold_chart(report: Report) -> Markup:
    """Return the chart of mIoU as a function of the threshold; empty if no maps were measured."""
    rows = map_rows(report.maps, report.thresholds)
    lines = [
        Series(
            row.name,
            scores.curve.thresholds.tolist(),
            (100 * scores.curve.miou).tolist(),
            (("used", row.threshold, 100 * row.miou), ("best", row.best_threshold, 100 * row.best_miou)),
            row.interval,
        )
        for row, scores in zip(rows, report.maps.values(), strict=True)
    ]
    best = "; ".join(f"{row.name}: best {format_percent(row.best_miou)} at {row.best_threshold:.2f}" for row in rows)
    x, y = Axis("threshold", "{:.2f}".format), Axis("mIoU, %", "{:.4g}".format)
    return line_chart(lines, x, y, label=f"mIoU as a function of the threshold. {best}")


class StageRow(NamedTuple):
    """A stage, what it reads, its time divided by that of the slowest stage, and its time per image as text."""

    stage: StageSummary
    reads: str
    fraction: float
    per_image: str


def stage_rows(report: Report) -> list[StageRow]:
    """Return the stages in the order in which they ran."""
    slowest = max((stage.seconds for stage in report.stages), default=0) or 1
    return [
        StageRow(
            stage,
            ", ".join(f"{_INPUT_NAMES.get(kind, kind)} of {source}" for kind, source in stage.inputs.items()),
            stage.seconds / slowest,
            format_duration(stage.seconds / stage.num_images) if stage.num_images else "",
        )
        for stage in report.stages
    ]
