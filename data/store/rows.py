"""Rows for people and machines: list and full-text search; explanations, scores and judgements read back.

Every row has the keys of ROW_KEYS. Filters apply before the limit, so a short page is the end. What
a user searches for is text, never a query language: words are looked up in the full-text index (as
one phrase where quoted), what holds no word at all, like `(`, is looked up as it is.

Judgements hold each scoring's predictions and truth, so that metrics can be computed again. All judgements of one
scoring (the explanation's and its controls') share a round, which is the digest of their content: storing the same
scoring twice changes nothing.
"""

import json
import re
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature
from ...subject.errors import NeuronautError
from ..codec import content_digest
from ..records import Explanation, Judgements, Score
from .database import Row
from .writing import clean, now

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

Sort = Literal["feature", "score", "worst", "density", "peak"]
SORTS: Mapping[str, str] = {
    "feature": "source_id, idx, negative",
    "score": "score IS NULL, score DESC, source_id, idx, negative",
    "worst": "score IS NULL, score, source_id, idx, negative",
    "density": "density IS NULL, density DESC, source_id, idx, negative",
    "peak": "peak DESC, source_id, idx, negative",
}
_COLUMNS = ", ".join(ROW_KEYS)
STATUSES: tuple[str, ...] = ("explained", "weak", "dead", "too_rare", "dense", "no_pattern", "failed", "unlabelled")
"""What a feature may be; weak: explained by what may be worth nothing (ranking.py)."""


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
        """The condition as SQL, with its parameters; an error for a status that there is not."""
        status = self.conditions.get("status")
        if status is not None and status not in STATUSES:
            raise NeuronautError(f"there is no status {status!r}; wanted one of {', '.join(STATUSES)}")
        conditions = {
            "source_id = (SELECT id FROM sources WHERE name = ?)": self.source,
            "score >= ?": self.conditions.get("min_score"),
            "score <= ?": self.conditions.get("max_score"),
            "status = ?": status,
        }
        conditions = {sql: value for sql, value in conditions.items() if value is not None}
        always = "score > baseline" if self.conditions.get("beats_baseline") else "1"
        return " AND ".join((always, *conditions)), list(conditions.values())


class StoredExplanation(NamedTuple):
    """An explanation with its id in the store."""

    id: int
    explanation: Explanation
    created: str
    """UTC, ISO 8601."""
    status: str
    """That of its row: its own, or "weak"."""


def iterate_rows(connection: sqlite3.Connection, chosen: Filter, *, sort: str, limit: int | None) -> Iterator[Row]:
    """A row per feature, and per negative tail that has been explained; one in memory at a time."""
    if sort not in SORTS:
        raise NeuronautError(f"cannot sort by {sort!r}; wanted one of {', '.join(SORTS)}")
    condition, values = chosen.sql()
    sql = f"SELECT {_COLUMNS} FROM feature_rows WHERE {condition} ORDER BY {SORTS[sort]} LIMIT ?"
    yield from map(dict, connection.execute(sql, [*values, _limit(limit)]))


def read_row(connection: sqlite3.Connection, feature: Feature) -> Row | None:
    """The row of one feature, or of a negative tail that has been explained."""
    sql = (
        f"SELECT {_COLUMNS} FROM feature_rows WHERE source_id = (SELECT id FROM sources WHERE name = ?)"
        " AND idx = ? AND negative = ?"
    )
    row = connection.execute(sql, [str(feature.source), feature.index, feature.negative]).fetchone()
    return None if row is None else dict(row)


def iterate_best(connection: sqlite3.Connection, chosen: Filter) -> Iterator[int]:
    """Ids of the best explanations that have a text, of the features themselves, not of negative tails."""
    condition, values = chosen.sql()
    sql = (
        f"SELECT explanation_id FROM feature_status WHERE {condition} AND explanation IS NOT NULL"
        f" ORDER BY {SORTS['feature']}"
    )
    yield from (row[0] for row in connection.execute(sql, values))


