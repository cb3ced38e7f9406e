"""A database at a glance, whatever its size: counts of all features, and distributions over a bounded sample.

Counts are exact. Scores, baselines, lengths and densities are those of at most SAMPLE features that have an
explanation, drawn by a hash in runs of explanations that follow each other; where there are no more, that is all of
them, and the medians are those of `summarise`.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...subject.address import SourceId
from .database import Row, translate_errors
from .store import Store
from .summary import ROLES, Cost, Interval, count_words, median, total_cost
from .tallies import count_by_source

SAMPLE = 2000
"""Features that distributions are taken over."""
RUN = 16
"""Explanations that are drawn together: what follows each other in the file is read at once."""
_EXPLAINED = ("explained", "weak")


class SampledScores(NamedTuple):
    """Headline scores of a sample by one scorer, in one metric."""

    scorer: str
    metric: str
    values: list[float]
    median: Interval
    baselines: dict[str, list[float]]
    """Values by role, of those that have one."""
    baseline_medians: dict[str, Interval]
    beaten: dict[str, int]
    """How many score above each baseline, of those that have it."""
    above_all: int
    """How many score above the best of their baselines."""


class Labelled(NamedTuple):
    """An explained feature of the sample."""

    feature: str
    score: float | None
    density: float
    words: int
    headline: str | None
    """Or the whole text, where there is none."""
    status: str
    """"explained" or "weak"."""
    baseline: float | None
    """The best one."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What a database, or one source of it, holds."""

    sources: Sequence[Row]
    """As `Store.sources` gives them, with `statuses`: how many features have each status."""
    explained: int
    """Features that have an explanation."""
    sample: Sequence[Labelled]
    scores: Sequence[SampledScores]
    """The scorer with most values first."""
    words: Interval | None
    """The median of the words of an explanation, over the sample."""
    cost: Cost


def read_overview(store: Store, source: str | SourceId | None = None) -> Overview:
    """The overview of a source, or of everything."""
    known = store.known_source(source)
    sources = [row for row in store.sources() if known is None or row["source"] == known]
    with translate_errors(store.path):
        statuses = count_by_source(store.db.conn)
        rows = _read_sample(store.db.conn, known, explained=_count_explained(sources, statuses))
    sample = [
        Labelled(
            row["feature"],
            row["score"],
            density=row["density"],
            words=count_words(row["explanation"]),
            headline=row["headline"] or row["explanation"],
            status=row["status"],
            baseline=row["baseline"],
        )
        for row in rows
    ]
    return Overview(
        [row | {"statuses": statuses[row["source"]]} for row in sources],
        explained=_count_explained(sources, statuses),
        sample=sample,
        scores=_pool_scores(rows),
        words=median(one.words for one in sample),
        cost=total_cost(store),
    )


def _count_explained(sources: Sequence[Row], statuses: Mapping[str, Mapping[str, int]]) -> int:
    return sum(statuses[row["source"]].get(status, 0) for row in sources for status in _EXPLAINED)


def _read_sample(connection: sqlite3.Connection, source: str | None, *, explained: int) -> list[Row]:
    """Rows of at most SAMPLE explained features: of more, those that a hash of numbers of explanations draws."""
    sql = f"""SELECT status.feature, status.explanation, status.headline, status.score, status.metric, status.scorer,
            listed.status, status.baseline, status.density, scores.baselines
        FROM {{}} JOIN feature_status AS status ON status.feature_id = listed.feature_id
        JOIN ranks ON ranks.explanation_id = listed.explanation_id LEFT JOIN scores ON scores.id = ranks.score_id
        WHERE listed.negative = 0 AND listed.status IN ('{"', '".join(_EXPLAINED)}')
            AND listed.source_id IN (SELECT id FROM sources WHERE ?2 IS NULL OR name = ?2)
        ORDER BY listed.explanation_id LIMIT {SAMPLE}"""
    if explained <= SAMPLE:
        return [dict(row) for row in connection.execute(sql.format("listed"), ["", source])]
    drawn = "json_each(?1) AS asked CROSS JOIN listed ON listed.explanation_id = asked.value"
    ids = _draw_ids(connection, explained)
    return [dict(row) for row in connection.execute(sql.format(drawn), [json.dumps(ids), source])]


def _draw_ids(connection: sqlite3.Connection, explained: int) -> list[int]:
    """Ids of explanations, a run of each so many that follow each other, where a hash says: nothing is read for it."""
    (last,) = connection.execute("SELECT max(id) FROM explanations").fetchone()
    run = min(RUN, SAMPLE)
    step = -(-explained * run // SAMPLE)
    room = step - run + 1
    starts = (first + first // step * 2654435761 % 2**32 * room // 2**32 for first in range(1, last + 1, step))
    return [id for start in starts for id in range(start, start + run)]


def _pool_scores(rows: Sequence[Row]) -> list[SampledScores]:
    kinds: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["score"] is not None:
            kinds[row["scorer"], row["metric"]].append(row)
    pooled = [_pool_kind(scorer, metric, group) for (scorer, metric), group in sorted(kinds.items())]
    return sorted(pooled, key=lambda scores: -len(scores.values))


def _pool_kind(scorer: str, metric: str, rows: Sequence[Row]) -> SampledScores:
    values = [row["score"] for row in rows]
    middle = median(values)
    assert middle is not None
    measured = [json.loads(row["baselines"] or "{}") for row in rows]
    baselines: dict[str, list[float]] = {}
    medians: dict[str, Interval] = {}
    beaten: dict[str, int] = {}
    for role in ROLES:
        pairs = [(value, own[role]) for value, own in zip(values, measured, strict=True) if own.get(role) is not None]
        if (own := median(baseline for _, baseline in pairs)) is not None:
            baselines[role] = [baseline for _, baseline in pairs]
            medians[role] = own
            beaten[role] = sum(score > baseline for score, baseline in pairs)
    above = sum(row["baseline"] is not None and row["score"] > row["baseline"] for row in rows)
    return SampledScores(
        scorer,
        metric,
        values,
        median=middle,
        baselines=baselines,
        baseline_medians=medians,
        beaten=beaten,
        above_all=above,
    )
