"""Whole files: status, backup, and merging another database into this one.

A merge copies the rows that are missing and changes none that are there, so doing it again adds nothing.
Rows are compared by content: windows by their hash, explanations and scores by their digests. A source that is
harvested here keeps its own examples; explanations come in all the same. Investigations are compared by their id,
a hash of their settings: one that is here stays as it is, even where the other got further.
"""

import os
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
from sqlite_utils import Database

from ...subject.address import SourceId, check_name
from ...subject.errors import NeuronautError
from ..codec import pack_ids, unpack_ids
from .calls import CallLog
from .database import connect, transaction, translate_errors
from .migrations import MIGRATIONS, migrate
from .ranks import rank_features
from .shared_windows import write_shared_windows
from .spool import Spool
from .tallies import count_statuses
from .writing import check_same_convention, check_same_source, read_convention

_MERGED = (
    "sources",
    "features",
    "windows",
    "examples",
    "explanations",
    "scores",
    "judgements",
    "llm_calls",
    "prompts",
    "investigations",
)


def status(db: Database, path: str) -> dict[str, object]:
    """Path, version, size in bytes, rows per table, replies in the spool, and features per status."""
    counts: dict[str, object] = {
        table: db.conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in (*_MERGED, "embeddings")
    }
    size = db.conn.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
    header = {"path": path, "version": len(MIGRATIONS), "size": size}
    counts["spooled"] = len(Spool(path).read().rows) if path != ":memory:" else 0
    return header | counts | {"status": count_statuses(db.conn)}


def backup(connection: sqlite3.Connection, own: str, path: str) -> None:
    """Copy the database of the path `own`, with its spool, to a new file; it appears there only when it is whole."""
    target = Path(path)
    if target.exists():
        raise NeuronautError(f"{path} exists already; name a new file for the backup")
    if not target.absolute().parent.is_dir() or not os.access(target.absolute().parent, os.W_OK):
        raise NeuronautError(f"the folder of {path} is missing or cannot be written to; name a file elsewhere")
    partial = target.with_name(target.name + ".partial")
    # Read first: what is written into the database meanwhile is then in both, which does no harm.
    waiting = [] if own == ":memory:" else Spool(own).read().rows
    copy = sqlite3.connect(partial)
    try:
        connection.backup(copy)
        copy.close()
        if waiting:
            Spool(path).add(*waiting)
        partial.replace(target)
    finally:
        copy.close()
        partial.unlink(missing_ok=True)


def merge(db: Database, path: str, other: str) -> dict[str, int]:
    """Add what the database file `other` holds; returns how many rows of each table are new."""
    source = connect(other, create=False)
    with tempfile.TemporaryDirectory() as scratch, translate_errors(other):
        try:
            # The copy may be migrated, and lies where the log of a read-only file can be made.
            copied = str(Path(scratch) / "other.db")
            backup(source.conn, other, copied)
        finally:
            source.conn.close()
        copy = connect(copied, create=False)
        try:
            migrate(copy, other)
            CallLog(copied, copy).close()  # which writes down the replies in its spool
        finally:
            copy.conn.close()
        db.conn.execute("ATTACH ? AS other", [copied])
        try:
            with transaction(db, path) as connection:
                return _merge_attached(connection, other)
        finally:
            db.conn.execute("DETACH other")


def _merge_attached(connection: sqlite3.Connection, other: str) -> dict[str, int]:
    before = _counts(connection)
    _check_names(connection, other)
    own = {name for (name,) in connection.execute("SELECT name FROM sources JOIN harvests ON source_id = sources.id")}
    for statement in _COPY_EVIDENCE:
        connection.execute(statement)
    new = [name for (name,) in connection.execute("SELECT name FROM other.sources") if name not in own]
    for name in new:
        _copy_harvest(connection, name)
    _copy_explanations(connection)
    for statement in (_COPY_SCORES, _COPY_JUDGEMENTS, *_COPY_CALLS):
        connection.execute(statement)
    rank_features(
        connection, f"(feature_id, negative) IN (SELECT ours.feature_id, ours.negative FROM {_OUR_EXPLANATIONS})"
    )
    _copy_investigations(connection)
    after = _counts(connection)
    return {table: after[table] - before[table] for table in _MERGED}


