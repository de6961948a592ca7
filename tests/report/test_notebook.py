from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.report.html_page import HOSTILE, Page

from tagmask.artifacts import write_json, write_text
from tagmask.data.source import DataSource
from tagmask.evaluate import Evaluation
from tagmask.recipe import Recipe
from tagmask.report.content import Report
from tagmask.report.notebook import summary_html
from tagmask.results import Run
from tagmask.run_folder import RunFolder

RECIPE = Recipe.model_validate({"description": "CAM, then a CRF", "stages": {"cam": {}, "pseudo_masks": {}}})


def write_run(path: Path, recipe: Recipe = RECIPE) -> RunFolder:
    """Write a run that was interrupted in its second stage."""
    folder = RunFolder(path)
    write_text(folder.recipe_path, recipe.to_yaml())
    for name, status in (("cam", "done"), ("pseudo_masks", "running")):
        write_json(folder.stage(name).record_path, {"status": status, "key": {}, "seconds": 75.2})
    return folder


def summary(folder: RunFolder) -> str:
    html = Run(folder.path, DataSource(root="photos"))._repr_html_()
    assert html == summary_html(Run(folder.path, DataSource(root="photos")))
    return html


def test_finished_run(tmp_path: Path, make_report: Callable[..., Report]) -> None:
    folder, report = write_run(tmp_path), make_report()
    evaluation = Evaluation(("cat", "cow"), maps=dict(report.maps), scores=dict(report.scores))
    write_json(folder.evaluation_path, evaluation.to_json())
    write_text(folder.report_path, "")
    html = summary(folder)
    page = Page(html)
    assert page.row("cam") == ["cam", "done", "1 min 15 s"]
    curve = report.maps["cam (train)"].curve
    best = f"{100 * curve.best_miou:.1f} % (at the best threshold, {curve.best_threshold:.2f})"
    assert page.row("maps of cam (train)") == ["maps of cam (train)", best]
    assert page.row("masks of segment (val)") == ["masks of segment (val)", "88.9 %"]
    text = "".join(page.text)
    assert "CAM, then a CRF" in text
    assert str(tmp_path) in text
    assert str(folder.report_path) in text


def test_unfinished_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    page = Page(summary(folder))
    assert page.row("pseudo_masks")[:2] == ["pseudo_masks", "not finished"]
    assert "Report" not in "".join(page.text)
    folder.stage("pseudo_masks").record_path.unlink()
    assert Page(summary(folder)).row("pseudo_masks") == ["pseudo_masks", "not started"]


def test_folder_without_a_run(tmp_path: Path) -> None:
    text = "".join(Page(summary(RunFolder(tmp_path / "missing"))).text)
    assert "recipe.yaml does not exist" in text


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    write_text(folder.evaluation_path, "{}")
    write_json(folder.stage("cam").record_path, {"status": "unknown"})
    page = Page(summary(folder))
    assert f"{folder.evaluation_path} is damaged" in "".join(page.text)
    assert f"{folder.stage('cam').record_path} is damaged" in page.row("cam")[1]


def test_all_texts_are_escaped(tmp_path: Path, make_report: Callable[..., Report]) -> None:
    name = HOSTILE.replace("/", "")
    folder = write_run(tmp_path / name, RECIPE.model_copy(update={"description": HOSTILE}))
    figures = make_report().scores["segment (val)"]
    write_json(folder.evaluation_path, Evaluation(("cat", "cow"), scores={HOSTILE: figures}).to_json())
    html = summary(folder)
    assert "<script" not in html
    assert "<img" not in html
    text = "".join(Page(html).text)
    assert text.count(HOSTILE) == 2
    assert name in text
