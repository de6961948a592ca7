"""The summary of a run that notebooks display."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tagmask.errors import TagmaskError
from tagmask.evaluate import Evaluation
from tagmask.formatting import format_duration
from tagmask.report.sections import map_rows, score_rows
from tagmask.report.templates import load_template
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder

if TYPE_CHECKING:
    from tagmask.recipe import Recipe
    from tagmask.results import Run


def summary_html(run: Run) -> str:
    """Return a summary of a run as an HTML fragment: its recipe, stages and figures, and the path of the report.

    All texts are escaped. The run does not have to be finished: the summary says what cannot be read.
    """
    folder = RunFolder(run.folder)
    problems: list[str] = []
    recipe = _read_recipe(run, problems)
    evaluation = _read_evaluation(folder, problems)
    return load_template("notebook.html.j2").render(
        folder=str(run.folder),
        description=recipe.description if recipe else "",
        problems=problems,
        stages=[_stage_status(folder.stage(name)) for name in recipe.stages] if recipe else [],
        maps=map_rows(evaluation.maps, evaluation.thresholds) if evaluation else [],
        scores=score_rows(evaluation.scores) if evaluation else [],
        report=str(folder.report_path) if folder.report_path.exists() else "",
    )


class _StageRow(NamedTuple):
    name: str
    status: str
    time: str


def _stage_status(stage: StageFolder) -> _StageRow:
    try:
        record = stage.read_record_if_any()
    except TagmaskError as error:
        return _StageRow(stage.name, str(error), "")
    if record is None:
        return _StageRow(stage.name, "not started", "")
    is_done = record.status == "done"
    return _StageRow(stage.name, "done" if is_done else "not finished", format_duration(record.seconds))


def _read_recipe(run: Run, problems: list[str]) -> Recipe | None:
    """Read the recipe of a run; if that fails, append the reason to `problems`."""
    try:
        return run.recipe
    except TagmaskError as error:
        problems.append(str(error))
        return None


def _read_evaluation(folder: RunFolder, problems: list[str]) -> Evaluation | None:
    """Read the figures of a run if there are any; if that fails, append the reason to `problems`."""
    try:
        return Evaluation.read(folder.evaluation_path) if folder.evaluation_path.exists() else None
    except TagmaskError as error:
        problems.append(str(error))
        return None
