"""HTML elements, and plots as inline SVG: odds over rounds, forecast against seen, curves, bars, intervals.

Whatever is not made by `el` is escaped, so that no text of a corpus or a model can be markup. Colours are classes that
the page's style sheet fills, so that a plot follows light and dark. Every mark has a title, which browsers show where
the pointer rests.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import log, log2, log10
from typing import NamedTuple

from ..loop.judging import ODDS
from ..loop.levels import EDGES
from .citations import PARTS, runs, visible
from .report import Contender, Report, short


class Html(str):
    """Markup that needs no escaping: what `el` and `join` make, and the style sheet."""

    __slots__ = ()


Part = Html | str | float | None

_VOID = ("meta", "line", "rect", "circle", "path", "polyline", "polygon")


def el(tag: str, *parts: Part, **attributes: str | float | None) -> Html:
    """An element. Text in it is escaped, None is left out; `class_` is the attribute class, `aria_label` aria-label."""
    present = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    markup = "".join(f' {name}="{escape(_as_text(value))}"' for name, value in present)
    if tag in _VOID:
        return Html(f"<{tag}{markup}/>")
    return Html(f"<{tag}{markup}>{join(parts)}</{tag}>")


def join(parts: Iterable[Part]) -> Html:
    """Parts one after the other."""
    return Html(
        "".join(part if isinstance(part, Html) else escape(_as_text(part)) for part in parts if part is not None)
    )


def _as_text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def cites(sources: Iterable[str]) -> Html:
    """Where a number or a quote comes from, as links to its place on the page."""
    links = (el("a", name, href=f"#{_place(name)}") for name in runs(sources))
    return el("sup", *links, class_="cite")


def _place(name: str) -> str:
    return name if name in PARTS else name.partition("-")[0]


def table(header: Sequence[Part], rows: Iterable[Sequence[Part]], *, class_: str | None = None) -> Html:
    """A table that scrolls sideways where it is too wide."""
    body = [el("tr", *(el("td", cell) for cell in row)) for row in rows]
    head = el("thead", el("tr", *(el("th", cell) for cell in header)))
    return el("div", el("table", head, el("tbody", *body), class_=class_), class_="wide")


def section(name: str, title: str, *parts: Part, note: str | None = None) -> Html:
    """A part of the page that can be linked to."""
    return el("section", el("h2", title), note and el("p", note, class_="note"), *parts, id=name)


def folded(title: str, value: object) -> Html:
    """JSON that opens."""
    return el("details", el("summary", title), el("div", el("pre", json.dumps(value, ensure_ascii=False, indent=1))))


def window(tokens: Sequence[str], activations: Sequence[float], *, peak: float) -> Html:
    """Text whose tokens have a background as strong as their activation."""
    spans = []
    for token, activation in zip(tokens, activations, strict=True):
        share = min(1.0, max(0.0, activation / peak)) if peak > 0 else 0.0
        level = int(share * HEATS)
        shade = {"class_": f"heat h{level}", "title": f"{activation:.3g}"} if level else {}
        spans.append(el("span", visible(token), **shade))
    return el("div", *spans, class_="window")


HEATS = 20
"""Strengths of a background, which the style sheet has; below the first one a token has none."""


COLOURS = 6
"""Series colours that the style sheet has."""
_DECADES = 6.0
"""Odds beyond so many powers of ten are drawn at the edge."""


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


def svg(width: int, height: int, label: str, *parts: Part, class_: str = "plot") -> Html:
    """A drawing that shrinks with the page, of this size at most."""
    return el("svg", *parts, viewBox=f"0 0 {width} {height}", width=width, role="img", aria_label=label, class_=class_)


def text(x: float, y: float, label: str, *, anchor: str = "start", class_: str = "tick") -> Html:
    """A label."""
    return el("text", label, x=x, y=y, text_anchor=anchor, class_=class_)


def odds(report: Report) -> Html | None:
    """The odds of every rival against the best of the others, over rounds; None before anything was judged."""
    series = {c.name: points for c in report.contenders if (points := _lead_by_round(c, report.contenders))}
    if not series:
        return None
    rounds = sorted({round for points in series.values() for round, _ in points})
    top = max(2.0, min(_DECADES, max(abs(value) for points in series.values() for _, value in points)))
    across, up = Axis(rounds[0], rounds[-1], 74, 648), Axis(-top, top, 250, 14)
    return svg(
        720,
        286,
        "odds of the rivals over rounds",
        *_odds_grid(across, up, rounds, top),
        *_odds_lines(series, [c.name for c in report.contenders], across, up),
        text(361, 282, "round", anchor="middle", class_="axis"),
    )


def _lead_by_round(contender: Contender, contenders: Sequence[Contender]) -> list[tuple[int, float]]:
    """The powers of ten between a rival's odds and the best of the others', by round."""
    points = []
    for mine in contender.history:
        others = [s.log_odds for c in contenders if c is not contender for s in c.history if s.round == mine.round]
        if others:
            points.append((mine.round, (mine.log_odds - max(others)) / log(10)))
    return points


def _odds_grid(across: Axis, up: Axis, rounds: Sequence[int], top: float) -> Iterable[Html]:
    step = 2 if top > 3 else 1
    for decade in range(-int(top) // step * step, int(top) + 1, step):
        if abs(decade) <= top:
            y = up(decade)
            yield el("line", x1=across.first, x2=across.last, y1=y, y2=y, class_="zero" if decade == 0 else "grid")
            label = f"{10**decade:,} : 1" if decade >= 0 else f"1 : {10**-decade:,}"
            yield text(across.first - 8, y + 4, label, anchor="end")
    for bar in (log10(ODDS), -log10(ODDS)):
        yield el("line", x1=across.first, x2=across.last, y1=up(bar), y2=up(bar), class_="bar-line")
    yield text(across.first + 6, up(log10(ODDS)) - 5, f"supported above {ODDS:g} : 1", class_="tick faint")
    for round in rounds[:: max(1, len(rounds) // 12)]:
        yield text(across(round), up.first + 18, str(round), anchor="middle")


def _odds_lines(
    series: Mapping[str, Sequence[tuple[int, float]]], order: Sequence[str], across: Axis, up: Axis
) -> Iterable[Html]:
    heights = _space_labels([up(points[-1][1]) for points in series.values()], gap=15, last=up.first)
    for (name, points), height in zip(series.items(), heights, strict=True):
        colour = f"s{min(order.index(name), COLOURS - 1)}"
        places = " ".join(f"{across(round):.1f},{up(value):.1f}" for round, value in points)
        yield el("polyline", points=places, class_=f"series {colour}")
        for round, value in points:
            dot = el("circle", cx=across(round), cy=up(value), r=3.5)
            yield el("g", el("title", f"{name} after round {round}: {_to_one(value)}"), dot, class_=f"dot {colour}")
        yield text(across(points[-1][0]) + 10, height + 4, name, class_=f"name {colour}")


def _to_one(decades: float) -> str:
    size = f"{10 ** abs(decades):,.0f}" if abs(decades) < _DECADES else f"more than {10**_DECADES:,.0f}"
    return f"{size} : 1 {'for' if decades >= 0 else 'against'} it"


def _space_labels(heights: Sequence[float], *, gap: float, last: float) -> list[float]:
    """The heights, moved so that labels do not overlap and none is below `last`."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    for one, other in zip(order, order[1:], strict=False):
        placed[other] = max(placed[other], placed[one] + gap)
    for steps, index in enumerate(reversed(order)):
        placed[index] = min(placed[index], last - steps * gap)
    return placed