def _check_names(connection: sqlite3.Connection, other: str) -> None:
    """Refuse a file that holds a source which cannot be here under its name, or a name that is none."""
    columns = "model, site, dictionary, name, revision, model_revision, width"
    for model, site, dictionary, *row in connection.execute(f"SELECT {columns} FROM other.sources").fetchall():
        try:
            if SourceId.parse(row[0]) != SourceId(model, site, dictionary):
                raise NeuronautError(f"its model, site and dictionary are {model!r}, {site!r} and {dictionary!r}")
            check_same_source(connection, *row)
            theirs = connection.execute(
                f"SELECT provenance FROM other.harvests WHERE source_id = {_THEIR_SOURCE}", row[:1]
            )
            if (harvest := theirs.fetchone()) is not None:
                check_same_convention(connection, row[0], read_convention(harvest[0]))
        except NeuronautError as error:
            raise NeuronautError(f"{other}: source {row[0]!r}: {error}") from None
    for (id,) in connection.execute("SELECT id FROM other.investigations").fetchall():
        try:
            check_name(id, what="session")
        except NeuronautError as error:
            raise NeuronautError(f"{other}: {error}") from None


_THEIR_SOURCE = "(SELECT id FROM other.sources WHERE name = ?)"


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    return {table: connection.execute(f"SELECT count(*) FROM main.{table}").fetchone()[0] for table in _MERGED}


_FEATURE_IDS = """(SELECT theirs.id AS their_id, ours.id AS our_id, sources.name AS name
    FROM other.features AS theirs JOIN other.sources AS their_source ON their_source.id = theirs.source_id
    JOIN main.sources AS sources ON sources.name = their_source.name
    JOIN main.features AS ours ON ours.source_id = sources.id AND ours.idx = theirs.idx)"""

_COPY_EVIDENCE = (
    """INSERT INTO main.sources (name, model, site, dictionary, kind, width, signed, revision, model_revision, norms)
       SELECT name, model, site, dictionary, kind, width, signed, revision, model_revision, norms
       FROM other.sources WHERE 1 ON CONFLICT DO NOTHING""",
    """INSERT INTO main.features (source_id, idx, tokens, count, density, mean, peak, trough, histogram)
       SELECT sources.id, idx, tokens, count, density, mean, peak, trough, histogram FROM other.features AS theirs
       JOIN other.sources AS their_source ON their_source.id = theirs.source_id
       JOIN main.sources AS sources ON sources.name = their_source.name WHERE 1 ON CONFLICT DO NOTHING""",
    f"""INSERT INTO main.top_tokens (feature_id, ids, effects, spread) SELECT our_id, ids, effects, spread
       FROM other.top_tokens JOIN {_FEATURE_IDS} ON their_id = feature_id WHERE 1 ON CONFLICT DO NOTHING""",
    "INSERT INTO main.vocabularies SELECT * FROM other.vocabularies WHERE 1 ON CONFLICT DO NOTHING",
    """INSERT INTO main.windows (model, hash, tokens, split, document)
       SELECT model, hash, tokens, split, document FROM other.windows WHERE 1 ON CONFLICT DO NOTHING""",
    """INSERT INTO main.pool (model, window_id) SELECT theirs.model, ours.id FROM other.pool
       JOIN other.windows AS theirs ON theirs.id = other.pool.window_id
       JOIN main.windows AS ours ON ours.hash = theirs.hash AND ours.model = theirs.model
       WHERE theirs.model NOT IN (SELECT model FROM main.pool)""",
)


def _copy_harvest(connection: sqlite3.Connection, name: str) -> None:
    """Copy a source's harvest and examples, whose window ids become this file's."""
    pairs = connection.execute(
        "SELECT theirs.id, ours.id FROM other.windows AS theirs JOIN other.sources AS source USING (model)"
        " JOIN main.windows AS ours ON ours.hash = theirs.hash AND ours.model = theirs.model WHERE source.name = ?",
        [name],
    ).fetchall()
    ids = np.array(pairs, np.int64).reshape(-1, 2)
    ours = np.zeros(ids[:, 0].max(initial=0) + 1, np.int64)
    ours[ids[:, 0]] = ids[:, 1]
    theirs = connection.execute(
        f"SELECT our_id, kind, n, activations, keys, weights, windows FROM other.examples JOIN {_FEATURE_IDS}"
        " ON their_id = feature_id WHERE name = ? ORDER BY other.examples.rowid",
        [name],
    )
    connection.executemany(
        "INSERT INTO main.examples (feature_id, kind, n, activations, keys, weights, windows)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((*rest, pack_ids(ours[unpack_ids(windows)])) for *rest, windows in theirs),
    )
    connection.execute(
        "INSERT INTO main.harvests SELECT ours.id, digest, corpus, tokens, window, provenance, created"
        " FROM other.harvests JOIN other.sources AS theirs ON theirs.id = source_id"
        " JOIN main.sources AS ours ON ours.name = theirs.name WHERE ours.name = ?",
        [name],
    )
    (source_id,) = connection.execute("SELECT id FROM main.sources WHERE name = ?", [name]).fetchone()
    write_shared_windows(connection, source_id)


