"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tagmask.cli.tables import _results_table, print_image_scores
from tagmask.data.samples import TaggedImages
from tagmask.measure.image_score import ImageScore
from tagmask.report.sections import map_rows
from tests.report.fake_run import FakeRun


def test_terminal_and_report_show_the_same_figure_of_maps_that_no_stage_has_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_images: TaggedImages
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run = FakeRun(tmp_path, toy_images, {"cam": "cam", "later": "layercam"}, {"cam": 4, "later": 8}, {}, {})
    evaluation = run.evaluation()
    for row in map_rows(evaluation.maps, evaluation.thresholds):
        Console().print(_results_table(evaluation))
        assert f"{100 * row.miou:.1f} % at {row.threshold:.2f}" in capsys.readouterr().out


def test_a_long_name_stays_on_one_line_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a/folder/" + "x" * 100
    print_image_scores([ImageScore(name, *[0.5] * 7, (1,), 1, 1, 0.3)], ["cat"])
    assert any(name in line for line in capsys.readouterr().out.splitlines())