def agreement(report: Report, name: str, *, colour: int) -> Html | None:
    """What a hypothesis expected of every item against what was seen; None where it expected nothing."""
    points = _group_points(report, name)
    if not points:
        return None
    ends = [value for place in points for value in place]
    low, high = min(-0.2, max(-1.2, min(ends))), max(1.2, min(1.8, max(ends)))
    across, up = Axis(low, high, 40, 292), Axis(low, high, 262, 10)
    edges = [low, *EDGES, high]
    cells = [
        el("rect", x=across(a), y=up(b), width=across(b) - across(a), height=up(a) - up(b), class_="same")
        for a, b in zip(edges, edges[1:], strict=False)
        if b > a
    ]
    ticks = [el("line", x1=40, x2=292, y1=up(edge), y2=up(edge), class_="grid") for edge in EDGES]
    ticks += [el("line", y1=10, y2=262, x1=across(edge), x2=across(edge), class_="grid") for edge in EDGES]
    for value in (0.0, 0.5, 1.0):
        ticks += [
            text(across(value), 277, f"{value:g}", anchor="middle"),
            text(34, up(value) + 4, f"{value:g}", anchor="end"),
        ]
    dots = [
        el(
            "g",
            el("title", f"{_list_labels(labels)}: {short(expected)} expected, {short(value)} seen"),
            el("circle", cx=across(expected), cy=up(value), r=2.6 + min(5.0, log2(len(labels)) / 2)),
            class_=f"cloud s{min(colour, COLOURS - 1)}",
        )
        for (expected, value), labels in points.items()
    ]
    plot = svg(
        304,
        300,
        f"forecasts of {name} against what was seen",
        *cells,
        *ticks,
        *dots,
        text(166, 296, "expected", anchor="middle", class_="axis"),
        text(46, 22, "seen", class_="axis"),
    )
    return el("figure", plot, el("figcaption", el("b", name), f" {sum(map(len, points.values())):,} forecasts"))


def _group_points(report: Report, name: str) -> dict[tuple[float, float], list[str]]:
    """Items by what was expected and what was seen, to hundredths: those of one place are one dot."""
    places: dict[tuple[float, float], list[str]] = {}
    for trial in report.experiments:
        for item in trial.items:
            if (expected := item["expected"].get(name)) is not None:
                place = round(expected, 2) + 0.0, round(item["value"], 2) + 0.0
                places.setdefault(place, []).append(f"{trial.name} {visible(item['label'])}")
    return places


def _list_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3:,} more" if len(labels) > 3 else "")


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
