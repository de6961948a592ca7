"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagmask.api import EVALUATION, Run
from tagmask.artifacts import read_json
from tagmask.data.check import CheckReport
from tagmask.dryrun.estimate import DryRun, gigabytes
from tagmask.evaluate import latest
from tagmask.measure import SegmentationReport

MAX_ROWS = 40


def run_json(run: Run) -> dict[str, Any]:
    """What a finished run is, for scripts."""
    return {
        "run": str(run.folder),
        **({"masks": str(run.masks)} if latest(run.recipe, "masks") else {"maps": str(run.maps_folder)}),
        "report": str(run.report),
        "evaluation": read_json(run.folder / EVALUATION),
    }


def print_run(run: Run) -> None:
    """Where everything is, and how good where that is known."""
    console = Console()
    evaluation = read_json(run.folder / EVALUATION)
    if evaluation["scores"] or evaluation["maps"]:
        console.print(_results(evaluation))
    else:
        console.print("No true masks were given, so how good the masks are cannot be known: look at the report.")
    made = f"masks   {run.masks}" if latest(run.recipe, "masks") else f"maps    {run.maps_folder}"
    console.print(f"{made}\nreport  {run.report}", markup=False, highlight=False, soft_wrap=True)


def maps_json(run: Run) -> dict[str, Any]:
    """Where a run's last response maps are, for scripts."""
    return {"run": str(run.folder), "maps": str(run.maps_folder), "evaluation": read_json(run.folder / EVALUATION)}


def print_maps(run: Run) -> None:
    """Where a run's last response maps are, and how good all of its maps are where that is known."""
    evaluation = read_json(run.folder / EVALUATION)
    if evaluation["maps"]:
        print_curves(evaluation)
    Console().print(f"maps    {run.maps_folder}\nreport  {run.report}", markup=False, highlight=False, soft_wrap=True)


def print_curves(evaluation: dict[str, Any]) -> None:
    """The figures of all response maps, side by side."""
    curves = evaluation["maps"]
    names = [escape(name.replace(" (", "\n(", 1)) for name in curves]  # the stage, and the images
    table = Table("", *names, title="mIoU of the response maps against the true masks")
    for what, figure in {
        "automatic": lambda c: _miou_at(c, c["auto_threshold"]),
        "best": lambda c: _miou_at(c, c["best_threshold"]),
        "within 2 points": lambda c: "{:.2f} to {:.2f}".format(*c["interval"]),
        "width": lambda c: f"{c['width']:.2f}",
        "area": lambda c: _percent(c["area"]),
        "per image": lambda c: _percent(c["oracle_miou"]),
        "10 / 50 / 90 %": lambda c: " / ".join(_plain(t) for t in c["image_percentiles"]),
        "per class": lambda c: _percent(c["class_miou"]),
        "imbalance": lambda c: _plain(c["imbalance"]),
        "gap": lambda c: _plain(c["gap"]),
    }.items():
        table.add_row(what, *map(figure, curves.values()))
    console = Console()
    console.print(table)
    console.print(
        "automatic: Otsu's threshold; per image, per class: each at its own best; 10 / 50 / 90 %: percentiles of the "
        "images' best thresholds"
    )


def print_scores(scores: SegmentationReport, classes: Sequence[str]) -> None:
    """Per class IoU, and the means."""
    console = Console()
    table = Table("class", "IoU", title=f"mIoU {_percent(scores.miou)}")
    for name, value in list(zip(("background", *classes), scores.iou.tolist(), strict=True))[: MAX_ROWS + 1]:
        table.add_row(escape(name), _percent(value))
    console.print(table)
    if len(classes) > MAX_ROWS:
        console.print(f"... and {len(classes) - MAX_ROWS} classes more; --json prints all")
    console.print(
        f"pixel accuracy {_percent(scores.pixel_accuracy)}, boundary F {_percent(scores.boundary_f)}, "
        f"unsure pixels {_percent(scores.unsure)}"
    )


