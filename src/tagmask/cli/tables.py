"""Print runs, their figures and dry runs on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tagmask.cli.options import MAX_ROWS
from tagmask.formatting import (
    MISSING,
    format_bytes,
    format_count,
    format_duration,
    format_percent,
    format_two_decimals,
)
from tagmask.judge import Recommendation
from tagmask.recipe import read_stage_names
from tagmask.run_folder import RunFolder

if TYPE_CHECKING:
    from tagmask.dryrun import DryRun
    from tagmask.evaluate import Evaluation, MapScores
    from tagmask.measure import SegmentationReport
    from tagmask.measure.image_score import ImageScore
    from tagmask.results import Run


def run_json(run: Run) -> dict[str, Any]:
    """Return where the results of a run are, and its figures, as JSON values."""
    folders = {kind: str(path) for kind, path in _maps_and_masks_folders(run).items()}
    recommendation = Recommendation.read_if_any(RunFolder(run.folder))
    return {
        "run": str(run.folder), **folders, "recommendation": recommendation and recommendation.model_dump(mode="json"),
        "report": str(run.report), "evaluation": run.evaluation.to_json(),
    }  # fmt: skip


def print_run(run: Run) -> None:
    """Print the figures of a run, if there is ground truth, and where its results are."""
    console = Console()
    evaluation = run.evaluation
    if evaluation.scores or evaluation.maps:
        console.print(_results_table(evaluation))
    else:
        console.print("There is no ground truth, so the quality of the masks is unknown: look at the report.")
    folders = _maps_and_masks_folders(run)
    kind = "masks" if "masks" in folders else "maps"
    if recommendation := Recommendation.read_if_any(RunFolder(run.folder)):
        _print_lines(f"recommended masks: {recommendation.stage} ({recommendation.reason})")
    _print_lines(f"{kind:6}  {folders[kind]}", f"report  {run.report}")


def print_maps(run: Run) -> None:
    """Print the figures of all response maps of a run, if there is ground truth, and where the last maps are."""
    if run.evaluation.maps:
        print_curves(run.evaluation)
    _print_lines(f"maps    {_maps_and_masks_folders(run)['maps']}", f"report  {run.report}")


def print_curves(evaluation: Evaluation) -> None:
    """Print the figures of all response maps as a table with one column per stage."""
    rows: dict[str, Callable[[MapScores], str]] = {
        "Otsu's threshold": lambda scores: _miou_at(scores, scores.auto_threshold),
        "best threshold": lambda scores: _miou_at(scores, scores.curve.best_threshold),
        "interval": lambda scores: " to ".join(map(format_two_decimals, scores.curve.interval)),
        "width of interval": lambda scores: format_two_decimals(scores.curve.width),
        "area under curve": lambda scores: format_percent(scores.curve.area),
        "best per image": lambda scores: format_percent(scores.curve.oracle_miou),
        "10 / 50 / 90 %": lambda scores: " / ".join(map(format_two_decimals, scores.curve.image_percentiles)),
        "best per class": lambda scores: format_percent(scores.curve.class_miou),
        "imbalance": lambda scores: format_two_decimals(scores.activation.imbalance),
        "gap": lambda scores: format_two_decimals(scores.activation.gap),
    }
    names = [escape(name.replace(" (", "\n(", 1)) for name in evaluation.maps]  # the stage, and below it the images
    table = Table("", *names, title="mIoU of the response maps")
    for title, text in rows.items():
        table.add_row(title, *map(text, evaluation.maps.values()))
    console = Console()
    console.print(table)
    console.print(
        "interval: the thresholds at which mIoU is within two points of the best; best per image, best per class: mIoU "
        "if each image or class has its own best threshold; 10 / 50 / 90 %: percentiles of the images' best thresholds"
    )


def print_scores(scores: SegmentationReport, classes: Sequence[str]) -> None:
    """Print the IoU of each class, and the means."""
    console = Console()
    table = Table("class", "IoU", title=f"mIoU {format_percent(scores.miou)}")
    for name, iou in list(zip(("background", *classes), scores.iou.tolist(), strict=True))[: MAX_ROWS + 1]:
        table.add_row(escape(name), format_percent(iou))
    console.print(table)
    if len(classes) > MAX_ROWS:
        console.print(f"... and {len(classes) - MAX_ROWS} more classes; --json prints all")
    console.print(
        f"pixel accuracy {format_percent(scores.pixel_accuracy)}, "
        f"boundary F-score {format_percent(scores.boundary_f)}, ignored pixels {format_percent(scores.ignored)}"
    )


def print_image_scores(scores: Sequence[ImageScore], classes: Sequence[str]) -> None:
    """Print the scores of images, one per line; the column of mIoU only if there is ground truth."""
    has_ground_truth = any(not math.isnan(score.miou) for score in scores)
    columns = ["doubt", "disagreement", "color\ncontrast", "class\noverlap", "border", "missing tags"]
    image = Column("image", overflow="fold")  # a name that is cut names no image
    table = Table(image, *columns, *(["mIoU"] if has_ground_truth else []), title="Images to look at first")
    for score in scores:
        parts = map(format_two_decimals, score[1:6])
        missing = ", ".join(classes[class_id - 1] for class_id in score.missing_tags)
        miou = [format_percent(score.miou)] if has_ground_truth else []
        table.add_row(escape(score.image), *parts, escape(missing), *miou)
    console = Console()
    (console if console.is_terminal else Console(width=10_000)).print(table)  # in a file, a name stays on one line
    console.print(
        "doubt: mean of disagreement (of the network and the pseudo-masks), 1 − color contrast (of foreground and "
        "background), class overlap (in the response maps) and border (the fraction of it that is foreground). --csv "
        "prints more columns."
    )


def print_dry_run(estimate: DryRun) -> None:
    """Print the estimated time, disk space and memory of a run."""
    table = Table("stage", "loop", "per unit", "units", "time", title="Estimate for the whole run")
    for timing in estimate.timings:
        is_loop = timing.unit is not None
        per_unit = format_duration(timing.seconds_per_unit) if is_loop else ""
        units = f"{format_count(timing.count)} {timing.unit}" if is_loop else ""
        row = (escape(timing.stage), escape(timing.description), per_unit, units, format_duration(timing.seconds))
        table.add_row(*row)
    table.add_section()
    table.add_row("total", "", "", "", format_duration(estimate.seconds))
    Console().print(table)
    disk = ", ".join(f"{name} {format_bytes(size)}" for name, size in estimate.disk.items())
    memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in estimate.memory.items() if size)
    _print_lines(
        f"disk    {format_bytes(estimate.disk_needed)} of {format_bytes(estimate.disk_free)} free ({disk})",
        f"memory  {memory} at most",
        *(
            f"weights of {stage}: {weights.source}, {'on this machine' if weights.is_local else 'to be downloaded'}"
            for stage, weights in estimate.weights.items()
        ),
    )


def _results_table(evaluation: Evaluation) -> Table:
    table = Table("", "mIoU", "best threshold", "boundary F-score", title="Measured against ground truth")
    for name, maps in evaluation.maps.items():
        used = _miou_at(maps, evaluation.thresholds.get(name, maps.auto_threshold))  # as in the report
        table.add_row(escape(f"maps of {name}"), used, _miou_at(maps, maps.curve.best_threshold), MISSING)
    for name, scores in evaluation.scores.items():
        row = (escape(f"masks of {name}"), format_percent(scores.miou), MISSING, format_percent(scores.boundary_f))
        table.add_row(*row)
    return table


def _miou_at(scores: MapScores, threshold: float) -> str:
    """Return the mIoU at the nearest measured threshold as text; a threshold of NaN gives a dash."""
    if math.isnan(threshold):
        return MISSING
    nearest = int(np.abs(scores.curve.thresholds - threshold).argmin())
    return f"{format_percent(scores.curve.miou[nearest])} at {format_two_decimals(threshold)}"


def _maps_and_masks_folders(run: Run) -> dict[str, Path]:
    """Return the folders of the last maps and the recommended masks of a finished run.

    This imports no method of the run, because that would import PyTorch.
    """
    stages = read_stage_names(str(RunFolder(run.folder).recipe_path))
    paths = [run.folder / stage / kind for stage in stages for kind in ("maps", "masks")]
    folders = {path.name: path for path in paths if path.is_dir()}
    recommendation = Recommendation.read_if_any(RunFolder(run.folder))
    if recommendation and recommendation.stage in stages:
        folders["masks"] = run.folder / recommendation.stage / "masks"
    return folders


def _print_lines(*lines: str) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
