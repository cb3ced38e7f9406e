"""The table `ranks`: of each explanation its place among those of its feature, its status and its headline score.

All of it follows from explanations and scores by ranking.py; it is stored so that a list need not ask every score.
Whoever adds explanations or scores ranks their features again.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby

from ..ranking import HEADLINES, Candidate, headline_score, rank, standing
from ..records import Score

_KINDS = ", ".join(str(kind) for kind in HEADLINES)
_SCORES = f"""SELECT explanations.id, feature_id, negative, text IS NOT NULL AS has_text, explanations.status,
        explanations.provenance ->> 'verdict' AS verdict, scores.id AS score_id,
        scorer, examples, metric, value, ci_low, ci_high, baselines, backend, judge,
        CASE examples WHEN 'select' THEN windows ELSE '[]' END AS windows
    FROM main.explanations LEFT JOIN main.scores ON explanation_id = explanations.id AND value IS NOT NULL
        AND (examples = 'select' OR (scorer, examples, metric) IN (VALUES {_KINDS}))"""

_Row = tuple[object, ...]


def rank_features(connection: sqlite3.Connection, condition: str = "1", values: Sequence[object] = ()) -> None:
    """Rank the explanations that meet a condition, which names all of a feature's (of a tail's) or none."""
    rows = connection.execute(
        f"{_SCORES} WHERE {condition} ORDER BY feature_id, negative, explanations.id, scores.id", values
    )
    connection.executemany(
        "INSERT INTO ranks (explanation_id, feature_id, negative, place, status, score_id, baseline)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (explanation_id) DO UPDATE SET place = excluded.place,"
        " status = excluded.status, score_id = excluded.score_id, baseline = excluded.baseline",
        (
            row
            for target, of_feature in groupby(rows, key=lambda row: (row["feature_id"], row["negative"]))
            # The best comes last, so that no two have the first place at a time.
            for row in reversed([*_rank_feature(target, list(of_feature))])
        ),
    )


def rank_new(connection: sqlite3.Connection, newest: int) -> None:
    """Rank the explanations of ids above one, and the others of their features; one alone is not compared."""
    other = """SELECT 1 FROM explanations AS other WHERE other.feature_id = own.feature_id
        AND other.negative = own.negative AND other.id <> own.id"""
    compared = f"(EXISTS ({other}) OR EXISTS (SELECT 1 FROM scores WHERE explanation_id = own.id))"
    connection.execute(
        "INSERT INTO ranks (explanation_id, feature_id, negative, place, status, score_id, baseline)"
        " SELECT id, feature_id, negative, 1, status, NULL, NULL FROM explanations AS own"
        f" WHERE id > ? AND NOT {compared}",
        [newest],
    )
    rest = f"SELECT feature_id, negative FROM explanations AS own WHERE id > ? AND {compared}"
    rank_features(connection, f"(feature_id, negative) IN ({rest})", [newest])


def rank_beside(connection: sqlite3.Connection, explanation_id: int) -> None:
    """Rank an explanation and the others of its feature."""
    condition = "(feature_id, negative) = (SELECT feature_id, negative FROM main.explanations WHERE id = ?)"
    rank_features(connection, condition, [explanation_id])


def _rank_feature(target: tuple[int, int], rows: Sequence[sqlite3.Row]) -> Iterator[_Row]:
    by_id = {id: list(own) for id, own in groupby(rows, key=lambda row: row["id"])}
    candidates = [
        Candidate(
            id,
            bool(own[0]["has_text"]),
            [_read_score(row) for row in own if row["score_id"] is not None],
            unproven=own[0]["verdict"] not in (None, "supported"),
        )
        for id, own in by_id.items()
    ]
    for place, candidate in enumerate(rank(candidates), start=1):
        headline = headline_score(candidate.scores)
        own = by_id[candidate.id]
        ids = [row["score_id"] for row, score in zip(own, candidate.scores, strict=False) if score is headline]
        status = standing(own[0]["status"], headline)
        yield (candidate.id, *target, place, status, *(ids or [None]), headline and headline.baseline)


def _read_score(row: sqlite3.Row) -> Score:
    return Score(
        row["scorer"],
        row["examples"],
        row["metric"],
        row["value"],
        ci_low=row["ci_low"],
        ci_high=row["ci_high"],
        baselines=json.loads(row["baselines"]),
        windows=tuple(json.loads(row["windows"])),
        backend=row["backend"],
        judge=row["judge"],
    )