def search_rows(
    connection: sqlite3.Connection, query: str, chosen: Filter, *, limit: int | None, markers: tuple[str, str] | None
) -> list[Row]:
    """Rows whose best explanation holds every term; those with the whole query as it stands come first."""
    words, marks = _terms(query)
    if not words and not marks:
        raise NeuronautError("the query is empty; wanted some words, for example: neuronaut search 'method calls'")
    condition, values = chosen.sql()
    conditions = [condition, *[f"instr(lower({_WHOLE}), lower(?))"] * len(marks)]
    columns = ", ".join(f"best.{key}" for key in ROW_KEYS)
    parameters: list[object] = [*values, *marks]
    table, order = "best_explanations AS best", "score IS NULL, score DESC"
    if words:
        table = f"explanations_fts JOIN {table} ON explanation_id = explanations_fts.rowid"
        conditions.append("explanations_fts MATCH ?")
        parameters.append(" AND ".join('"' + word.replace('"', '""') + '"' for word in words))
        order = "bm25(explanations_fts)"
        if markers is not None:
            marked = {"headline": 0, "explanation": 1}
            columns = ", ".join(
                f"highlight(explanations_fts, {marked[key]}, ?, ?) AS {key}" if key in marked else f"best.{key}"
                for key in ROW_KEYS
            )
            parameters = [*markers, *markers, *parameters]
    sql = (
        f"SELECT {columns} FROM {table} WHERE explanation IS NOT NULL AND {' AND '.join(conditions)}"
        f" ORDER BY NOT instr(lower({_WHOLE}), lower(?)), {order}, explanation_id LIMIT ?"
    )
    rows = connection.execute(sql, [*parameters, _searchable(query).strip().strip('"'), _limit(limit)]).fetchall()
    return [dict(row) | {"rank": rank, "similarity": None} for rank, row in enumerate(rows, start=1)]


_WHOLE = "coalesce(best.headline || ' ', '') || best.explanation"
"""All words of an explanation; one from elsewhere may have a headline that its text does not begin with."""


def read_rows(connection: sqlite3.Connection, view: str, column: str, ids: Sequence[int]) -> list[Row]:
    """The rows of a view that have these ids in a column, in this order."""
    sql = f"SELECT {_COLUMNS}, {column} AS id FROM {view} WHERE {column} IN (SELECT value FROM json_each(?))"
    rows = {row["id"]: row for row in connection.execute(sql, [json.dumps(list(ids))])}
    return [{key: rows[id_][key] for key in ROW_KEYS} for id_ in ids]


def _terms(query: str) -> tuple[list[str], list[str]]:
    """The query's terms that hold words, and those that hold none."""
    parts = [phrase or bare for phrase, bare in re.findall(r'"([^"]+)"|([^\s"]+)', _searchable(query))]
    words = [part for part in parts if any(map(_in_word, part))]
    return words, [part.strip() for part in parts if part not in words and part.strip()]


def _searchable(query: str) -> str:
    return clean(query) or ""


def _in_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def read_explanations(
    connection: sqlite3.Connection, condition: str, values: Sequence[object]
) -> Iterator[StoredExplanation]:
    """Explanations that meet a condition, feature by feature, of each the best first."""
    sql = (
        "SELECT explanations.*, sources.name AS source, features.idx, ranks.status AS standing FROM explanations"
        " JOIN ranks ON ranks.explanation_id = explanations.id"
        " JOIN features ON features.id = explanations.feature_id JOIN sources ON sources.id = source_id"
        f" WHERE {condition} ORDER BY source_id, idx, explanations.negative, place"
    )
    for row in connection.execute(sql, values):
        feature = Feature.parse(f"{row['source']}:{row['idx']}{'-' if row['negative'] else ''}")
        explanation = Explanation(
            feature,
            row["text"],
            row["explainer"],
            reason=row["reason"],
            status=row["status"],
            rule=row["rule"],
            headline=row["headline"],
            predictor=row["predictor"],
            seen=tuple(json.loads(row["seen"])),
            provenance=json.loads(row["provenance"]),
        )
        yield StoredExplanation(row["id"], explanation, row["created"], row["standing"])


