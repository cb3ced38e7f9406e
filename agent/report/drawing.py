"""Plots as inline SVG: curves, bars, intervals, and what they are made of.

Colours are classes that a page's style sheet fills, so that a plot follows light and dark. Every mark has a title,
which browsers show where the pointer rests. Nothing has a style of its own, so that a page may forbid them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .citations import visible
from .markup import Html, Part, el
from .report import short


class Axis(NamedTuple):
    """From values to pixels."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are drawn at them."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.first + share * (self.last - self.first)


def svg(width: int, height: int, label: str, *parts: Part, class_: str = "plot", role: str = "img") -> Html:
    """A drawing that shrinks with the page, of this size at most; one that holds links has the role "group"."""
    return el("svg", *parts, viewBox=f"0 0 {width} {height}", width=width, role=role, aria_label=label, class_=class_)


def text(x: float, y: float, label: str, *, anchor: str = "start", class_: str = "tick") -> Html:
    """A label."""
    return el("text", label, x=x, y=y, text_anchor=anchor, class_=class_)


class Point(NamedTuple):
    """A value on a curve, with its interval and the range of its control where there are such."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    control_low: float | None = None
    control_high: float | None = None


def curve(points: Sequence[Point], *, across: str, up: str) -> Html:
    """Draws a line through points, with a band of their intervals, and one of their controls.

    `across` and `up` name the axes.
    """
    values = [value for p in points for value in p[1:] if value is not None]
    x = Axis(min(p.x for p in points), max(p.x for p in points), 56, 330)
    y = Axis(min(0.0, *values), max(0.0, *values), 150, 12)
    line = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)
    dots = (el("circle", cx=x(p.x), cy=y(p.y), r=3) for p in points)
    marks = [
        el("g", el("title", _point_title(p, across)), dot, class_="dot s0") for p, dot in zip(points, dots, strict=True)
    ]
    ends = sorted({y.low, 0.0, y.high})
    return svg(
        350,
        190,
        f"{up} by {across}",
        *(el("line", x1=56, x2=330, y1=y(v), y2=y(v), class_="grid") for v in ends),
        *(text(50, y(v) + 4, short(v), anchor="end") for v in ends),
        _band(x, y, [(p.x, p.control_low, p.control_high) for p in points], "band sham"),
        _band(x, y, [(p.x, p.low, p.high) for p in points], "band s0"),
        el("polyline", points=line, class_="series s0"),
        *marks,
        text(56, 168, short(x.low)),
        text(330, 168, short(x.high), anchor="end"),
        text(193, 184, visible(across), anchor="middle", class_="axis"),
    )


def _band(x: Axis, y: Axis, ends: Sequence[tuple[float, float | None, float | None]], class_: str) -> Html | None:
    there = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in ends if high is not None]
    back = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(ends) if low is not None]
    return el("polygon", points=" ".join(there + back), class_=class_) if there and back else None


def _point_title(point: Point, across: str) -> str:
    interval = "" if point.low is None or point.high is None else f" ({short(point.low)} to {short(point.high)})"
    return f"{across} {short(point.x)}: {short(point.y)}{interval}"


def bars(rows: Sequence[tuple[str, Point]], *, label: str) -> Html:
    """Named values as horizontal bars with whiskers; `Point.x` is not used."""
    values = [value for _, p in rows for value in (p.y, p.low, p.high) if value is not None]
    x = Axis(min(0.0, *values), max(0.0, *values) or 1.0, 150, 420)
    marks: list[Html] = []
    for number, (name, p) in enumerate(rows):
        top, zero, end = 6 + 22 * number, x(0.0), x(p.y)
        marks.append(text(142, top + 12, _clip(visible(name)), anchor="end", class_="name"))
        marks.append(
            el("rect", x=min(zero, end), y=top, width=max(abs(end - zero), 1.0), height=15, rx=2, class_="fill s0")
        )
        if p.low is not None and p.high is not None:
            marks.append(el("line", x1=x(p.low), x2=x(p.high), y1=top + 7.5, y2=top + 7.5, class_="whisker"))
        marks.append(text(428, top + 12, short(p.y)))
    marks.append(el("line", x1=x(0.0), x2=x(0.0), y1=2, y2=22 * len(rows) + 4, class_="zero"))
    return svg(480, 22 * len(rows) + 8, label, *marks)


def interval(
    value: float, low: float | None, high: float | None, *, axis: tuple[float, float], marks: Mapping[str, float]
) -> Html:
    """A value with its interval on one line, and other values to hold it against as ticks."""
    x = Axis(*axis, 8, 212)
    ticks = [
        el("g", el("title", f"{name}: {short(v)}"), el("line", x1=x(v), x2=x(v), y1=5, y2=19), class_="mark")
        for name, v in marks.items()
    ]
    whisker = (
        None
        if low is None or high is None
        else el("line", x1=x(low), x2=x(high), y1=12, y2=12, class_="whisker wide-line")
    )
    dot = el("g", el("title", short(value)), el("circle", cx=x(value), cy=12, r=4.5), class_="dot s0")
    ends = [el("line", x1=x(v), x2=x(v), y1=9, y2=15, class_="zero") for v in {axis[0], 0.0, axis[1]}]
    base = el("line", x1=x(axis[0]), x2=x(axis[1]), y1=12, y2=12, class_="grid")
    return svg(
        220,
        24,
        f"{short(value)} on a line from {axis[0]:g} to {axis[1]:g}",
        base,
        *ends,
        *ticks,
        whisker,
        dot,
        class_="plot inline",
    )


def _clip(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
