"""Counts of what a database holds, from `tallies`, which triggers keep (listing_schema.py): no feature is read.

Negative tails have rows of their own where they are explained; as features they are counted once.
"""

import json
import sqlite3
from collections import defaultdict

from .database import Row

_EXPLAINED = """(SELECT coalesce(sum(n), 0) FROM tallies WHERE source_id = sources.id AND negative = 0 AND has_text)
    + (SELECT count(*) FROM listed AS below INDEXED BY listed_negative
       WHERE below.source_id = sources.id AND below.negative = 1 AND has_text
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
