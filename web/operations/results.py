"""Results of operations, cut to a number of characters with a note on how to get the rest.

What is cut is whole: rows from the end, while there are several; within the last one the longest lists, and with a
list every other one of the same length beside it, so that tokens and their values stay in step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = dict[str, Any]
CHARACTERS = 30_000
"""Most characters of a result, written as JSON."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an operation gives: rows that JSON can hold."""

    rows: Sequence[Row]
    notes: tuple[str, ...] = ()
    """What the reader should know of them."""
    more: str | None = None
    """How to get what was left out; None where nothing was."""

    def to_json(self) -> Row:
        """The result as one JSON object."""
        return {"rows": list(self.rows), "notes": list(self.notes), "more": self.more}


def cut(result: Result, characters: int, rest: str) -> Result:
    """Cut a result to a number of characters; `rest` says how to get what is left out."""
    if _size(result) <= characters:
        return result
    rows = list(result.rows)
    while len(rows) > 1 and _size(replace(result, rows=rows)) > characters:
        rows.pop()
    left_out = [f"{len(rows)} of {len(result.rows)} rows"] if len(rows) < len(result.rows) else []
    (row,) = json.loads(json.dumps(rows)) if len(rows) == 1 else (None,)
    if row is not None:
        shortened = _shorten(row, characters - _size(replace(result, rows=[])))
        left_out += [f"{kept} of {whole} of {name}" for name, (kept, whole) in shortened.items()]
        rows = [row]
    more = f"cut to {' and '.join(left_out)}, at {characters:,} characters; {rest}"
    return replace(result, rows=rows, more=more if result.more is None else f"{more}; {result.more}")


def _size(result: Result) -> int:
    return len(json.dumps(result.to_json(), ensure_ascii=False))


def _shorten(row: Row, characters: int) -> dict[str, tuple[int, int]]:
    """Halve the longest lists of a row, in place, until it fits; returns what was kept of how many, by their names."""
    wholes: dict[str, tuple[int, int]] = {}
    while len(json.dumps(row, ensure_ascii=False)) > characters:
        found = max(_lists("", row), key=lambda place: place[2], default=None)
        if found is None or found[2] < 2:
            break
        name, siblings, length = found
        for parent, key in siblings:
            del parent[key][(length + 1) // 2 :]
        wholes[name] = ((length + 1) // 2, wholes.get(name, (0, length))[1])
    return wholes


def _lists(path: str, value: Any) -> "list[tuple[str, list[tuple[Row, str]], int]]":
    """The lists within a value, those of one length in one object together: their name, where they are, the length."""
    if isinstance(value, list):
        return [place for item in value for place in _lists(path, item)]
    if not isinstance(value, dict):
        return []
    together: dict[int, list[tuple[Row, str]]] = {}
    for key, item in value.items():
        if isinstance(item, list):
            together.setdefault(len(item), []).append((value, key))
    own = [(", ".join(f"{path}{key}" for _, key in places), places, length) for length, places in together.items()]
    return own + [place for key, item in value.items() for place in _lists(f"{path}{key}.", item)]
