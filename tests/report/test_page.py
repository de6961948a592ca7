"""The page is read back with html.parser: what it says, that it is whole, and that data stays data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tagmask.data.scenes import make_scene
from tagmask.errors import RunError
from tagmask.report.page import Example, Report, render, write_report

VOID = {"meta", "link", "img", "br"}
SECTIONS = {"results", "examples", "worst", "threshold", "classes", "training", "time", "data", "notes", "recipe"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what is on the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "style" not in self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data.strip()

    def row(self, name: str, column: int = 0) -> list[str]:
        """The cells of the first row whose cell in this column is `name`, without empty ones (bars)."""
        return next([cell for cell in row if cell] for row in self.rows if len(row) > column and row[column] == name)


def test_the_figures_are_those_given(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    # 9 × 9 pixels, 3 columns a class; one of nine rows unsure: each IoU is 8/9, and so is the accuracy.
    assert page.row("segment (val)")[0:2] == ["segment (val)", "88.9"]
    assert page.row("segment (val)")[3:] == ["88.9", "11.1"]
    assert page.row("crf (train)")[1] == "77.8"
    assert page.row("cat")[1:] == ["77.8", "88.9"]
    text = "".join(page.text)
    assert "1,464 images" in text
    assert "segment (val) reaches 88.9 % mIoU" in text
    curve = make_report().maps["cam (train)"].curve
    low, high = curve.interval
    assert page.row("cam (train)") == [
        "cam (train)", f"{100 * curve.miou[25]:.1f}", "0.25", f"{100 * curve.best_miou:.1f}",
        f"{curve.best_threshold:.2f}", f"{low:.2f}–{high:.2f}", f"{100 * curve.oracle_miou:.1f}", "3.25", "0.12",
    ]  # fmt: skip
    assert page.row("crf(running)")[1:] == ["6 min 40 s", "273 ms"]
    assert page.row("cam")[1:] == ["1 min 15 s", "51 ms"]
    assert "Seed 7." in text
    assert "epochs: 5" in text
    assert "run/masks" in text
    assert "3 epochs, loss 0.333 at the end; 27 s." in text


def test_pictures_come_in_order_and_missing_ones_are_marked(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    header = next(row for row in page.rows if row and row[0] == "image")
    assert header == ["image", "finalthe last stage’s mask", "truththe true mask", "my own"]
    alt = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alt == ["image of a/1", "truth of a/1", "my own of a/1", "image of a/2", "final of a/2"]
    assert sum(row.count("none") for row in page.rows) == 3


def test_nothing_is_loaded_and_nothing_runs(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?:", render(make_report()))
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_links_lead_to_sections_that_are_there(make_report: Callable[..., Report]) -> None:
    for changes, gone in [
        ({}, set()),
        ({"scores": {}, "maps": {}, "chosen": {}}, {"results", "threshold", "classes"}),
        ({"worst": [], "histories": {}}, {"worst", "training"}),
        ({"examples": [], "worst": []}, {"examples", "worst"}),
        ({"stages": [], "notes": [], "recipe": ""}, {"time", "notes", "recipe"}),
        ({"counts": {}, "tags_per_class": {}}, {"data"}),
    ]:
        page = Page(render(make_report(**changes)))
        links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
        assert set(page.ids) == links == SECTIONS - gone
        assert len(page.ids) == len(set(page.ids))


def test_without_truth_the_page_says_so(make_report: Callable[..., Report]) -> None:
    html = render(make_report(scores={}, maps={}, chosen={}))
    assert "No true masks were given, so how good these are is not known" in html
    assert "nan" not in "".join(Page(html).text)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


def test_names_notes_and_recipes_are_text(make_report: Callable[..., Report]) -> None:
    plain, made = make_report(), make_report(classes=(HOSTILE, "b"))
    picture = np.zeros((4, 4, 3), np.uint8)
    hostile = make_report(
        classes=(HOSTILE, "b"),
        title=HOSTILE,
        description=HOSTILE,
        recipe=f"</pre>{HOSTILE}",
        counts={HOSTILE: HOSTILE},
        stages=[type(s)(HOSTILE, HOSTILE, s.seconds, s.images, HOSTILE) for s in made.stages],
        histories={HOSTILE: [{"epoch": 1, HOSTILE: 0.5}, {"epoch": 2, HOSTILE: 0.4}]},
        maps={HOSTILE: made.maps["cam (train)"]},
        chosen={HOSTILE: 0.25},
        scores={HOSTILE: made.scores["segment (val)"]},
        examples=[Example(HOSTILE, HOSTILE, {HOSTILE: picture})],
        worst=[],
        notes=[HOSTILE],
        places={HOSTILE: HOSTILE},
    )
    html = render(hostile)
    page = Page(html)
    assert "<script" not in html
    assert set(page.tags) <= set(Page(render(plain)).tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "".join(page.text).count(HOSTILE) >= 20
    title = html[html.index("<title>threshold") :]  # a chart's tooltip
    assert title[: title.index("</title>")].count("&lt;script&gt;") == 1


@pytest.mark.parametrize("n", [1, 30, 31, 254])
def test_any_number_of_classes(make_report: Callable[..., Report], n: int) -> None:
    names = ("cat", "cow", *(f"class {k}" for k in range(3, 255)))[:n]
    unmeasured = {"scores": {}, "maps": {}, "chosen": {}}  # the fixture's truth has two classes
    report = (
        replace(make_report(), classes=names, tags_per_class={"cat": 3}, **unmeasured) if n == 1 else make_report(names)
    )
    html = render(report)
    page = Page(html)
    assert ("only whether it shows cat" in html) == (n == 1)
    rows = [row for row in page.rows if row and row[0] in names and len(row) == 3]
    assert len([row for row in rows if row[1] == ""]) >= n
    assert (f"{n - 30} more classes" in html) == (n > 30)
    if n > 2:
        assert f"{n - 2} class{'es are' if n > 3 else ' is'} neither in the masks nor in the truth" in html


def test_a_report_of_nothing(make_report: Callable[..., Report]) -> None:
    empty = {name: type(getattr(make_report(), name))() for name in Report.__dataclass_fields__ if name != "title"}
    page = Page(render(Report(title="nothing", **empty)))
    assert page.ids == []


def test_twelve_rows_of_six_photographs_stay_below_two_megabytes(make_report: Callable[..., Report]) -> None:
    photo = make_scene(0, size=400).image
    columns = ("image", "map", "seed", "refined", "final", "truth")
    examples = [Example(str(i), "", dict.fromkeys(columns, photo)) for i in range(12)]
    assert 500_000 < len(render(make_report(examples=examples))) < 2_000_000


def test_writing(make_report: Callable[..., Report], tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")  # a file name that is no UTF-8
    write_report(make_report(notes=["tag: 🦉 é", broken]), file)
    text = file.read_text(encoding="utf-8")
    assert "tag: 🦉 é" in text
    assert "caf?" in text
    assert list(file.parent.iterdir()) == [file]
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(make_report(), tmp_path / "taken")


def test_the_same_report_gives_the_same_page(make_report: Callable[..., Report]) -> None:
    assert render(make_report()) == render(make_report())
