"""The schema of neighbours: vectors of explanations (vectors.py), and the windows that features share."""

import secrets
import sqlite3

import numpy as np

from ..codec import content_digest
from .shared_windows import write_shared_windows

VECTORS: tuple[str, ...] = (
    "ALTER TABLE embeddings RENAME TO old_embeddings",
    "CREATE TABLE embedders (id INTEGER PRIMARY KEY, model TEXT NOT NULL UNIQUE, watermark INTEGER NOT NULL)",
    # A number is never given twice, so that what a file beside the database calls by it is what it was.
    """CREATE TABLE embeddings (
        id INTEGER PRIMARY KEY AUTOINCREMENT, embedder_id INTEGER NOT NULL REFERENCES embedders(id),
        explanation_id INTEGER NOT NULL REFERENCES explanations(id) ON DELETE CASCADE, vector BLOB NOT NULL,
        UNIQUE (explanation_id, embedder_id))""",
    """CREATE TABLE embedding_batches (
        embedder_id INTEGER NOT NULL REFERENCES embedders(id), last INTEGER NOT NULL, token BLOB NOT NULL,
        PRIMARY KEY (embedder_id, last)) WITHOUT ROWID""",
    """CREATE TRIGGER embeddings_kept BEFORE UPDATE ON embeddings
       BEGIN SELECT RAISE(ABORT, 'a vector is never changed; delete it'); END""",
    """CREATE TRIGGER explanations_reworded AFTER UPDATE OF text ON explanations WHEN old.text IS NOT new.text BEGIN
       DELETE FROM embeddings WHERE explanation_id = new.id;
       UPDATE embedders SET watermark = new.id - 1 WHERE watermark >= new.id; END""",
    """CREATE TRIGGER explanations_unembedded AFTER INSERT ON explanations BEGIN
       UPDATE embedders SET watermark = new.id - 1 WHERE watermark >= new.id; END""",
)

SHARED_WINDOWS: tuple[str, ...] = (
    """CREATE TABLE window_features (
        source_id INTEGER NOT NULL REFERENCES sources(id), window_id INTEGER NOT NULL, features BLOB NOT NULL,
        PRIMARY KEY (source_id, window_id)) WITHOUT ROWID""",
    # Of which harvest `window_features` is; where that is no longer the source's, it is not read.
    "CREATE TABLE window_harvests (source_id INTEGER PRIMARY KEY REFERENCES sources(id), digest TEXT NOT NULL)",
)


def move_vectors(connection: sqlite3.Connection) -> None:
    """Take over the vectors of the present texts from the table of before."""
    for (model,) in connection.execute("SELECT DISTINCT model FROM old_embeddings").fetchall():
        sql = "INSERT INTO embedders (model, watermark) VALUES (?, 0) RETURNING id"
        (embedder,) = connection.execute(sql, [model]).fetchone()
        old = connection.execute(
            "SELECT explanation_id, text, content_hash, vector FROM old_embeddings"
            " JOIN explanations ON id = explanation_id WHERE model = ? AND text IS NOT NULL",
            [model],
        )
        connection.executemany(
            "INSERT INTO embeddings (embedder_id, explanation_id, vector) VALUES (?, ?, ?)",
            (
                (embedder, id_, np.frombuffer(vector, "<f4").astype("<f2").tobytes())
                for id_, text, digest, vector in old
                if digest == content_digest(text)
            ),
        )
        connection.execute(
            "INSERT INTO embedding_batches SELECT ?1, max(id), ?2 FROM embeddings WHERE embedder_id = ?1"
            " HAVING max(id) > 0",
            [embedder, secrets.token_bytes(16)],
        )
    connection.execute("DROP TABLE old_embeddings")


def share_windows(connection: sqlite3.Connection) -> None:
    """Note which features share windows, of every source that is here."""
    for (source_id,) in connection.execute("SELECT source_id FROM harvests").fetchall():
        write_shared_windows(connection, source_id)
