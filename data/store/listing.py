"""Lists of features: what may be asked for, and a page of it without reading the rest.

A page is merged from one run of each source, read from `listed` (listing_schema.py) by one of two ways that give the
same rows. Where few features meet the conditions, as `tallies` tells beforehand, those are read from the index of
scores, a range for each status and side of the baseline, and sorted. Where many do, the index of the sort is walked
from the page's beginning, and what does not meet the conditions is passed over: of f features among n the next one is
n / f away, so that a page of p costs the less of f and p n / f. Sorts by score have the conditions in their index and
need no choice. Rows of explanations and scores are read for the page alone.
"""

import heapq
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from typing import Literal, NamedTuple, TypedDict

from ...subject.address import Feature
from ...subject.errors import NeuronautError
from .database import Row
from .listing_schema import BIN

ROW_KEYS: tuple[str, ...] = (
    "feature",
    "status",
    "explanation",
    "headline",
    "explainer",
    "score",
    "ci_low",
    "ci_high",
    "metric",
    "scorer",
    "baseline",
    "n",
)
COLUMNS = ", ".join(ROW_KEYS)
STATUSES: tuple[str, ...] = ("explained", "weak", "dead", "too_rare", "dense", "no_pattern", "failed", "unlabelled")
"""What a feature may be; weak: explained by what may be worth nothing (ranking.py)."""

Sort = Literal["feature", "score", "worst", "density", "peak"]
SORTS: Mapping[str, tuple[str, str | None]] = {
    "feature": ("source_id", None),
    "score": ("by_score", "listed_score"),
    "worst": ("by_worst", "listed_worst"),
    "density": ("by_density", "listed_density"),
    "peak": ("by_peak", "listed_peak"),
}
"""The column that each sort goes by, which rises, and the index that has it (None: the primary key); ties are in the
order of features."""
_PAGE = 10_000
"""A longer list is read as a whole."""
_LAST = 2**62


class Conditions(TypedDict, total=False):
    """Conditions on rows, all of which hold; what is left out, or None, asks for nothing."""

    min_score: float | None
    max_score: float | None
    status: str | None
    """One of STATUSES."""
    beats_baseline: bool
    """Whether the score must be above every baseline."""


class Filter(NamedTuple):
    """Conditions on the rows of one source, or of all."""

    source: str | None
    conditions: Conditions

    def sql(self) -> tuple[str, list[object]]:
        """The condition on `listed` as SQL, with its parameters; an error for a status that there is not."""
        scores, values = self.scores()
        parts, own = self.parts("listed.")
        return f"{parts} AND {scores}", [*own, *values]

    def parts(self, table: str = "") -> tuple[str, list[object]]:
        """The conditions on source, status and baseline, which `tallies` has too."""
        status = self.conditions.get("status")
        if status is not None and status not in STATUSES:
            raise NeuronautError(f"there is no status {status!r}; wanted one of {', '.join(STATUSES)}")
        conditions = {
            f"{table}source_id = (SELECT id FROM sources WHERE name = ?)": self.source,
            f"{table}status = ?": status,
        }
        conditions = {sql: value for sql, value in conditions.items() if value is not None}
        always = f"{table}beats = 1" if self.conditions.get("beats_baseline") else "1"
        return " AND ".join((always, *conditions)), list(conditions.values())

    def scores(self, *, rising: bool = False) -> tuple[str, list[object]]:
        """The conditions on the score, by its sort key: `by_score`, or `by_worst` where scores rise.

        An index finds where they hold only by the key that it is sorted by.
        """
        low, high = self.conditions.get("min_score"), self.conditions.get("max_score")
        conditions: dict[str, float] = {}
        if low is not None:
            conditions |= {"by_worst < 9e999 AND by_worst >= ?": low} if rising else {"by_score <= ?": -low}
        if high is not None:
            conditions |= {"by_worst <= ?": high} if rising else {"by_score < 9e999 AND by_score >= ?": -high}
        return " AND ".join(conditions) or "1", list(conditions.values())


class Key(NamedTuple):
    """The place of a row in a list, and whose it is."""

    place: float
    source_id: int
    idx: int
    negative: int
    explanation_id: int | None


def iterate_rows(
    connection: sqlite3.Connection, chosen: Filter, *, sort: str, limit: int | None = None, after: Feature | None = None
) -> Iterator[Row]:
    """A row per feature, and per negative tail that has been explained; those that follow one, where that is named."""
    if sort not in SORTS:
        raise NeuronautError(f"cannot sort by {sort!r}; wanted one of {', '.join(SORTS)}")
    start = None if after is None else find_key(connection, after, sort)
    if limit is not None and limit <= _PAGE:
        yield from read_keys(connection, page_keys(connection, chosen, sort=sort, limit=limit, after=start))
        return
    condition, values = chosen.sql()
    key, _ = SORTS[sort]
    if start is not None:
        condition += f" AND ({key}, source_id, idx, negative) > (?, ?, ?, ?)"
        values += start[:4]
    order = dict.fromkeys((key, "source_id", "idx", "negative"))
    sql = f"SELECT {COLUMNS} FROM feature_rows AS listed WHERE {condition} ORDER BY {', '.join(order)} LIMIT ?"
    yield from map(dict, connection.execute(sql, [*values, -1 if limit is None else limit]))


