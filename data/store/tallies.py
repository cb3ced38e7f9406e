"""Counts of what a database holds, from `tallies`, which triggers keep (listing_schema.py): no feature is read.

What is counted is features: negative tails, which have rows of their own where they are explained, are not.
"""

import json
import sqlite3
from collections import defaultdict

from .database import Row

_COUNT = "(SELECT coalesce(sum(n), 0) FROM tallies WHERE source_id = sources.id AND negative = 0 AND {})"


def read_sources(connection: sqlite3.Connection, source: str | None = None) -> list[Row]:
    """The rows of `Store.sources`, of one source or of all."""
    sql = f"""SELECT name AS source, model, site, dictionary, kind, width, signed, revision, model_revision,
        {_COUNT.format("alive")} AS alive, {_COUNT.format("status = 'explained'")} AS explained,
        {_COUNT.format("status = 'weak'")} AS weak, corpus, tokens, window, provenance, created AS harvested
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
