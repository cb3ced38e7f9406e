"""The explorer's plots as inline SVG, from the same values that a page gives as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from math import log10
from typing import Any

from ..agent.report import drawing
from ..agent.report.drawing import Axis, svg, text
from ..agent.report.markup import HEATS, Html, el, join
from ..agent.report.report import short
from ..data.harvest.histogram import edges
from .text import token

STATUS_ORDER = ("explained", "weak", "no_pattern", "too_rare", "dense", "failed", "unlabelled", "dead")
"""In the order in which a bar of statuses shows them."""
ROLE_NAMES: Mapping[str, str] = {
    "token_rule": "best single token",
    "token_table": "table of tokens",
    "other_rule": "another feature's explanation",
    "empty": "no explanation",
    "shuffled": "another explanation, same judge",
}
_BIN = 0.05


def shaded(
    tokens: Sequence[str],
    activations: Sequence[float],
    predicted: Sequence[float] | None,
    *,
    peak: float,
    near: int = 28,
) -> Html:
    """A window: each token has a background as strong as its activation, and a line below as strong as predicted.

    Tokens farther than `near` from the strongest one have the class `far`. `peak` is where the shade is full.
    """
    strongest = max(range(len(activations)), key=lambda place: abs(activations[place]), default=0)
    spans: list[Html] = []
    for place, (string, value) in enumerate(zip(tokens, activations, strict=True)):
        told = None if predicted is None else predicted[place]
        classes = [_heat(value, peak), _forecast(told, peak), "far" if abs(place - strongest) > near else None]
        title = f"{short(value)}" + ("" if told is None else f", predicted {short(told)}")
        spans.append(el("span", token(string), class_=" ".join(filter(None, classes)) or None, title=title))
    return join(spans)


def _heat(value: float, peak: float) -> str | None:
    share = _share(abs(value), peak)
    return f"{'h' if value > 0 else 'c'}{share}" if share else None


def _forecast(value: float | None, peak: float) -> str | None:
    share = 0 if value is None else _share(value, peak)
    return f"p{share}" if share else None


def _share(value: float, peak: float) -> int:
    return round(HEATS * min(1.0, max(0.0, value / peak))) if peak > 0 else 0


def score_line(score: Mapping[str, Any]) -> Html | str:
    """A score with its interval on one line, baselines as ticks; "" where there is no value."""
    if score["value"] is None:
        return ""
    axis = (0.0, 1.0) if score["metric"] in ("auroc", "balanced_accuracy", "agreement") else (-1.0, 1.0)
    marks = {ROLE_NAMES.get(role, role): value for role, value in score["baselines"].items() if value is not None}
    return drawing.interval(score["value"], score["ci_low"], score["ci_high"], axis=axis, marks=marks)


def activation_histogram(counts: Sequence[int], *, peak: float) -> Html | str:
    """Tokens by activation, from a thousandth of the peak on: log-spaced bins, and the tokens on a log scale."""
    if not any(counts):
        return ""
    ends = edges()
    used = [place for place, count in enumerate(counts) if count]
    first = min(max(used[0], int(ends.searchsorted(peak / 1000)) - 1), used[-1])
    bins = range(first, used[-1] + 1)
    top = log10(max(counts[first:]) + 1)
    across, up = Axis(0, len(bins), 44, 416), Axis(0, top, 136, 10)
    parts = [_count_axis(top, across, up)]
    for place, number in enumerate(bins):
        if counts[number]:
            title = f"{short(float(ends[number]))} to {short(float(ends[number + 1]))}: {counts[number]:,} tokens"
            y = up(log10(counts[number] + 1))
            bar = el("rect", x=across(place) + 0.5, y=y, width=across(1) - across(0) - 1, height=up(0) - y)
            parts.append(el("g", el("title", title), bar, class_="fill s0"))
    places = sorted({0, len(bins) // 2, len(bins)})
    parts += [text(across(p), 152, short(float(ends[first + p])), anchor="middle") for p in places]
    parts.append(text(230, 168, "activation", anchor="middle", class_="axis"))
    return svg(430, 172, "histogram of the activations above zero", *parts)


def _count_axis(top: float, across: Axis, up: Axis) -> Html:
    """Lines at powers of ten of a count that is drawn as log10(count + 1)."""
    parts = [el("line", x1=across.first, x2=across.last, y1=up(0), y2=up(0), class_="zero")]
    for decade in range(int(top) + 1):
        y = up(log10(10**decade + 1))
        parts.append(el("line", x1=across.first, x2=across.last, y1=y, y2=y, class_="grid"))
        parts.append(text(across.first - 5, y + 4, _power(decade), anchor="end"))
    return join(parts)


def _power(decade: int) -> str:
    return f"{10**decade:,}" if decade < 4 else f"10{str(decade).translate(_SUPERSCRIPT)}"


_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def rule_curve(curve: Sequence[Mapping[str, Any]]) -> Html | str:
    """What a rule is worth by its number of clauses, on tune and on holdout; "" for a rule of one clause."""
    if len(curve) < 2:
        return ""
    values = [row[part] for row in curve for part in ("tune", "holdout") if row[part] is not None]
    across = Axis(1, curve[-1]["clauses"], 40, 250)
    up = Axis(min(0.0, *values), 1.0, 104, 10)
    parts = [el("line", x1=40, x2=250, y1=up(tick), y2=up(tick), class_="grid") for tick in (0.0, 0.5, 1.0)]
    parts += [text(34, up(tick) + 4, f"{tick:g}", anchor="end") for tick in (0.0, 0.5, 1.0)]
    for number, part in enumerate(("tune", "holdout")):
        points = [(row["clauses"], row[part]) for row in curve if row[part] is not None]
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(el("polyline", points=line, class_=f"series s{number}"))
        for x, y in points:
            dot = el("circle", cx=across(x), cy=up(y), r=3)
            parts.append(el("g", el("title", f"{part}, {x} clauses: {y:.2f}"), dot, class_=f"dot s{number}"))
    parts += [text(across(row["clauses"]), 120, str(row["clauses"]), anchor="middle") for row in curve]
    parts += [text(145, 136, "clauses", anchor="middle", class_="axis")]
    parts += [text(258, 24 + 16 * n, part, class_=f"name s{n}") for n, part in enumerate(("tune", "holdout"))]
    return svg(320, 140, "correlation by the number of clauses", *parts)


def status_bar(statuses: Mapping[str, int]) -> Html:
    """How many features have each status, as parts of a bar."""
    total = sum(statuses.values()) or 1
    left, parts = 0.0, []
    for status in STATUS_ORDER:
        if count := statuses.get(status, 0):
            wide = max(1.5, 200 * count / total)
            title = el("title", f"{status}: {count:,} of {total:,}")
            parts.append(el("g", title, el("rect", x=left, y=0, width=wide, height=12), class_=f"status-{status}"))
            left += wide
    label = ", ".join(f"{statuses[status]:,} {status}" for status in STATUS_ORDER if statuses.get(status))
    return svg(max(200, round(left)), 12, label or "no feature", *parts, class_="plot bar")


def distributions(values: Mapping[str, Sequence[float]]) -> Html:
    """Scores as rows of bars, one row for each name with its median, on one axis; the median is a line."""
    low = -1.0 if any(value < -0.2 for part in values.values() for value in part) else -0.2
    across, high = Axis(low, 1.0, 2, 470), 58
    rows = [
        _distribution_row(name, own, across, base=high * row + 54, colour="s0" if row == 0 else "s5")
        for row, (name, own) in enumerate(values.items())
    ]
    ticks = [tick / 2 for tick in range(-2, 3) if tick / 2 >= low]
    labels = [text(across(tick), high * len(values) + 12, f"{tick:g}", anchor="middle") for tick in ticks]
    return svg(480, high * len(values) + 18, "distributions of scores", *rows, *labels)


def _distribution_row(name: str, values: Sequence[float], across: Axis, *, base: int, colour: str) -> Html:
    counts: dict[int, int] = {}
    for value in values:
        place = max(0, min(int((value + 1) / _BIN), round(2 / _BIN) - 1))
        counts[place] = counts.get(place, 0) + 1
    up = Axis(0, max(counts.values(), default=1), base, base - 32)
    parts = [el("line", x1=across(across.low), x2=across(1.0), y1=base, y2=base, class_="grid")]
    parts += [
        el("line", x1=across(tick), x2=across(tick), y1=base - 34, y2=base, class_="zero" if tick == 0 else "grid")
        for tick in (-1.0, -0.5, 0.0, 0.5, 1.0)
        if tick >= across.low
    ]
    for place, count in sorted(counts.items()):
        start, end = across(place * _BIN - 1), across((place + 1) * _BIN - 1)
        bar = el("rect", x=start + 0.5, y=up(count), width=max(0.5, end - start - 1), height=base - up(count))
        title = f"{name}, {place * _BIN - 1:.2f} to {(place + 1) * _BIN - 1:.2f}: {count:,} features"
        parts.append(el("g", el("title", title), bar, class_=f"fill {colour}"))
    told = name
    if values:
        middle = _median(values)
        told = f"{name}, median {middle:z.2f}"
        parts.append(el("line", x1=across(middle), x2=across(middle), y1=base - 36, y2=base, class_="median"))
    return join([*parts, text(2, base - 40, told, class_="label")])


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def counts_by_value(values: Iterable[int], *, unit: str) -> Html:
    """How many features have each number of something, as bars of equal steps."""
    numbers = sorted(values)
    if not numbers:
        return Html("")
    step = max(1, -(-(numbers[-1] + 1) // 30))
    counts: dict[int, int] = {}
    for number in numbers:
        counts[number // step] = counts.get(number // step, 0) + 1
    last = max(counts) + 1
    across, up = Axis(0, last, 44, 306), Axis(0, max(counts.values()), 120, 12)
    parts = [el("line", x1=44, x2=306, y1=120, y2=120, class_="zero")]
    parts += [text(38, up(tick) + 4, f"{tick:,}", anchor="end") for tick in (0, max(counts.values()))]
    for place, count in sorted(counts.items()):
        span = f"{place * step}" if step == 1 else f"{place * step} to {place * step + step - 1}"
        bar = el("rect", x=across(place) + 0.5, y=up(count), width=across(1) - across(0) - 1, height=120 - up(count))
        parts.append(el("g", el("title", f"{span} {unit}: {count:,} features"), bar, class_="fill s0"))
    parts += [text(across(place), 136, f"{place * step}", anchor="middle") for place in sorted({0, last // 2, last})]
    parts.append(text(175, 152, unit, anchor="middle", class_="axis"))
    return svg(320, 156, f"features by {unit}", *parts)


def density_by_score(points: Sequence[Mapping[str, Any]]) -> Html:
    """Each feature as a point that links to it: density on a log scale, and score."""
    shown = [point for point in points if point["score"] is not None and point["density"]]
    if not shown:
        return Html("")
    decades = [log10(point["density"]) for point in shown]
    low, high = float(int(min(decades)) - 1), float(min(0, int(max(decades)) + 1) or 0)
    floor = min(0.0, *(point["score"] for point in shown))
    across, up = Axis(low, high, 44, 306), Axis(floor, 1.0, 120, 10)
    parts = [el("line", x1=44, x2=306, y1=up(tick), y2=up(tick), class_="grid") for tick in (0.0, 0.5, 1.0)]
    parts += [text(38, up(tick) + 4, f"{tick:g}", anchor="end") for tick in (0.0, 0.5, 1.0)]
    for decade in range(int(low), int(high) + 1, max(1, int(high - low) // 4)):
        parts.append(text(across(decade), 136, f"{100 * 10.0**decade:g}%", anchor="middle"))
    for point, decade in zip(shown, decades, strict=True):
        title = f"{point['feature']}: {point['score']:.2f}, above zero on {point['density']:.3%} of tokens"
        dot = el("circle", cx=across(decade), cy=up(point["score"]), r=3)
        parts.append(el("a", el("title", title), dot, href=f"/feature/{point['feature']}", class_="cloud s0"))
    parts.append(text(175, 152, "tokens with an activation above zero", anchor="middle", class_="axis"))
    return svg(320, 156, "score by density", *parts, role="group")
