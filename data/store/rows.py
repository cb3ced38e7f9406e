"""Explanations, scores and judgements read back, and the row of one feature.

Judgements hold each scoring's predictions and truth, so that metrics can be computed again. All judgements of one
scoring (the explanation's and its controls') share a round, which is the digest of their content: storing the same
scoring twice changes nothing.
"""

import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature
from ..codec import content_digest
from ..records import Explanation, Judgements, Score
from .database import Row
from .listing import COLUMNS, Filter
from .writing import now


class StoredExplanation(NamedTuple):
    """An explanation with its id in the store."""

    id: int
    explanation: Explanation
    created: str
    """UTC, ISO 8601."""
    status: str
    """That of its row: its own, or "weak"."""


def read_row(connection: sqlite3.Connection, feature: Feature) -> Row | None:
    """The row of one feature, or of a negative tail that has been explained."""
    sql = (
        f"SELECT {COLUMNS} FROM feature_rows WHERE source_id = (SELECT id FROM sources WHERE name = ?)"
        " AND idx = ? AND negative = ?"
    )
    row = connection.execute(sql, [str(feature.source), feature.index, feature.negative]).fetchone()
    return None if row is None else dict(row)


def iterate_best(connection: sqlite3.Connection, chosen: Filter) -> Iterator[int]:
    """Ids of the best explanations that have a text, of the features themselves, not of negative tails."""
    condition, values = chosen.sql()
    sql = f"SELECT explanation_id FROM listed WHERE {condition} AND negative = 0 AND has_text ORDER BY source_id, idx"
    yield from (row[0] for row in connection.execute(sql, values))


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