def another_explanation(connection: sqlite3.Connection, feature: Feature, *, with_rule: bool) -> int | None:
    """Id of the best explanation of the next explained feature of the source, in a circle; None where it is alone."""
    sql = (
        "SELECT explanation_id FROM best_explanations JOIN sources ON sources.id = source_id WHERE name = ?1"
        " AND explanation IS NOT NULL AND {} AND (rule IS NOT NULL OR NOT ?3) ORDER BY idx, negative LIMIT 1"
    )
    found = (
        connection.execute(sql.format(side), [str(feature.source), feature.index, with_rule]).fetchone()
        for side in ("idx > ?2", "idx < ?2")
    )
    return next((row[0] for row in found if row is not None), None)


def read_scores(connection: sqlite3.Connection, explanation_id: int) -> list[Score]:
    """The scores of an explanation, in the order in which they were added."""
    sql = "SELECT * FROM scores WHERE explanation_id = ? ORDER BY id"
    return [
        Score(
            row["scorer"],
            row["examples"],
            row["metric"],
            row["value"],
            reason=row["reason"],
            ci_low=row["ci_low"],
            ci_high=row["ci_high"],
            n=row["n"],
            coverage=row["coverage"],
            baselines=json.loads(row["baselines"]),
            windows=tuple(json.loads(row["windows"])),
            backend=row["backend"],
            judge=row["judge"],
            provenance=json.loads(row["provenance"]),
        )
        for row in connection.execute(sql, [explanation_id])
    ]


def add_judgements(connection: sqlite3.Connection, explanation_id: int, judgements: Sequence[Judgements]) -> None:
    """Store the judgements of one scoring of an explanation."""
    digests = [_digest(part) for part in judgements]
    round_digest = content_digest(*sorted(digests))[:16]
    connection.executemany(
        "INSERT INTO judgements (explanation_id, scorer, examples, role, kind, units, items, true, predicted,"
        " threshold, windows, missing, provenance, round, digest, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            (
                explanation_id,
                j.scorer,
                j.examples,
                j.role,
                j.kind,
                *j.true.shape,
                _pack(j.true),
                _pack(j.predicted),
                j.threshold,
                json.dumps(j.windows),
                json.dumps(j.missing, sort_keys=True),
                json.dumps(j.provenance, sort_keys=True),
                round_digest,
                content_digest(round_digest, digest),
                now(),
            )
            for j, digest in zip(judgements, digests, strict=True)
        ],
    )


def read_judgements(connection: sqlite3.Connection, explanation_id: int) -> list[list[Judgements]]:
    """The judgements of an explanation, one list per scoring, the earliest first."""
    rounds: dict[str, list[Judgements]] = {}
    for row in connection.execute("SELECT * FROM judgements WHERE explanation_id = ? ORDER BY id", [explanation_id]):
        shape = row["units"], row["items"]
        rounds.setdefault(row["round"], []).append(
            Judgements(
                scorer=row["scorer"],
                examples=row["examples"],
                role=row["role"],
                kind=row["kind"],
                true=_unpack(row["true"], shape),
                predicted=_unpack(row["predicted"], shape),
                threshold=row["threshold"],
                windows=tuple(json.loads(row["windows"])),
                missing=json.loads(row["missing"]),
                provenance=json.loads(row["provenance"]),
            )
        )
    return list(rounds.values())


def _digest(judgements: Judgements) -> str:
    return content_digest(
        judgements.scorer,
        judgements.examples,
        judgements.role,
        judgements.kind,
        judgements.threshold,
        judgements.true.tolist(),
        np.nan_to_num(judgements.predicted, nan=-1e30).tolist(),
        list(judgements.windows),
        judgements.missing,
        judgements.provenance,
    )


def _pack(values: NDArray[np.float32]) -> bytes:
    return zlib.compress(values.astype("<f4").tobytes())


def _unpack(blob: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.frombuffer(zlib.decompress(blob), "<f4").reshape(shape)
