"""Line charts as inline SVG that stretches to any width, with its text beside it as HTML; no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

COLORS = 6  # classes s0..s5 of style.css; further series begin again
_TIPS = 120  # tooltips across a chart, at most


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        x, y: [N] ascending x; a y of nan leaves a gap.
        marks: (kind, x, y); kind is "best" (a disc) or "chosen" (a ring).
        shaded: the range of x in which the area under the line is shaded.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: tuple[tuple[str, float, float], ...] = ()
    shaded: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis says, how it writes a value, and its least range."""

    title: str
    write: Callable[[float], str] = "{:g}".format
    span: tuple[float, float] | None = None
    whole: bool = False  # ticks at whole numbers only


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, label: str) -> Markup:
    """A chart of lines; `label` says in words what is to be seen, for who cannot see it.

    Everything given is escaped. Empty where there is no point to draw.
    """
    xs = sorted({a for line in series for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)})
    ys = [b for line in series for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)]
    if not xs:
        return Markup("")
    low, high = x.span or (xs[0], xs[-1])
    if low == high:
        low, high = low - 0.5, high + 0.5
    x_ticks = [t for t in ticks(low, high, whole=x.whole) if low <= t <= high]
    y_ticks = ticks(*(y.span or (min(0.0, *ys), max(ys))), whole=y.whole)
    bottom, top = y_ticks[0], y_ticks[-1]

    def at_x(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    def at_y(value: float) -> float:
        return round(100 * (top - value) / (top - bottom), 2)

    drawing = [_tag("path", d=_joined(f"M0 {at_y(t):g}H100" for t in y_ticks), class_="grid")]
    for i, line in enumerate(series):
        points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if _finite(a, b)]
        if line.shaded:
            under = [p for p in points if line.shaded[0] <= p[0] <= line.shaded[1]]
            drawing.append(_area([(at_x(a), at_y(b)) for a, b in under], at_y(bottom), i))
    for i, line in enumerate(series):
        places = [(at_x(a), at_y(b)) if _finite(a, b) else None for a, b in zip(line.x, line.y, strict=True)]
        drawing.append(_tag("path", d=_path(places), class_=f"line s{i % COLORS}"))
    drawing += _tips(series, xs, at_x, x, y)
    for i, line in enumerate(series):
        marks = [*line.marks, *((("point", xs[0], line.y[0]),) if len(xs) == 1 else ())]
        for kind, a, b in marks:
            if _finite(a, b):
                dot = f"M{at_x(a):g} {at_y(b):g}h0"  # a line of no length with round ends: round at any stretch
                drawing.append(_tag("path", d=dot, class_=f"mark {kind} s{i % COLORS}"))
                if kind == "chosen":
                    drawing.append(_tag("path", d=dot, class_="core"))
    svg = _tag(
        "svg",
        *drawing,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )
    texts = [_tag("span", y.write(t), class_="y", style=f"top:{at_y(t):g}%") for t in y_ticks]
    texts += [_tag("span", x.write(t), class_="x", style=f"left:{at_x(t):g}%") for t in x_ticks]
    plot = _tag("div", svg, _tag("div", *texts, aria_hidden="true"), class_="plot")
    return _tag("div", _tag("p", y.title, class_="axis"), plot, _tag("p", x.title, class_="axis end"), class_="chart")


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to eight round numbers from at most `low` to at least `high`.

    >>> ticks(0, 0.73)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if high <= low:
        high = low + 1
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= 6)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _tips(
    series: Sequence[Series], xs: Sequence[float], at_x: Callable[[float], float], x: Axis, y: Axis
) -> list[Markup]:
    """A transparent strip around each x that tells all values at it when pointed at."""
    xs = xs[:: -(-len(xs) // _TIPS)]
    values = [dict(zip(line.x, line.y, strict=True)) for line in series]
    edges = [0.0, *((at_x(a) + at_x(b)) / 2 for a, b in pairwise(xs)), 100.0]
    strips = []
    for a, left, right in zip(xs, edges[:-1], edges[1:], strict=True):
        there = [
            f"{line.name}: {y.write(known[a])}"
            for line, known in zip(series, values, strict=True)
            if a in known and _finite(known[a])
        ]
        title = _tag("title", "\n".join([f"{x.title} {x.write(a)}", *there]))
        strips.append(
            _tag("rect", title, x=f"{left:.5g}", y="0", width=f"{right - left:.5g}", height="100", class_="tip")
        )
    return strips


def _area(points: Sequence[tuple[float, float]], base: float, i: int) -> Markup:
    if not points:
        return Markup("")
    line = _joined(f"L{a:g} {b:g}" for a, b in points)
    return _tag("path", d=f"M{points[0][0]:g} {base:g}{line}L{points[-1][0]:g} {base:g}Z", class_=f"area s{i % COLORS}")


def _path(places: Iterable[tuple[float, float] | None]) -> str:
    steps, pen = [], "M"
    for place in places:
        if place:
            steps.append(f"{pen}{place[0]:g} {place[1]:g}")
        pen = "L" if place else "M"
    return "".join(steps)


def _finite(*values: float) -> bool:
    return all(map(math.isfinite, values))


def _joined(parts: Iterable[str]) -> str:
    return "".join(parts)


def _tag(name: str, *content: str | Markup, **attributes: str) -> Markup:
    """An element with escaped attributes and content; `class_` is class, `aria_label` is aria-label."""
    pairs = [Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items()]
    opened = Markup("<{}{}>").format(name, Markup("").join(pairs))
    return opened + Markup("").join(escape(part) for part in content) + Markup("</{}>").format(name)
