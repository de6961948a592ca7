"""Print the report of `tagmask check` on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagmask import large_images
from tagmask.cli.options import MAX_ROWS
from tagmask.data.check import CheckReport
from tagmask.formatting import format_count

EVERYDAY_NOUNS = (
    "all classes are everyday nouns: with a GPU, a model that takes words, such as SAM 3, may give better masks "
    "without training (docs/guides/text-prompts.md compares them)"
)


def print_check(report: CheckReport) -> None:
    """Print what a data set contains, and what is wrong with it."""
    console = Console()
    facts = Table(title=escape(report.name), show_header=False)
    for name, value in _facts(report):
        facts.add_row(name, value)
    classes = Table("class", "images", "most often together with")
    for index, name in list(enumerate(report.classes))[:MAX_ROWS]:
        count = format_count(report.images_per_class[index])
        classes.add_row(escape(name), count, escape(_most_frequent_companion(report, index)))
    console.print(facts, classes)
    if len(report.classes) > MAX_ROWS:
        console.print(f"... and {len(report.classes) - MAX_ROWS} more classes; --json prints all")
    for severity in ("error", "warning"):
        problems = [problem for problem in report.problems if problem.severity == severity]
        for problem in problems[:MAX_ROWS]:
            console.print(f"{severity}: {problem}", markup=False, highlight=False, soft_wrap=True)
        if len(problems) > MAX_ROWS:
            console.print(f"... and {len(problems) - MAX_ROWS} more {severity}s; --json prints all")
    for warning in report.tag_warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if report.everyday_nouns:
        console.print(EVERYDAY_NOUNS, markup=False, highlight=False, soft_wrap=True)
    console.print("ready to run" if report.ok else "correct the errors, or leave these images out with --skip-bad")


def _facts(report: CheckReport) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each row of the first table."""
    bad = f" and {format_count(report.num_bad)} bad ones" if report.num_bad else ""
    yield "images", format_count(report.num_images) + bad
    yield "classes", format_count(len(report.classes))
    counts = [f"{format_count(count)} with {n}" for n, count in enumerate(report.tags_per_image) if count]
    yield "tags per image", f"{report.mean_tags:.2f} ({', '.join(counts)})" if counts else "unknown"
    if report.num_untagged:
        yield "images without tags", format_count(report.num_untagged)
    yield "ground-truth masks", format_count(report.num_masks)
    yield "saliency maps", format_count(report.num_saliency)
    if report.num_reviewed:
        yield "reviewed masks", format_count(report.num_reviewed)
    for name, sides in (("height", report.heights), ("width", report.widths)):
        if sides:
            smallest, median, largest = map(format_count, sides)
            yield f"{name} in pixels", f"{median} ({smallest} to {largest})"
    if report.largest:
        image_id, megapixels = report.largest
        yield "largest image", f"{escape(image_id)} ({megapixels:.1f} megapixels)"
    if report.num_large:
        limit = f"{large_images.MAX_PIXELS / 1e6:.1f}"
        yield f"above {limit} megapixels", f"{format_count(report.num_large)} (are reduced, or cut into tiles)"


def _most_frequent_companion(report: CheckReport, index: int) -> str:
    """Return the class that most images of a class show, too, and their percentage; empty if there is none."""
    others = [(count, other) for other, count in enumerate(report.co_occurrence[index]) if other != index and count]
    if not others:
        return ""
    count, other = max(others)
    return f"{report.classes[other]} ({100 * count / report.images_per_class[index]:.0f} %)"
