"""Draws a tool's results beside its values by their shape: windows of tokens, curves, bars, tables, else JSON.

{"tokens": [...], "values": [...]}        a window with a background by value
[{"dose": 1, "mean": 0.4, "low": ...}]    a curve: rows of numbers of which the first one rises
{"name": 0.4}, {"name": [0.4, 0.3, 0.5]}  bars, with whiskers
[{"token": " a", "logit": 0.4}]           a table
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .citations import visible
from .drawing import Point, bars, curve
from .markup import Html, Part, el, join, table, window
from .report import short

_ROWS, _BARS, _JSON = 24, 16, 4000
"""Rows of a table, bars of a plot, and characters of JSON that are shown."""
_KEYS = 6
"""Columns of a table that a mapping is shown as, at most."""
_SHOWN = ("values", "activations")
_ACROSS = ("dose", "strength", "length", "distance", "position", "layer")
_UP = ("effect", "mean", "value")
_ENDS = (("low", "ci_low"), ("high", "ci_high"), ("sham_low",), ("sham_high",))
"""Keys of a curve's rows, since a journal does not keep their order."""


def draw_results(results: Mapping[str, Any]) -> Html:
    """Draws all results under their names; single words and numbers first, together."""
    single = {name: value for name, value in results.items() if _is_single(value)}
    parts: list[Part] = [_terms(single)] if single else []
    for name, value in results.items():
        if name not in single and value not in ([], {}, ()):
            parts.append(el("h4", name.replace("_", " ")))
            parts.append(_draw(name, value))
    return join(parts)


def _draw(name: str, value: Any, *, deep: bool = False) -> Html:
    """Draws one value; `deep` within another."""
    if (tokens := _window(value)) is not None:
        return tokens
    if points := _curve(value):
        across, up = _axes(value[0]) if isinstance(value, list) else (name, "mean")
        return curve(points, across=across.replace("_", " "), up=up.replace("_", " "))
    if rows := _bars(value):
        return join([bars(rows[:_BARS], label=name), _more(len(rows) - _BARS)])
    if isinstance(value, list):
        return _draw_list(value)
    if isinstance(value, Mapping) and (records := _records(value)):
        return _table(records)
    if isinstance(value, Mapping) and not deep:
        parts = (join([_draw(name, part, deep=True), el("figcaption", visible(key))]) for key, part in value.items())
        return el("div", *(el("figure", part) for part in parts), class_="pair")
    return as_json(value)


def _draw_list(values: list[Any]) -> Html:
    windows = [_window(part) for part in values]
    if None not in windows:
        return join(windows[:_ROWS])
    if all(isinstance(part, Mapping) for part in values):
        return _table(values)
    if all(isinstance(part, str) for part in values):
        return join([el("p", *(el("code", visible(part)) for part in values[:_ROWS])), _more(len(values) - _ROWS)])
    return as_json(values)


def _records(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Flat records of the same keys under their names, as rows; empty where it is something else."""
    rows = list(value.values())
    if len(rows) < 2 or not all(isinstance(row, Mapping) and all(map(_is_single, row.values())) for row in rows):
        return []
    if _curve(rows[0]) or len(rows[0]) > _KEYS or any(set(row) != set(rows[0]) for row in rows):
        return []
    return [{"of": name, **row} for name, row in value.items()]


def as_json(value: Any) -> Html:
    """Anything else, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return el("pre", text if len(text) <= _JSON else f"{text[:_JSON]}\n… {len(text) - _JSON:,} characters more")


def _is_single(value: Any) -> bool:
    return isinstance(value, str | int | float) or value is None


def _terms(values: Mapping[str, Any]) -> Html:
    return el(
        "dl", *(join([el("dt", name.replace("_", " ")), el("dd", cell(value))]) for name, value in values.items())
    )


def _window(value: Any) -> Html | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("tokens"), list):
        return None
    tokens = value["tokens"]
    numbers = next((value[name] for name in _SHOWN if isinstance(value.get(name), list)), None)
    if numbers is None or len(numbers) != len(tokens) or not all(map(_is_number, numbers)):
        return None
    return window([str(token) for token in tokens], numbers, peak=max([*numbers, 1.0]))


def _curve(value: Any) -> list[Point]:
    """The points of a curve; empty where it is none."""
    if isinstance(value, Mapping):
        if len(value) < 2 or not all(
            _INTEGER.fullmatch(str(key)) and _is_number(number) for key, number in value.items()
        ):
            return []
        return sorted(Point(float(key), number) for key, number in value.items())
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(row, Mapping) for row in value):
        return []
    across, up = _axes(value[0])
    if not all(_is_number(row.get(across)) and _is_number(row.get(up)) for row in value):
        return []
    rows = sorted(value, key=lambda row: row[across])
    return [Point(row[across], row[up], *(_end(row, names) for names in _ENDS)) for row in rows]


def _axes(row: Mapping[str, Any]) -> tuple[str, str]:
    """Which key of a row is along the curve, and which one up; "" for none."""
    across, up = (next((name for name in names if name in row), "") for names in (_ACROSS, _UP))
    return across, up


_INTEGER = re.compile(r"-?\d+")


def _end(row: Mapping[str, Any], names: Sequence[str]) -> float | None:
    return next((row[name] for name in names if _is_number(row.get(name))), None)


def _bars(value: Any) -> list[tuple[str, Point]]:
    """Named numbers, the largest first; empty where it is something else."""
    if not isinstance(value, Mapping) or not value:
        return []
    rows = [(str(name), number if isinstance(number, list) else [number]) for name, number in value.items()]
    if not all(len(numbers) in (1, 3) and all(map(_is_number, numbers)) for _, numbers in rows):
        return []
    points = [(name, Point(0.0, *numbers)) for name, numbers in rows]
    return sorted(points, key=lambda row: -abs(row[1].y))


def _table(rows: Sequence[Mapping[str, Any]]) -> Html:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys.sort(key=lambda key: not any(isinstance(row.get(key), str) for row in rows))
    cells = [[cell(row.get(key)) for key in keys] for row in rows[:_ROWS]]
    return join([table([key.replace("_", " ") for key in keys], cells), _more(len(rows) - _ROWS)])


def cell(value: Any) -> Part:
    """A value in a table."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return el("code", visible(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else short(value)
    return el("code", visible(json.dumps(value, ensure_ascii=False)[:200]))


def _more(count: int) -> Html | None:
    return el("p", f"{count:,} more", class_="note") if count > 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
