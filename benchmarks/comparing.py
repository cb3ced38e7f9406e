"""Tables of graded findings: means over units with 95% bootstrap intervals, by level and over all.

    summary(lines)   plain JSON: {column: {"all" or a level: figures}}, and the paired differences
    table(lines)     the same as Markdown

The headline is counterfactual accuracy, where 0.5 is chance and an abstention counts as chance. Abstentions have a
precision (of all abstentions, those on units without an answer) and a recall (of those units, those abstained on).
`supported` is the share of units with an answer whose explanation an investigation calls supported; whether it is
right to do so shows in the accuracy over these units alone, and in the share of units without an answer that got
support.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..causal.measures import Mean, mean
from .investigations import Line
from .suite.grade import METRICS

HEADLINE, ALL = "counterfactual", "all"
PAIR = ("scripted", "one-shot")
"""Columns whose difference is taken, unit by unit."""
TITLES: Mapping[str, str] = {"text-only": "one-shot, no interventions"}

Figures = dict[str, Any]


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """Figures of every column by level, and the difference of `PAIR` on the same units."""
    columns = list(dict.fromkeys(line.column for line in lines))
    return {
        "columns": {
            column: {key: figures(part) for key, part in _by_level([x for x in lines if x.column == column]).items()}
            for column in columns
        },
        "difference": {
            "of": list(PAIR),
            **{key: _as_json(difference(part)) for key, part in _by_level(lines).items() if set(PAIR) <= set(columns)},
        },
    }


def figures(lines: Sequence[Line]) -> Figures:
    """The figures of one column. Means are [value, low, high, n]; None where no unit has any."""
    grades = [line.grade for line in lines]
    silent = [grade for grade in grades if grade.abstained]
    empty = [line for line in lines if line.grade.abstention_right == line.grade.abstained]
    answered = [line for line in lines if line not in empty]
    supported = [line for line in answered if line.found.status == "supported"]
    statuses = [line.found.status for line in lines]
    return {
        "units": len(lines),
        **{metric: _as_json(_mean(map(value, grades))) for metric, value in METRICS.items()},
        "brier": _as_json(_mean(line.found.brier for line in answered)),
        "abstention_precision": [sum(grade.abstention_right for grade in silent), len(silent)],
        "abstention_recall": [sum(line.grade.abstained for line in empty), len(empty)],
        "statuses": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        "supported": [len(supported), len(answered)],
        "supported_counterfactual": _as_json(_mean(line.grade.counterfactual for line in supported)),
        "supported_without_answer": [sum(line.found.status == "supported" for line in empty), len(empty)],
        "experiments": _sum(lines, lambda line: line.found.experiments),
        "forwards": _sum(lines, lambda line: line.forwards),
        "seconds": _sum(lines, lambda line: line.seconds),
        "tokens": _sum(lines, lambda line: line.found.tokens),
        "usd": _sum(lines, lambda line: line.found.usd),
    }


def difference(lines: Sequence[Line]) -> Mean | None:
    """Mean over units of the headline of the first of `PAIR` minus that of the second."""
    first, second = ({x.grade.unit: x.grade.counterfactual for x in lines if x.column == name} for name in PAIR)
    both = [(value, second.get(unit)) for unit, value in first.items()]
    return _mean(a - b for a, b in both if a is not None and b is not None)


def table(lines: Sequence[Line]) -> str:
    """Markdown: the headline by level, then all metrics over all levels, then the cost by unit."""
    summarised = summary(lines)
    columns = summarised["columns"]
    if not columns:
        return "no units"
    titles = [TITLES.get(name, name) for name in columns]
    levels = list(_by_level(lines))
    difference = summarised["difference"]
    paired = len(difference) > 1
    by_level = [
        [
            level,
            str(next(iter(columns.values()))[level]["units"]),
            *(_cell(columns[name][level][HEADLINE]) for name in columns),
            *([_cell(difference[level], signed=True)] if paired else []),
        ]
        for level in levels
    ]
    rows = [
        [words, *(show(columns[name][ALL]) for name in columns)]
        for words, show in ROWS.items()
        if any(show(columns[name][ALL]) != "–" for name in columns)
    ]
    return "\n\n".join(
        (
            _markdown(
                ["counterfactual, by level", "units", *titles, *([" − ".join(PAIR)] if paired else [])], by_level
            ),
            _markdown(["over all levels", *titles], rows),
        )
    )


def _share(key: str) -> Callable[[Figures], str]:
    return lambda figures: f"{figures[key][0]} of {figures[key][1]}" if figures[key][1] else "–"


def _metric(key: str) -> Callable[[Figures], str]:
    return lambda figures: _cell(figures[key])


def _each(key: str, form: str) -> Callable[[Figures], str]:
    return lambda figures: format(figures[key] / figures["units"], form) if figures[key] else "–"


def _supported(key: str, show: Callable[[str], Callable[[Figures], str]]) -> Callable[[Figures], str]:
    """A figure of investigations only: other columns never call an explanation supported."""
    investigated = {"supported", "open", "no_explanation", "budget", "error"}
    return lambda figures: show(key)(figures) if investigated & set(figures["statuses"]) else "–"


def _statuses(figures: Figures) -> str:
    return ", ".join(f"{status.replace('_', ' ')} {count}" for status, count in figures["statuses"].items())


ROWS: Mapping[str, Callable[[Figures], str]] = {
    "unit tests passed": _metric("tests"),
    "counterfactual accuracy": _metric("counterfactual"),
    "natural balanced accuracy": _metric("natural"),
    "recall of causes": _metric("causes"),
    "recall of exceptions": _metric("exceptions"),
    "recall of second meanings": _metric("second"),
    "promoted tokens, Jaccard": _metric("promoted"),
    "suppressed tokens, Jaccard": _metric("suppressed"),
    "exactly what it reads upstream": _metric("upstream"),
    "Brier score of predictions": _metric("brier"),
    "abstention precision": _share("abstention_precision"),
    "abstention recall": _share("abstention_recall"),
    "status": _statuses,
    "supported, of units with an answer": _supported("supported", _share),
    "counterfactual accuracy of these": _supported("supported_counterfactual", _metric),
    "supported, of units without an answer": _supported("supported_without_answer", _share),
    "experiments a unit": _each("experiments", ".1f"),
    "forward passes a unit": _each("forwards", ",.0f"),
    "seconds a unit": _each("seconds", ".1f"),
    "tokens a unit": _each("tokens", ",.0f"),
    "dollars a unit": _each("usd", ".4f"),
}
"""The lines of the second table, in words."""


def _by_level(lines: Sequence[Line]) -> dict[str, list[Line]]:
    levels = sorted({line.grade.level for line in lines})
    by_level = {str(level): [line for line in lines if line.grade.level == level] for level in levels}
    return {**by_level, ALL: list(lines)}


def _mean(values: Iterable[float | None]) -> Mean | None:
    numbers = [float(value) for value in values if value is not None]
    return mean(numbers) if numbers else None


def _as_json(value: Mean | None) -> list[float | int | None] | None:
    if value is None:
        return None
    low, high = (None, None) if value.interval is None else value.interval
    return [round(value.value, 4), low and round(low, 4), high and round(high, 4), value.n]


def _sum(lines: Sequence[Line], of: Callable[[Line], float]) -> float:
    return round(sum(map(of, lines)), 4)


def _cell(value: Sequence[float | None] | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    mean, low, high, _ = value
    return f"{mean:{form}}" + ("" if low is None else f" ({low:{form}} to {high:{form}})")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
