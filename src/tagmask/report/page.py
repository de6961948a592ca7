"""Render a report as one HTML page."""

from __future__ import annotations

from pathlib import Path

from tagmask.artifacts import write_text
from tagmask.report import class_sections, sections
from tagmask.report.content import Report
from tagmask.report.gallery import gallery_rows
from tagmask.report.templates import load_template
from tagmask.report.training_section import training_charts


def render(report: Report) -> str:
    """Return the page as one HTML document, which loads nothing and runs no script.

    All texts of the report are escaped.
    """
    examples, worst = gallery_rows(report)
    filled = {column for row in examples + worst for column, pictures in row.pictures.items() if pictures}
    classes = class_sections.class_rows(report)
    page = load_template("template.html.j2").render(
        report=report,
        summary=sections.summary_sentences(report),
        tiles=sections.tiles(report),
        headline=sections.headline_entries(report),
        worst_title="Worst images" if sections.training_entries(report) else "Images to look at first",
        scores=sections.score_rows(report.scores),
        maps=sections.map_rows(report.maps, report.thresholds),
        threshold_chart=sections.threshold_chart(report),
        classes=classes,
        num_unmeasured=len(report.classes) + 1 - len(classes),
        confusion=class_sections.confusion_rows(report),
        confusions=class_sections.confusion_sentences(report),
        training=training_charts(report),
        tags=class_sections.tag_rows(report),
        stages=sections.stage_rows(report),
        legend=class_sections.color_legend(report.classes),
        class_filter=class_sections.class_filter(report),
        columns={column: caption for column, caption in report.columns.items() if column in filled},
        examples=examples,
        worst=worst,
        num_pictures=sum(len(pictures) for row in examples + worst for pictures in row.pictures.values()),
        max_rows=class_sections.MAX_ROWS,
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