def print_rehearsal(found: DryRun) -> None:
    """What a run would take."""
    console = Console()
    table = Table("stage", "what", "each", "times", "time", title="What the whole run would take, about")
    for timing in found.timings:
        each, times = (_duration(timing.each), f"{timing.units:,} {timing.unit}") if timing.unit else ("", "")
        table.add_row(escape(timing.stage), escape(timing.what), each, times, _duration(timing.seconds))
    table.add_section()
    table.add_row("all", "", "", "", _duration(found.seconds))
    console.print(table)
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in found.disk.items())
    seen = ", ".join(f"{name} {gigabytes(size)}" for name, size in found.memory.items() if size)
    for line in (
        f"disk    {gigabytes(found.disk_needed)} of {gigabytes(found.disk_free)} that are free ({parts})",
        f"memory  at most seen: {seen}",
        *(
            f"weights of {stage}: {of['weights']}, {'on this machine' if of['here'] else 'to be downloaded'}"
            for stage, of in found.weights.items()
        ),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def print_check(found: CheckReport) -> None:
    """What is in a data set, and what is wrong with it."""
    console = Console()
    facts = Table(title=escape(found.name), show_header=False)
    for name, value in _facts(found):
        facts.add_row(name, value)
    classes = Table("class", "images", "most often with")
    for k, name in list(enumerate(found.classes))[:MAX_ROWS]:
        classes.add_row(escape(name), f"{found.images_per_class[k]:,}", escape(_companion(found, k)))
    console.print(facts, classes)
    if len(found.classes) > MAX_ROWS:
        console.print(f"... and {len(found.classes) - MAX_ROWS} classes more; --json prints all")
    for severity in ("error", "warning"):
        problems = [problem for problem in found.problems if problem.severity == severity]
        for problem in problems[:MAX_ROWS]:
            console.print(f"{severity}: {problem}", markup=False, highlight=False, soft_wrap=True)
        if len(problems) > MAX_ROWS:
            console.print(f"... and {len(problems) - MAX_ROWS} {severity}s more; --json prints all")
    console.print(
        "ready to run" if found.ok else "correct the errors, or run with --skip-bad to leave these images out"
    )


def _facts(found: CheckReport) -> Iterator[tuple[str, str]]:
    yield "images", f"{found.num_images:,}" + (f" and {found.num_bad:,} bad ones" if found.num_bad else "")
    yield "classes", f"{len(found.classes):,}"
    spread = ", ".join(f"{count:,} with {n}" for n, count in enumerate(found.tags_per_image) if count)
    yield "tags an image", f"{found.mean_tags:.2f} ({spread})" if spread else "not known"
    if found.num_untagged:
        yield "without known tags", f"{found.num_untagged:,}"
    yield "with true masks", f"{found.num_masks:,}"
    yield "with saliency", f"{found.num_saliency:,}"
    for name, sides in (("height", found.heights), ("width", found.widths)):
        if sides:
            yield f"{name}, pixels", f"{sides[1]:,} ({sides[0]:,} to {sides[2]:,})"


def _companion(found: CheckReport, k: int) -> str:
    """The class that most images of class k show too, and in how many of them."""
    others = [(count, j) for j, count in enumerate(found.co_occurrence[k]) if j != k and count]
    if not others:
        return ""
    count, j = max(others)
    return f"{found.classes[j]} ({100 * count / found.images_per_class[k]:.0f} %)"


def _results(evaluation: dict[str, Any]) -> Table:
    table = Table("", "mIoU", "best threshold", "boundary F", title="Measured against the true masks")
    for name, curve in evaluation["maps"].items():
        chosen, best = (_miou_at(curve, t) for t in (evaluation["chosen"].get(name), curve["best_threshold"]))
        table.add_row(escape(f"maps of {name}"), chosen, best, "-")
    for name, scores in evaluation["scores"].items():
        table.add_row(escape(f"masks of {name}"), _percent(scores["miou"]), "-", _percent(scores["boundary_f"]))
    return table


def _miou_at(curve: dict[str, Any], threshold: float | None) -> str:
    if threshold is None:
        return "-"
    nearest = int(np.abs(np.array(curve["thresholds"]) - threshold).argmin())
    return f"{_percent(curve['miou'][nearest])} at {threshold:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
