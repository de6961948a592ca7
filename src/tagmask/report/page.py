"""Render a report as one HTML page."""

from __future__ import annotations

from pathlib import Path

from tagmask.artifacts import write_text
from tagmask.report import sections
from tagmask.report.content import Report
from tagmask.report.pictures import thumbnail
from tagmask.report.templates import load_template


def render(report: Report) -> str:
    """Return the page as one HTML document, which loads nothing and runs no script.

    All texts of the report are escaped.
    """
    filled = {column for example in (*report.examples, *report.worst) for column in example.pictures}
    classes = sections.class_rows(report)
    page = load_template("template.html.j2").render(
        report=report,
        summary=sections.summary_sentences(report),
        tiles=sections.tiles(report),
        scores=sections.score_rows(report.scores),
        maps=sections.map_rows(report.maps, report.thresholds),
        threshold_chart=sections.threshold_chart(report),
        classes=classes,
        num_unmeasured=len(report.classes) + 1 - len(classes),
        training=sections.training_charts(report),
        tags=sections.tag_rows(report),
        stages=sections.stage_rows(report),
        legend=sections.color_legend(report.classes),
        columns={column: caption for column, caption in report.columns.items() if column in filled},
        thumbnail=thumbnail,
        max_rows=sections.MAX_ROWS,
    )
    return page.lstrip()


def write_report(report: Report, path: Path) -> None:
    """Write the page to a file, atomically.

    Args:
        report: the content of the page.
        path: the HTML file.

    Raises:
        RunError: the file cannot be written.
    """
    # file names that are not valid UTF-8 are shown with "?"
    write_text(path, render(report).encode("utf-8", "replace").decode("utf-8"))
