"""The tests parse the page with html.parser: its texts, its structure, and that all data is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.conftest import TARGET, scores
from tests.report.html_page import HOSTILE, Page

from tagmask.data.scenes import make_scene
from tagmask.errors import RunError
from tagmask.measure.metrics import SegmentationMetric
from tagmask.report.content import Example, NextStep, Picture, Report
from tagmask.report.page import render, write_report
from tagmask.report.templates import relative_link

SECTIONS = {
    "next", "results", "examples", "worst", "threshold", "classes", "confusion", "training", "stages", "data", "files",
    "notes", "recipe",
}  # fmt: skip


def test_figures(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    # 9 × 9 pixels, three columns of each label; one of nine rows is ignored: each IoU and the accuracy are 8/9
    assert page.row("segment (val)")[0:2] == ["segment (val)", "88.9 %"]
    assert page.row("segment (val)")[3:] == ["88.9 %", "11.1 %"]
    assert page.row("masks (train)")[1] == "77.8 %"
    assert page.row("cat")[1:] == ["77.8 %", "88.9 %"]
    text = "".join(page.text)
    assert "1,464 images" in text
    assert "the masks of masks (train) reach 77.8 % mIoU, and 77.8 % of their pixels are correct" in text
    assert "the masks of segment (val) reach 88.9 % mIoU, and 88.9 % of their pixels are correct" in text
    curve = make_report().maps["cam (train)"].curve
    low, high = curve.interval
    assert page.row("cam (train)") == [
        "cam (train)", f"{100 * curve.miou[25]:.1f} %", "0.25", f"{100 * curve.best_miou:.1f} %",
        f"{curve.best_threshold:.2f}", f"{low:.2f} to {high:.2f}", f"{100 * curve.oracle_miou:.1f} %", "3.25", "0.12",
    ]  # fmt: skip
    assert page.row("cam")[1:] == ["1 min 15 s", "51 ms"]
    assert "Seed 7." in text
    assert "epochs: 5" in text
    assert "masks/of all" in text
    assert "3 epochs in 27 s. Last epoch: loss 0.333. The loss went from 1 to 0.333 and was still falling" in text


def test_stages_show_their_method_and_inputs(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    name = "masks(running)method:pseudo_masksreads:maps of cam, network of net"
    assert page.row(name)[1:] == ["6 min 40 s", "273 ms"]
    assert [row[0] for row in page.rows if row[0] in ("cam", name)] == ["cam", name]  # as they ran


@pytest.mark.parametrize(("thresholds", "shown"), [({}, "0.40"), ({"cam (train)": math.nan}, "per image")])
def test_threshold_used(make_report: Callable[..., Report], thresholds: dict[str, float], shown: str) -> None:
    row = Page(render(make_report(thresholds=thresholds))).row("cam (train)")
    assert row[2] == shown
    assert (row[1] == "–") == (shown == "per image")


def test_terms_are_explained(make_report: Callable[..., Report]) -> None:
    text = "".join(Page(render(make_report())).text)
    assert text.index("mIoU (mean intersection over union) is") < text.index("mIoU of masks (train)")
    for explanation in (
        "Pixels with no activation above the threshold",
        "How many times stronger the maps respond to some parts of an object",
        "How much stronger the maps respond to objects than to the background",
    ):
        assert explanation in text


def test_pictures_are_in_the_order_of_the_columns(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    header = next(row for row in page.rows if row and row[0] == "image")
    assert header == ["image", "finalmasks of segment", "ground truthcorrect"]  # without the empty column "map"
    alt = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alt == ["image of a/1", "ground truth of a/1", "image of a/2", "final of a/2"]
    assert sum(row.count("none") for row in page.rows) == 2


def test_page_loads_nothing_and_runs_nothing(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert value.startswith("data:image/webp;base64,")
        if name == "href":
            assert value.startswith(("data:", "#", "./"))  # "./": to the files of the run, on a click
    assert not re.search(r"url\(|@import|https?:", render(make_report()))
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_links_lead_to_existing_elements(make_report: Callable[..., Report]) -> None:
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set()),
        ({"scores": {}, "maps": {}, "thresholds": {}}, {"results", "threshold", "classes", "confusion"}),
        ({"worst": [], "histories": {}}, {"worst", "training"}),
        ({"examples": [], "worst": []}, {"examples", "worst"}),
        ({"stages": [], "notes": [], "recipe": ""}, {"stages", "notes", "recipe"}),
        ({"counts": {}, "images_per_class": {}, "outputs": {}, "next_steps": []}, {"data", "files", "next"}),
    ]
    for changes, missing in cases:
        page = Page(render(make_report(**changes)))
        links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href") and value[0] == "#"}
        assert links <= set(page.ids)
        assert set(page.ids) & SECTIONS == links & SECTIONS == SECTIONS - missing
        assert len(page.ids) == len(set(page.ids))


def test_pictures_are_enlarged_by_links(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report()))
    assert [i for i in page.ids if i.startswith("picture-")] == [f"picture-{n}" for n in (1, 2, 3, 4)]
    hrefs = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert hrefs.count("#picture-1") == 2  # the picture itself, and "previous" of picture 2
    assert hrefs.count("#picture-2") == 3
    assert hrefs.count("#example-1") == hrefs.count("#worst-1") == 2  # "close" of two pictures each
    assert "./m/a/2.png" in hrefs


@pytest.mark.parametrize(
    ("path", "link"),
    [("masks/of all", "./masks/of%20all"), ("../p/x.jpg", "./../p/x.jpg"), ("js:alert(1)", "./js%3Aalert%281%29"),
     ('a"b<c>#?', "./a%22b%3Cc%3E%23%3F"), ("caf\udce9.png", "./caf%E9.png"), ("", "")],
)  # fmt: skip
def test_relative_links(path: str, link: str) -> None:
    assert relative_link(path) == link


def test_tags_beside_the_image_and_class_of_a_map(make_report: Callable[..., Report]) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    maps = [Picture(pixels, class_id) for class_id in (1, 2)]
    tagged, untagged, unknown = (Example(str(tags), "", {"map": maps}, tags) for tags in ((1, 2), (), None))
    page = Page(render(make_report(examples=[tagged, untagged, unknown], worst=[])))
    rows = [row[0] for row in page.rows if row and row[0].startswith(("(", "None"))]
    assert rows == ["(1, 2)catcow", "()· no tags", "None· tags not known"]
    assert next(row[0] for row in page.rows if row and "close" in row[0]).startswith("catclose")
    alt = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alt[:2] == ["map of (1, 2): cat", "map of (1, 2): cow"]


def test_filter_by_class(make_report: Callable[..., Report]) -> None:
    html = render(make_report())
    page = Page(html)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("option", "value")] == ["", "1", "2"]
    rows = {value for tag, name, value in page.attributes if (tag, name) == ("tbody", "class")}
    assert rows == {"row c1 c2", "row c2"}
    assert 'body:has(#class-filter option[value="2"]:checked) .row:not(.c2) { display: none; }' in html
    assert "class-filter" not in Page(render(make_report(examples=[]))).ids  # all images have the same tag


def test_confusion_matrix(make_report: Callable[..., Report]) -> None:
    metric = SegmentationMetric(3)
    preds = TARGET.copy()
    preds[:3, 6:] = 1  # a third of cow is taken for cat
    metric.update(preds, TARGET)
    page = Page(render(make_report(scores={"masks (train)": metric.compute()})))
    rows = [row for row in page.rows if len(row) == 5 and row[0] in ("background", "cat", "cow")]
    assert rows == [
        ["background", "100.0", "0.0", "0.0", "0.0"],
        ["cat", "0.0", "100.0", "0.0", "0.0"],
        ["cow", "0.0", "33.3", "66.7", "0.0"],
    ]
    assert "33.3 % of the pixels of cow are labeled as cat." in "".join(page.text)


def test_recommended_masks_are_the_headline(make_report: Callable[..., Report]) -> None:
    report = make_report(scores={name: scores(2, n) for name, n in (("masks (train)", 0), ("segment (train)", 3))})
    assert Page(render(report)).text.index("mIoU of segment (train)") > 0
    sentence = "The masks of masks are recommended: the network is undertrained."
    page = Page(render(replace(report, recommended="masks", recommendation=sentence)))
    text = "".join(page.text)
    assert sentence in text
    assert "the masks of masks (train) reach 100.0 % mIoU" in text
    assert "mIoU of segment (train)" not in text
    assert next(row[0] for row in page.rows if row and row[0].startswith("masks (")) == "masks (train)recommended"


def test_warnings_and_next_steps(make_report: Callable[..., Report]) -> None:
    page = Page(render(make_report(warnings=["every image shows cat."])))
    text = "".join(page.text)
    assert text.index("every image shows cat.") < text.index("Do this:") < text.index("tagmask do --this")
    assert "Warnings about the data" not in "".join(Page(render(make_report())).text)


def test_page_without_ground_truth(make_report: Callable[..., Report]) -> None:
    html = render(make_report(scores={}, maps={}, thresholds={}))
    assert "There is no ground truth, so the quality of the masks is unknown" in html
    assert "nan" not in "".join(Page(html).text)


def test_page_of_maps_alone(make_report: Callable[..., Report]) -> None:
    text = "".join(Page(render(make_report(scores={}))).text)
    curve = make_report().maps["cam (train)"].curve
    assert f"the response maps of cam (train) are the best: cut at the threshold {curve.best_threshold:.2f}" in text


def test_all_texts_are_escaped(make_report: Callable[..., Report]) -> None:
    original, report = make_report(), make_report(classes=(HOSTILE, "b"))
    picture = np.zeros((4, 4, 3), np.uint8)
    hostile = make_report(
        classes=(HOSTILE, "b"),
        title=HOSTILE,
        description=HOSTILE,
        recipe=f"</pre>{HOSTILE}",
        counts={HOSTILE: 3},
        stages=[replace(stage, name=HOSTILE, method=f"{HOSTILE}.", inputs={"maps": HOSTILE}, status=HOSTILE)
                for stage in original.stages],
        histories={HOSTILE: [{"epoch": 1, HOSTILE: 0.5}, {"epoch": 2, HOSTILE: 0.4}]},
        maps={HOSTILE: report.maps["cam (train)"]},
        thresholds={HOSTILE: 0.25},
        scores={HOSTILE: report.scores["segment (val)"]},
        columns={HOSTILE: HOSTILE},
        examples=[Example(HOSTILE, HOSTILE, {HOSTILE: [Picture(picture, 1, HOSTILE)]}, (1, 2))],
        worst=[],
        notes=[HOSTILE],
        outputs={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
        recommendation=HOSTILE,
        next_steps=[NextStep(HOSTILE, HOSTILE)],
        training_set=HOSTILE,
    )  # fmt: skip
    html = render(hostile)
    page = Page(html)
    assert "<script" not in html
    assert set(page.tags) <= {*Page(render(original)).tags, "figcaption"}
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "".join(page.text).count(HOSTILE) >= 30
    for tag, name, value in page.attributes:
        assert name != "href" or value.startswith(("data:,", "#", "./%3Cscript"))
        assert tag not in ("meta", "link") or HOSTILE not in value
    tooltip = html[html.index("<title>threshold") :]
    assert tooltip[: tooltip.index("</title>")].count("&lt;script&gt;") == 1


@pytest.mark.parametrize("n", [1, 30, 31, 254])
def test_any_number_of_classes(make_report: Callable[..., Report], n: int) -> None:
    names = ("cat", "cow", *(f"class {k}" for k in range(3, 255)))[:n]
    unmeasured: dict[str, Any] = {
        "scores": {},
        "maps": {},
        "thresholds": {},
    }  # the ground truth of the fixture has two classes
    one_class = replace(make_report(), classes=names, images_per_class={"cat": 3}, examples=[], worst=[], **unmeasured)
    report = make_report(names) if n > 1 else one_class
    html = render(report)
    page = Page(html)
    assert ("only whether an image shows cat" in html) == (n == 1)
    rows = [row for row in page.rows if row and row[0] in names and len(row) == 3]
    assert len([row for row in rows if row[1] == ""]) >= n
    assert (f"{n - 30} more classes" in html) == (n > 30)
    if n > 2:
        classes = "classes occur" if n > 3 else "class occurs"
        assert f"{n - 2} {classes} neither in the masks nor in the ground truth" in html


def test_empty_report() -> None:
    page = Page(render(Report(title="empty", description="", classes=())))
    assert page.ids == []
    assert "learned from images and their tags" in "".join(page.text)


def test_twelve_rows_of_six_photographs_stay_below_two_megabytes(make_report: Callable[..., Report]) -> None:
    photo = make_scene(0, size=400).image
    columns = dict.fromkeys(("image", "map", "cut map", "refined", "final", "ground truth"), "")
    examples = [Example(str(i), "", {column: [Picture(photo)] for column in columns}) for i in range(12)]
    assert 500_000 < len(render(make_report(columns=columns, examples=examples))) < 2_000_000


def test_write_report(make_report: Callable[..., Report], tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    invalid = b"caf\xe9".decode("utf-8", "surrogateescape")  # a file name that is not valid UTF-8
    write_report(make_report(notes=["tag: 🦉 é", invalid]), path)
    text = path.read_text(encoding="utf-8")
    assert "tag: 🦉 é" in text
    assert "caf?" in text
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(make_report(), tmp_path / "taken")


def test_same_report_gives_the_same_page(make_report: Callable[..., Report]) -> None:
    assert render(make_report()) == render(make_report())
