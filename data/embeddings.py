"""What the search by meaning and by shared windows asks of the database.

A vector belongs to an explanation and an embedding model, and is stale when the digest of the text
that it was made from is no longer that of the explanation's text.
"""

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..subject.address import Feature
from .codec import content_digest, unpack_ids
from .rows import Filter

_BATCH = 4096


def stale_texts(connection: sqlite3.Connection, model: str) -> list[tuple[int, str]]:
    """Id and text of every explanation that has no vector of its present text."""
    sql = """SELECT id, text, content_hash FROM explanations
        LEFT JOIN embeddings ON explanation_id = id AND model = ? WHERE text IS NOT NULL ORDER BY id"""
    return [(id_, text) for id_, text, known in connection.execute(sql, [model]) if known != content_digest(text)]


def store_vectors(
    connection: sqlite3.Connection, model: str, texts: Sequence[tuple[int, str]], vectors: NDArray[np.float32]
) -> None:
    """Keep the vectors (text, dimension) of explanations given by id and text."""
    connection.executemany(
        "INSERT OR REPLACE INTO embeddings (explanation_id, model, content_hash, vector) VALUES (?, ?, ?, ?)",
        [
            (id_, model, content_digest(text), vector.astype("<f4").tobytes())
            for (id_, text), vector in zip(texts, vectors, strict=True)
        ],
    )


def candidates(
    connection: sqlite3.Connection, model: str, chosen: Filter, *, without: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids (row,) and vectors (row, dimension) of the best explanations that pass the filter, in batches."""
    condition, values = chosen.sql()
    cursor = connection.execute(
        "SELECT explanation_id, vector FROM best_explanations JOIN embeddings USING (explanation_id)"
        f" WHERE model = ? AND explanation_id <> ? AND {condition}",
        [model, without, *values],
    )
    while batch := cursor.fetchmany(_BATCH):
        ids = np.array([row[0] for row in batch], np.int64)
        yield ids, np.frombuffer(b"".join(row[1] for row in batch), "<f4").reshape(len(batch), -1)


def window_overlap(connection: sqlite3.Connection, feature: Feature) -> list[tuple[int, float]]:
    """Features (by id) of the same model that share top windows with this one, and the Jaccard index."""
    own = connection.execute(
        "SELECT feature_id, windows FROM examples JOIN features ON features.id = feature_id"
        " JOIN sources ON sources.id = source_id WHERE name = ? AND idx = ? AND examples.kind = ?",
        [str(feature.source), feature.index, "bottom" if feature.negative else "top"],
    ).fetchone()
    if own is None:
        return []
    windows = np.unique(unpack_ids(own[1]))
    cursor = connection.execute(
        "SELECT feature_id, windows FROM examples JOIN features ON features.id = feature_id"
        " JOIN sources ON sources.id = source_id WHERE model = ? AND examples.kind = 'top' AND feature_id <> ?",
        [feature.source.model, own[0]],
    )
    overlaps: list[tuple[int, float]] = []
    while batch := cursor.fetchmany(_BATCH):
        lists = [unpack_ids(row[1]) for row in batch]
        ends = np.cumsum([len(ids) for ids in lists])
        shared = np.diff(np.append(0, np.isin(np.concatenate(lists), windows)).cumsum()[np.append(0, ends)])
        overlaps += [
            (row[0], float(count / (len(windows) + len(ids) - count)))
            for row, ids, count in zip(batch, lists, shared, strict=True)
            if count
        ]
    return overlaps