def find_key(connection: sqlite3.Connection, feature: Feature, sort: str) -> Key:
    """The place of a feature in a list; NeuronautError where it has no row."""
    row = connection.execute(
        f"SELECT {SORTS[sort][0]}, source_id, idx, negative, explanation_id FROM listed"
        " WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND idx = ? AND negative = ?",
        [str(feature.source), feature.index, feature.negative],
    ).fetchone()
    if row is None:
        raise NeuronautError(f"{feature} has no row here that a page could follow; name the last feature of a page")
    return Key(*row)


def read_keys(connection: sqlite3.Connection, keys: Sequence[Key]) -> list[Row]:
    """The rows of these keys, in their order."""
    sql = f"SELECT {COLUMNS} FROM feature_rows WHERE source_id = ? AND idx = ? AND negative = ?"
    return [dict(connection.execute(sql, key[1:4]).fetchone()) for key in keys]


def page_keys(
    connection: sqlite3.Connection, chosen: Filter, *, sort: str, limit: int, after: Key | None = None
) -> list[Key]:
    """The keys of the first `limit` rows after one, or of all."""
    with closing(iterate_keys(connection, chosen, sort=sort, limit=limit, after=after)) as keys:
        return list(keys)


def iterate_keys(
    connection: sqlite3.Connection, chosen: Filter, *, sort: str, limit: int, after: Key | None = None
) -> Generator[Key]:
    """The same, each read when it is asked for."""
    key, index = SORTS[sort]
    scores, whole = chosen.scores(rising=sort == "worst"), chosen._replace(source=None).sql()
    with ExitStack() as stack:
        runs: list[sqlite3.Cursor] = []
        for source_id, rows, found in _count_by_source(connection, chosen):
            begin = _begin(key, source_id, after)
            if begin is None:
                continue
            if sort in ("score", "worst") or found * found <= limit * rows:
                own = index if sort in ("score", "worst") else "listed_score"
                parts = _parts(connection, chosen, source_id)
                ranges = [("source_id = ? AND status = ? AND beats = ?", part, own, scores) for part in parts]
            else:
                ranges = [("source_id = ?", [source_id], index, whole)]
            for equal, values, by, (condition, bounds) in ranges:
                sql = _range_sql(key, by, f"{equal} AND {condition} AND {begin[0]}")
                cursor = connection.execute(sql, [*values, *bounds, *begin[1], limit])
                runs.append(stack.enter_context(closing(cursor)))
        merged = heapq.merge(*runs, key=lambda row: tuple(row)[:4])
        yield from (Key(*row) for row in islice(merged, limit))


def _range_sql(key: str, index: str | None, condition: str) -> str:
    # The primary key of a table without row ids has no name to choose it by.
    hint, order = ("NOT INDEXED", "") if index is None else (f"INDEXED BY {index}", f"{key}, ")
    if key == "source_id":
        order = ""
    return (
        f"SELECT {key}, source_id, idx, negative, explanation_id FROM listed {hint} WHERE {condition}"
        f" ORDER BY {order}idx, negative LIMIT ?"
    )


def _begin(key: str, source_id: int, after: Key | None) -> tuple[str, list[object]] | None:
    """Where the rows of one source begin, as a condition; None where all of them lie before."""
    if after is None:
        return "1", []
    side = (source_id > after.source_id) - (source_id < after.source_id)
    if key == "source_id":
        return {1: ("1", []), 0: ("(idx, negative) > (?, ?)", [after.idx, after.negative])}.get(side)
    ends = {1: [-1, -1], 0: [after.idx, after.negative], -1: [_LAST, 1]}
    return f"({key}, idx, negative) > (?, ?, ?)", [after.place, *ends[side]]


def _parts(connection: sqlite3.Connection, chosen: Filter, source_id: int) -> list[list[object]]:
    """Source, status and `beats` of the parts of a source that hold what may be asked for."""
    condition, values = chosen._replace(source=None).parts()
    sql = f"SELECT DISTINCT source_id, status, beats FROM tallies WHERE source_id = ? AND n > 0 AND {condition}"
    return [list(row) for row in connection.execute(sql, [source_id, *values])]


def _count_by_source(connection: sqlite3.Connection, chosen: Filter) -> list[tuple[int, int, int]]:
    """Id of each source, its rows, and how many of them meet the conditions: of bins that a bound cuts, all."""
    condition, values = chosen.parts()
    low, high = chosen.conditions.get("min_score"), chosen.conditions.get("max_score")
    for bound, sign, slack in ((low, ">=", -1), (high, "<=", 1)):
        if bound is not None:
            condition += f" AND bin > -1000 AND bin {sign} ?"
            values.append(bound / BIN + slack)
    sql = f"SELECT source_id, sum(n), sum(n * ({condition})) AS found FROM tallies GROUP BY source_id HAVING found > 0"
    return [tuple(row) for row in connection.execute(sql, values)]


def count_rows(connection: sqlite3.Connection, chosen: Filter) -> int:
    """How many rows may meet the conditions: all that do and, where the score is bounded, some beside a bound."""
    return sum(found for _, _, found in _count_by_source(connection, chosen))
