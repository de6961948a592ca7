"""Line charts as inline SVG that stretches to any width. The text beside it is HTML; there is no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

NUM_COLORS = 6  # classes s0..s5 of style.css; further series begin again with s0
_MAX_TOOLTIPS = 120


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: shown in the tooltips.
        x: [N] ascending.
        y: [N]; NaN leaves a gap.
        marks: (kind, x, y); kind is "best" (a disc) or "used" (a ring).
        shaded: the range of x in which the area under the line is shaded.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: tuple[tuple[str, float, float], ...] = ()
    shaded: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: the quantity and its unit.
        format_value: formats the numbers at the ticks and in the tooltips.
        integers: whether ticks are at integers only.
    """

    title: str
    format_value: Callable[[float], str] = "{:g}".format
    integers: bool = False


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, label: str) -> Markup:
    """Return a line chart as HTML; empty if there is no point to draw. All texts are escaped.

    Args:
        series: the lines.
        x: the horizontal axis.
        y: the vertical axis; it includes 0.
        label: a description of the chart for screen readers.
    """
    xs = sorted({a for line in series for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)})
    ys = [b for line in series for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)]
    if not xs:
        return Markup("")
    low, high = xs[0], xs[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    x_ticks = [tick for tick in ticks(low, high, integers=x.integers) if low <= tick <= high]
    y_ticks = ticks(min(0.0, *ys), max(ys), integers=y.integers)
    bottom, top = y_ticks[0], y_ticks[-1]

    def at_x(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    def at_y(value: float) -> float:
        return round(100 * (top - value) / (top - bottom), 2)

    drawing = [_tag("path", d="".join(f"M0 {at_y(tick):g}H100" for tick in y_ticks), class_="grid")]
    for i, line in enumerate(series):
        points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)]
        if line.shaded:
            below = [point for point in points if line.shaded[0] <= point[0] <= line.shaded[1]]
            drawing.append(_area([(at_x(a), at_y(b)) for a, b in below], at_y(bottom), i))
    for i, line in enumerate(series):
        positions = [(at_x(a), at_y(b)) if _finite(a, b) else None for a, b in zip(line.x, line.y, strict=True)]
        drawing.append(_tag("path", d=_path(positions), class_=f"line s{i % NUM_COLORS}"))
    drawing += _tooltips(series, xs, at_x, x, y)
    for i, line in enumerate(series):
        marks = [*line.marks, *((("point", xs[0], line.y[0]),) if len(xs) == 1 else ())]
        for kind, a, b in marks:
            if _finite(a, b):
                dot = f"M{at_x(a):g} {at_y(b):g}h0"  # a line of length 0 with round caps stays round when stretched
                drawing.append(_tag("path", d=dot, class_=f"mark {kind} s{i % NUM_COLORS}"))
                if kind == "used":
                    drawing.append(_tag("path", d=dot, class_="core"))
    svg = _tag("svg", *drawing, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=label)
    texts = [_tag("span", y.format_value(tick), class_="y", style=f"top:{at_y(tick):g}%") for tick in y_ticks]
    texts += [_tag("span", x.format_value(tick), class_="x", style=f"left:{at_x(tick):g}%") for tick in x_ticks]
    plot = _tag("div", svg, _tag("div", *texts, aria_hidden="true"), class_="plot")
    return _tag("div", _tag("p", y.title, class_="axis"), plot, _tag("p", x.title, class_="axis end"), class_="chart")


def ticks(low: float, high: float, *, integers: bool = False) -> list[float]:
    """Return four to eight round numbers that begin at or below `low` and end at or above `high`.

    Args:
        low: the lowest value.
        high: the highest value.
        integers: whether all ticks must be integers; there can then be fewer.

    Example:
        >>> ticks(0, 0.73)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if high <= low:
        high = low + 1
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= 6)
    if integers:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _tooltips(
    series: Sequence[Series], xs: Sequence[float], at_x: Callable[[float], float], x: Axis, y: Axis
) -> list[Markup]:
    """Return a transparent strip around each x, whose tooltip lists the values of all lines there."""
    xs = xs[:: -(-len(xs) // _MAX_TOOLTIPS)]
    values = [dict(zip(line.x, line.y, strict=True)) for line in series]
    edges = [0.0, *((at_x(a) + at_x(b)) / 2 for a, b in pairwise(xs)), 100.0]
    strips = []
    for a, left, right in zip(xs, edges[:-1], edges[1:], strict=True):
        rows = [
            f"{line.name}: {y.format_value(y_at[a])}"
            for line, y_at in zip(series, values, strict=True)
            if a in y_at and _finite(y_at[a])
        ]
        title = _tag("title", "\n".join([f"{x.title} {x.format_value(a)}", *rows]))
        strips.append(
            _tag("rect", title, x=f"{left:.5g}", y="0", width=f"{right - left:.5g}", height="100", class_="tooltip")
        )
    return strips


def _area(points: Sequence[tuple[float, float]], base: float, i: int) -> Markup:
    if not points:
        return Markup("")
    line = "".join(f"L{a:g} {b:g}" for a, b in points)
    d = f"M{points[0][0]:g} {base:g}{line}L{points[-1][0]:g} {base:g}Z"
    return _tag("path", d=d, class_=f"area s{i % NUM_COLORS}")


def _path(positions: Iterable[tuple[float, float] | None]) -> str:
    steps, command = [], "M"
    for position in positions:
        if position:
            steps.append(f"{command}{position[0]:g} {position[1]:g}")
        command = "L" if position else "M"
    return "".join(steps)


def _finite(*values: float) -> bool:
    return all(map(math.isfinite, values))


def _tag(name: str, *content: str | Markup, **attributes: str) -> Markup:
    """Return an element with escaped attributes and content; `class_` becomes class, `aria_label` aria-label."""
    pairs = [Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items()]
    start = Markup("<{}{}>").format(name, Markup("").join(pairs))
    return start + Markup("").join(escape(part) for part in content) + Markup("</{}>").format(name)
