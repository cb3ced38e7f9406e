"""A database at a glance, whatever its size: counts of all features, and distributions over a bounded sample.

Counts are exact. Scores, baselines, lengths and densities are those of at most SAMPLE features that have an
explanation, taken evenly by the age of the explanation; where there are no more, that is all of them, and the
medians are those of `summarise`.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...subject.address import SourceId
from .database import Row, translate_errors
from .store import Store
from .summary import ROLES, Cost, Interval, count_words, median, total_cost

SAMPLE = 4000
"""Features that distributions are taken over."""


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
        statuses = _count_statuses(store.db.conn)
        rows = _read_sample(store.db.conn, known)
    explained = sum(
        count for row in sources for status, count in statuses[row["source"]].items() if status in ("explained", "weak")
    )
    sample = [
        Labelled(row["feature"], row["score"], row["density"], count_words(row["explanation"]), row["headline"])
        for row in rows
    ]
    return Overview(
        [row | {"statuses": statuses[row["source"]]} for row in sources],
        explained=explained,
        sample=sample,
        scores=_pool_scores(rows),
        words=median(one.words for one in sample),
        cost=total_cost(store),
    )


def _count_statuses(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """By source, how many features have each status."""
    counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    sql = """SELECT sources.name, status, count(*) FROM feature_status JOIN sources ON sources.id = source_id
        GROUP BY source_id, status ORDER BY source_id, status"""
    for name, status, count in connection.execute(sql):
        counts[name][status] = count
    return counts


def _read_sample(connection: sqlite3.Connection, source: str | None) -> list[Row]:
    """At most SAMPLE rows of explained features, evenly by the id of the explanation."""
    of_source = "AND source_id = (SELECT id FROM sources WHERE name = ?2)" if source else "AND ?2 IS NULL"
    ids = f"""SELECT explanation_id FROM ranks JOIN features ON features.id = feature_id
        WHERE place = 1 AND negative = 0 AND status IN ('explained', 'weak') {of_source}"""
    (total,) = connection.execute(f"SELECT count(*) FROM ({ids.replace('?2', '?1')})", [source]).fetchone()
    step = -(-total // SAMPLE) or 1
    sql = f"""SELECT status.feature, status.explanation, status.headline, status.score, status.metric, status.scorer,
            status.baseline, status.density, scores.baselines
        FROM (SELECT explanation_id, row_number() OVER (ORDER BY explanation_id) AS turn FROM ({ids})) AS chosen
        JOIN ranks ON ranks.explanation_id = chosen.explanation_id LEFT JOIN scores ON scores.id = ranks.score_id
        JOIN feature_status AS status ON status.feature_id = ranks.feature_id
        WHERE turn % ?1 = 0 ORDER BY chosen.explanation_id"""
    return [dict(row) for row in connection.execute(sql, [step, source])]


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
    baselines: dict[str, list[float]] = {}
    medians: dict[str, Interval] = {}
    beaten: dict[str, int] = {}
    for role in ROLES:
        pairs = [(row["score"], json.loads(row["baselines"] or "{}").get(role)) for row in rows]
        pairs = [(score, baseline) for score, baseline in pairs if baseline is not None]
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
