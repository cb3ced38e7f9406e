"""Counts of what a database holds, from `tallies`, which triggers keep (listing_schema.py): no feature is read.

Negative tails have rows of their own where they are explained; as features they are counted once.
"""

import json
import sqlite3
from collections import defaultdict
from typing import NamedTuple

from .database import Row
from .listing_schema import BIN

_NONE = -1000
"""The bin of what has no score, or no baseline."""


class Distribution(NamedTuple):
    """How the headline scores of one scorer and metric are spread, with the best baseline of each beside it."""

    source: str
    scorer: str
    metric: str
    scores: dict[float, int]
    """How many explanations, by the lower end of a bin of BIN."""
    baselines: dict[float, int]
    """The same of the highest baseline of each, where one was measured."""
    beaten: int
    """How many scores are above every baseline."""


class Overview(NamedTuple):
    """What a database holds, source by source."""

    statuses: dict[str, dict[str, int]]
    """How many features and explained negative tails have each status, by source."""
    distributions: list[Distribution]


def read_overview(connection: sqlite3.Connection) -> Overview:
    """Count the rows of every source by status and by score."""
    statuses: dict[str, dict[str, int]] = {
        name: {} for (name,) in connection.execute("SELECT name FROM sources ORDER BY name")
    }
    spread: dict[tuple[str, str, str], Distribution] = {}
    sql = """SELECT name, status, beats, scorer, metric, bin, baseline_bin, sum(n) AS n FROM tallies
        JOIN sources ON sources.id = source_id WHERE n > 0
        GROUP BY name, status, beats, scorer, metric, bin, baseline_bin"""
    for name, status, beats, scorer, metric, own, baseline, n in connection.execute(sql):
        statuses[name][status] = statuses[name].get(status, 0) + n
        if own == _NONE:
            continue
        group = spread.setdefault(
            (name, scorer, metric), Distribution(name, scorer, metric, scores={}, baselines={}, beaten=0)
        )
        for bins, number in ((group.scores, own), (group.baselines, baseline)):
            if number != _NONE:
                low = round(number * BIN, 9)
                bins[low] = bins.get(low, 0) + n
        spread[name, scorer, metric] = group._replace(beaten=group.beaten + beats * n)
    return Overview(statuses, [spread[key] for key in sorted(spread)])


_EXPLAINED = """(SELECT coalesce(sum(n), 0) FROM tallies WHERE source_id = sources.id AND negative = 0 AND has_text)
    + (SELECT count(*) FROM listed AS below WHERE below.source_id = sources.id AND below.negative = 1 AND has_text
       AND NOT (SELECT has_text FROM listed AS own
                WHERE own.source_id = below.source_id AND own.idx = below.idx AND own.negative = 0))"""


def read_sources(connection: sqlite3.Connection, source: str | None = None) -> list[Row]:
    """The rows of `Store.sources`, of one source or of all."""
    sql = f"""SELECT name AS source, model, site, dictionary, kind, width, signed, revision, model_revision,
        (SELECT coalesce(sum(n), 0) FROM tallies WHERE source_id = sources.id AND negative = 0 AND alive) AS alive,
        {_EXPLAINED} AS explained, corpus, tokens, window, provenance, created AS harvested
        FROM sources LEFT JOIN harvests ON source_id = sources.id WHERE ?1 IS NULL OR name = ?1 ORDER BY name"""
    found = [dict(row) for row in connection.execute(sql, [source])]
    for row in found:
        provenance = json.loads(row["provenance"] or "{}")
        writes = provenance.get("writes", {}).get(row["source"], row["site"])
        row |= {"provenance": provenance, "signed": bool(row["signed"]), "writes": writes}
    return found


def count_statuses(connection: sqlite3.Connection) -> dict[str, int]:
    """How many features have each status."""
    sql = """SELECT status, sum(n) AS count FROM tallies WHERE negative = 0 GROUP BY status
        HAVING count > 0 ORDER BY status"""
    return {status: count for status, count in connection.execute(sql)}


def count_by_source(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """By source, how many features have each status."""
    counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    sql = """SELECT name, status, sum(n) FROM tallies JOIN sources ON sources.id = source_id
        WHERE negative = 0 AND n > 0 GROUP BY source_id, status ORDER BY source_id, status"""
    for name, status, count in connection.execute(sql):
        counts[name][status] = count
    return counts