def _copy_explanations(connection: sqlite3.Connection) -> None:
    """Copy explanations, the oldest first, each as the next attempt of its key."""
    columns = (
        "negative, text, status, reason, rule, explainer, key, digest, seen, provenance, created, headline, predictor"
    )
    theirs = connection.execute(
        f"SELECT our_id, {columns} FROM other.explanations JOIN {_FEATURE_IDS} ON their_id = feature_id"
        " ORDER BY other.explanations.id"
    ).fetchall()
    connection.executemany(
        f"INSERT INTO main.explanations (feature_id, {columns}, attempt)"
        " SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
        " (SELECT coalesce(max(attempt), 0) + 1 FROM main.explanations"
        "  WHERE feature_id = ?1 AND negative = ?2 AND key = ?8) WHERE 1 ON CONFLICT DO NOTHING",
        [tuple(row) for row in theirs],
    )


_OUR_EXPLANATIONS = f"""other.explanations AS theirs JOIN {_FEATURE_IDS} ON their_id = theirs.feature_id
    JOIN main.explanations AS ours
        ON ours.feature_id = our_id AND ours.negative = theirs.negative AND ours.digest = theirs.digest"""

_COPY_SCORES = f"""INSERT INTO main.scores (explanation_id, scorer, examples, metric, value, reason, ci_low, ci_high, n,
        coverage, baselines, windows, digest, provenance, created, backend, judge)
    SELECT ours.id, scorer, examples, metric, value, scores.reason, ci_low, ci_high, n, coverage, baselines, windows,
        scores.digest, scores.provenance, scores.created, backend, judge
    FROM {_OUR_EXPLANATIONS} JOIN other.scores AS scores ON scores.explanation_id = theirs.id
    WHERE 1 ORDER BY scores.id ON CONFLICT DO NOTHING"""

_JUDGED = """scorer, examples, role, kind, units, items, true, predicted, threshold, windows, missing,
        judged.provenance, round, judged.digest, judged.created"""

_COPY_JUDGEMENTS = f"""INSERT INTO main.judgements (explanation_id, {_JUDGED.replace("judged.", "")})
    SELECT ours.id, {_JUDGED}
    FROM {_OUR_EXPLANATIONS} JOIN other.judgements AS judged ON judged.explanation_id = theirs.id
    WHERE 1 ORDER BY judged.id ON CONFLICT DO NOTHING"""

_JOURNAL = (
    "decisions",
    "hypotheses",
    "experiments",
    "predictions",
    "observations",
    "peeks",
    "ledger",
    "events",
    "seals",
)
"""The tables of an investigation, each after those that it refers to."""


def _copy_investigations(connection: sqlite3.Connection) -> None:
    """Copy the investigations that are not here, each whole, its rows in the order in which they were written."""
    columns = "id, kind, target, policy, settings, provenance, parent, status, reason, created, ended"
    new = connection.execute("SELECT id FROM other.investigations EXCEPT SELECT id FROM main.investigations")
    for (id,) in new.fetchall():
        connection.execute(
            f"INSERT INTO main.investigations ({columns}, explanation_id) SELECT {columns},"
            f" (SELECT ours.id FROM {_OUR_EXPLANATIONS} WHERE theirs.id = explanation_id)"
            " FROM (SELECT * FROM other.investigations WHERE id = ?)",
            [id],
        )
        for table in _JOURNAL:
            names = [row["name"] for row in connection.execute(f"PRAGMA main.table_info({table})")]
            copied = ", ".join(name for name in names if name != "id")
            connection.execute(
                f"INSERT INTO main.{table} ({copied}) SELECT {copied} FROM other.{table}"
                " WHERE investigation = ? ORDER BY rowid",
                [id],
            )


_CALLED = """key, model, endpoint, prompt, request, status, reply, reason, detail, input_tokens, output_tokens, seconds,
        cost, created"""

_COPY_CALLS = (
    f"""INSERT INTO main.llm_calls ({_CALLED}) SELECT {_CALLED} FROM other.llm_calls AS theirs
        WHERE NOT EXISTS (SELECT 1 FROM main.llm_calls AS ours WHERE ours.key = theirs.key
            AND (ours.status = 'ok' OR (ours.status = theirs.status AND ours.created = theirs.created)))
        ORDER BY theirs.id""",
    "INSERT INTO main.prompts SELECT * FROM other.prompts WHERE 1 ON CONFLICT DO NOTHING",
)
