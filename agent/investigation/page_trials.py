"""One experiment or survey on the page: a line that opens into its items, what was expected of them, and what was
found beside."""

from collections.abc import Sequence
from typing import Any

from .citing import visible
from .levels import LEVELS, forecast
from .page_found import found
from .page_parts import Html, Part, cites, el, join, table
from .report_values import Contender, Trial
from .telling import short

_ITEMS = 40
"""Items that are shown; where there are more, those that surprised the leader come first."""


def trial_row(trial: Trial, leader: Contender | None, order: Sequence[str]) -> Html:
    """A trial that opens; `order` is that of the hypotheses' columns."""
    summary = el("summary", el("span", el("b", trial.name), el("span", trial.tool.replace("_", " ")), el(
        "span", visible(trial.purpose), class_="purpose"), _figure(trial), class_="trial"))  # fmt: skip
    told: list[Part] = [el("p", el("b", visible(trial.question))), _about(trial)]
    if trial.reason:
        told.append(el("p", "No result: ", visible(trial.reason), class_="miss"))
    if trial.items:
        told.append(_items(trial, leader, order))
    if beside := trial.result.get("found"):
        told += [el("h3", "Found beside"), found(beside)]
    return el("details", summary, el("div", *told), id=trial.name)


def _figure(trial: Trial) -> Html:
    if trial.status != "ok":
        return el("span", trial.status if trial.status == "planned" else "no result", class_="figure miss")
    result = trial.result
    if result["effect"] is None:
        return el("span", el("small", "survey"), class_="figure")
    spread = "" if result["low"] is None else f" ({short(result['low'])} to {short(result['high'])})"
    return el("span", el("b", short(result["effect"])), spread, " ", el("small", result["units"]), class_="figure")


def _about(trial: Trial) -> Html:
    terms: list[tuple[str, Part]] = [("asked by", f"{trial.role}, round {trial.round}")]
    if trial.status == "ok":
        result = trial.result
        terms += [("n", f"{result['n']:,}"), ("1 is", visible(result["normalised_by"]))]
        if control := result["control"]:
            terms.append(("control", join([visible(control["what"]), ": ", _spread(control), cites([trial.name])])))
    if trial.forwards:
        terms.append(("forward passes", f"{trial.forwards:,}"))
    if trial.args:
        terms.append(
            ("arguments", el("code", visible(", ".join(f"{key}={value}" for key, value in trial.args.items()))))
        )
    return el("dl", *(join([el("dt", name), el("dd", value)]) for name, value in terms))


def _spread(control: Any) -> str:
    if control["value"] is None:
        return "no value"
    ends = control["low"], control["high"]
    return short(control["value"]) + ("" if None in ends else f" ({short(ends[0])} to {short(ends[1])})")


def _items(trial: Trial, leader: Contender | None, order: Sequence[str]) -> Html:
    names = [name for name in order if any(item["expected"].get(name) is not None for item in trial.items)]
    surprise = _surprise(trial, leader.name if leader else "")
    ranked = sorted(range(len(trial.items)), key=lambda index: -surprise[index])
    shown = ranked[:_ITEMS] if len(ranked) > _ITEMS else range(len(trial.items))
    rows = []
    for index in shown:
        item = trial.items[index]
        cells = [_expected(item["expected"].get(name), item["level"]) for name in names]
        rows.append([el("code", visible(item["label"])), el("b", short(item["value"])), item["level"], *cells])
    more = len(trial.items) - len(rows)
    cut = el("p", f"{more:,} more, on which the leader was surprised less", class_="note") if more else None
    return join([table(("item", "seen", "level", *names), rows), cut])


def _expected(value: float | None, level: str) -> Part:
    """What was expected, green where the likeliest level was seen."""
    if value is None:
        return "–"
    return el("span", short(value), class_="hit" if _likeliest(value) == level else "miss")


def _likeliest(value: float) -> str:
    return LEVELS[int(forecast([value], ())[0].argmax())]


def _surprise(trial: Trial, leader: str) -> list[float]:
    """By item, how far the leader was off; 0 where it expected nothing."""
    expected = [item["expected"].get(leader) for item in trial.items]
    return [0.0 if e is None else abs(item["value"] - e) for item, e in zip(trial.items, expected, strict=True)]
