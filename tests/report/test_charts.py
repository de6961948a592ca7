from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tagmask.report.charts import Axis, Series, line_chart, ticks

X, Y = Axis("threshold", "{:.2f}".format), Axis("mIoU")


def parse(series: list[Series], x: Axis = X) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, x, Y, label="a & b"))


def paths(chart: ElementTree.Element, kind: str) -> list[str]:
    return [path.get("d", "") for path in chart.iter("path") if path.get("class", "").startswith(kind)]


def test_line_computed_by_hand() -> None:
    chart = parse([Series("cam", [0, 0.5, 1], [0, 40, 20], (("best", 0.5, 40),), (0.5, 1))])
    # the ticks are 0, 10, ..., 40: in the box of 100 × 100, 40 is at the top and 20 in the middle
    assert paths(chart, "line") == ["M0 100L50 0L100 50"]
    assert paths(chart, "area") == ["M50 100L50 0L100 50L100 100Z"]
    assert paths(chart, "mark best") == ["M50 0h0"]
    texts = [(span.get("class"), span.text) for span in chart.iter("span")]
    assert ("y", "40") in texts
    assert ("x", "0.20") in texts
    assert [title.text for title in chart.iter("title")][1] == "threshold 0.50\ncam: 40"


def test_threshold_used_is_a_ring() -> None:
    chart = parse([Series("cam", [0, 0.5, 1], [0, 40, 20], (("used", 1, 20),))])
    assert paths(chart, "mark used") == paths(chart, "core") == ["M100 50h0"]


def test_gaps_single_points_and_empty_charts() -> None:
    assert paths(parse([Series("a", [0, 1, 2, 3], [1, math.nan, 1, 1])]), "line") == ["M0 0M66.67 0L100 0"]
    assert paths(parse([Series("a", [1], [2.0])], Axis("epoch", integers=True)), "mark point") == ["M50 0h0"]
    assert line_chart([Series("a", [1], [math.nan])], X, Y, label="") == ""
    assert line_chart([], X, Y, label="") == ""


def test_labels_are_escaped() -> None:
    name = "<b>\"'&"
    html = line_chart([Series(name, [0, 1], [0, 1])], X, Y, label=name)
    assert "<b>" not in html
    chart = ElementTree.fromstring(html)
    assert next(chart.iter("svg")).get("aria-label") == name
    assert next(chart.iter("title")).text == f"threshold 0.00\n{name}: 0"


def test_long_curves_have_a_bounded_number_of_tooltips() -> None:
    chart = parse([Series("a", list(range(5000)), [1.0] * 5000)])
    strips = [(float(rect.get("x", "")), float(rect.get("width", ""))) for rect in chart.iter("rect")]
    assert 100 <= len(strips) <= 120
    assert math.isclose(sum(width for _, width in strips), 100, abs_tol=0.1)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_evenly_spaced_and_enclose_the_range(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-6 * abs(low):
        return
    result = ticks(low, high)
    assert 2 <= len(result) <= 9
    assert result[0] <= low + 1e-6 * width
    assert result[-1] >= high - 1e-6 * width
    steps = [b - a for a, b in pairwise(result)]
    assert max(steps) - min(steps) < 1e-3 * max(steps) + 1e-9


def test_integer_ticks() -> None:
    assert ticks(1, 3, integers=True) == [1, 2, 3]
    assert ticks(0, 0) == [0, 0.2, 0.4, 0.6, 0.8, 1]
