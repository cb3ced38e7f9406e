"""Pages of rows by keyset: a page begins after the last row of the one before, so it costs the same wherever it lies.

The place of a row is what it is sorted by and, where that is equal, its source, index and tail. A cursor is the
place of a row as text; rows that come or go in between neither repeat a row nor lose one.
"""

import base64
import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from ...subject.errors import NeuronautError
from .database import Row
from .rows import ROW_KEYS, Filter

_TIE = ("source_id", "idx", "negative")
PAGE_SORTS: dict[str, tuple[tuple[str, bool], ...]] = {
    "feature": (),
    "score": (("coalesce(score, -9e9)", True),),
    "worst": (("coalesce(score, 9e9)", False),),
    "density": (("coalesce(density, -1)", True),),
    "peak": (("peak", True),),
}
"""What rows are sorted by before their place: an expression, and whether it falls. Nulls come last."""
_COLUMNS = (*ROW_KEYS, "density", "peak")


class Page(NamedTuple):
    """Some rows, and the cursors of the pages around them; None where there are no more."""

    rows: list[Row]
    """With `density` and `peak` beside `rows.ROW_KEYS`."""
    before: str | None
    after: str | None


def read_page(
    connection: sqlite3.Connection,
    chosen: Filter,
    *,
    sort: str,
    size: int,
    after: str | None = None,
    before: str | None = None,
) -> Page:
    """The page after a cursor, or the one that ends before a cursor, or the first."""
    if sort not in PAGE_SORTS:
        raise NeuronautError(f"cannot sort by {sort!r}; wanted one of {', '.join(PAGE_SORTS)}")
    keys = (*PAGE_SORTS[sort], *((column, False) for column in _TIE))
    cursor, backwards = after or before, before is not None and after is None
    condition, values = chosen.sql()
    if cursor is not None:
        placed = _read_cursor(cursor, len(keys))
        condition += f" AND ({_beyond([(name, falls is not backwards) for name, falls in keys])})"
        values += [value for place in range(len(placed)) for value in placed[: place + 1]]
    order = ", ".join(f"{name} {'DESC' if falls is not backwards else 'ASC'}" for name, falls in keys)
    names = ", ".join(f"{name} AS key_{place}" for place, (name, _) in enumerate(keys))
    sql = f"SELECT {', '.join(_COLUMNS)}, {names} FROM feature_rows WHERE {condition} ORDER BY {order} LIMIT ?"
    found = connection.execute(sql, [*values, size + 1]).fetchall()
    more, found = len(found) > size, found[:size]
    if backwards:
        found.reverse()
    rows = [{key: row[key] for key in _COLUMNS} for row in found]
    first, last = (_cursor_of(row, len(keys)) for row in (found[0], found[-1])) if found else (None, None)
    has_before, has_after = (more, True) if backwards else (after is not None, more)
    return Page(rows, first if has_before else None, last if has_after else None)


def _beyond(keys: Sequence[tuple[str, bool]]) -> str:
    """That a row comes after a place: by the first key in which it differs."""
    parts = []
    for place, (name, falls) in enumerate(keys):
        same = [f"{other} = ?" for other, _ in keys[:place]]
        parts.append("(" + " AND ".join([*same, f"{name} {'<' if falls else '>'} ?"]) + ")")
    return " OR ".join(parts)


def _cursor_of(row: sqlite3.Row, keys: int) -> str:
    return _write_cursor([row[f"key_{place}"] for place in range(keys)])


def _write_cursor(place: Sequence[float]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(place)).encode()).decode().rstrip("=")


def _read_cursor(text: str, keys: int) -> list[float]:
    try:
        place = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        place = None
    if not isinstance(place, list) or len(place) != keys or not all(isinstance(value, int | float) for value in place):
        raise NeuronautError(f"{text[:40]!r} is no place in this list; begin at its first page")
    return place
