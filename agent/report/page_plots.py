"""Plots of an investigation: odds of the rivals over rounds, and what each forecast against what was seen."""

from collections.abc import Iterable, Mapping, Sequence
from math import log, log2, log10

from ..loop.judging import ODDS
from ..loop.levels import EDGES
from .citations import visible
from .drawing import Axis, svg, text
from .markup import Html, el
from .report import Contender, Report, short

COLOURS = 6
"""Series colours that the style sheet has."""
_DECADES = 6.0
"""Odds beyond so many powers of ten are drawn at the edge."""


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
