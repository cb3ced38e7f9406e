"""Vectors of explanations, and the nearest of them, found exactly: whatever is left out is proven to be farther.

The database holds each vector as float16, in a row that never changes: a text that changes loses its row. Beside a
database of many lies a file (vector_file.py) that bounds every cosine. A search looks up the vectors of the highest
bounds, then those whose bound is above the last cosine of the answer, from the highest down. So a row that is gone, or
does not pass the filters, costs a look and changes nothing.
"""

import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .listing import Filter, count_rows, page_keys
from .vector_file import VectorFile, refresh_file

INDEXED = 20_000
"""From the vector of this number on a file is made."""
FILTERED = 10_000
"""So many rows are compared one by one where filters leave no more."""
_FETCHED = 4096
_Pairs = list[tuple[float, int]]


class Embedded(NamedTuple):
    """An embedding model, as far as the database knows it."""

    id: int
    watermark: int
    """All explanations up to this id have a vector of their present text."""


def open_embedder(connection: sqlite3.Connection, model: str) -> Embedded | None:
    """The model's row; None where nothing was embedded by it."""
    row = connection.execute("SELECT id, watermark FROM embedders WHERE model = ?", [model]).fetchone()
    return None if row is None else Embedded(*row)


def read_unembedded(connection: sqlite3.Connection, embedder: Embedded, limit: int) -> list[tuple[int, str]]:
    """Id and text of the first explanations that have no vector."""
    sql = """SELECT explanations.id, text FROM explanations LEFT JOIN embeddings AS own
            ON own.explanation_id = explanations.id AND own.embedder_id = ?
        WHERE explanations.id > ? AND text IS NOT NULL AND own.id IS NULL ORDER BY explanations.id LIMIT ?"""
    return [tuple(row) for row in connection.execute(sql, [embedder.id, embedder.watermark, limit])]


def store_vectors(
    connection: sqlite3.Connection, embedder: Embedded, texts: Sequence[tuple[int, str]], vectors: NDArray[np.float32]
) -> None:
    """Keep the unit vectors (text, dimension) of explanations, by id and embedded text, and raise the watermark.

    What was embedded meanwhile, or has another text by now, is left out.
    """
    connection.executemany(
        "INSERT INTO embeddings (embedder_id, explanation_id, vector) SELECT ?, id, ? FROM explanations"
        " WHERE id = ? AND text = ? ON CONFLICT DO NOTHING",
        [
            (embedder.id, vector.astype("<f2").tobytes(), id_, text)
            for (id_, text), vector in zip(texts, vectors, strict=True)
        ],
    )
    connection.execute(
        "INSERT INTO embedding_batches (embedder_id, last, token) SELECT embedder_id, max(id), ? FROM embeddings"
        " WHERE id > coalesce((SELECT max(last) FROM embedding_batches), 0) AND embedder_id = ?"
        " GROUP BY embedder_id",
        [secrets.token_bytes(16), embedder.id],
    )
    raise_watermark(connection, embedder, texts[-1][0])


def raise_watermark(connection: sqlite3.Connection, embedder: Embedded, to: int) -> None:
    """Raise it, unless a text changed since it was read."""
    sql = "UPDATE embedders SET watermark = ? WHERE id = ? AND watermark = ?"
    connection.execute(sql, [to, embedder.id, embedder.watermark])


def read_vector(connection: sqlite3.Connection, embedder: Embedded, explanation_id: int) -> NDArray[np.float32] | None:
    """The vector of an explanation, None where it has none."""
    sql = "SELECT vector FROM embeddings WHERE embedder_id = ? AND explanation_id = ?"
    row = connection.execute(sql, [embedder.id, explanation_id]).fetchone()
    return None if row is None else np.frombuffer(row[0], "<f2").astype(np.float32)


def read_source_vectors(
    connection: sqlite3.Connection, embedder: Embedded, source: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Indices and vectors (feature, dimension) of a source's features whose best explanation has one; no tails."""
    sql = """SELECT listed.idx, vector FROM listed JOIN embeddings AS own ON own.explanation_id = listed.explanation_id
        WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND negative = 0 AND own.embedder_id = ?
        ORDER BY listed.idx"""
    rows = connection.execute(sql, [source, embedder.id]).fetchall()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f2").reshape(len(rows), -1 if rows else 0)
    return np.array([row[0] for row in rows], np.int32), vectors.astype(np.float32)


def find_nearest(
    connection: sqlite3.Connection,
    path: str,
    embedder: Embedded,
    query: NDArray[np.float32],
    chosen: Filter,
    *,
    limit: int,
    without: int = 0,
) -> _Pairs:
    """Cosine and id of the best explanations that pass the filters, those nearest to a unit vector; not `without`."""
    found = _Nearest(connection, embedder, query, chosen, limit=limit, without=without)
    if chosen != Filter(None, {}) and count_rows(connection, chosen) <= FILTERED:
        return found.compare_filtered()
    file = _open_file(connection, path, embedder)
    return found.compare_all() if file is None else found.compare_bounded(file)


def _open_file(connection: sqlite3.Connection, path: str, embedder: Embedded) -> VectorFile | None:
    """The file of an embedder, in step with the database; None where vectors are few, or none can be written."""
    sql = "SELECT last, token FROM embedding_batches WHERE embedder_id = ? ORDER BY last DESC LIMIT 1"
    newest = connection.execute(sql, [embedder.id]).fetchone()
    if newest is None or newest["last"] < INDEXED or path == ":memory:":
        return None
    return refresh_file(connection, path, embedder.id, tuple(newest))


class _Nearest:
    """One search; vectors are compared by the float64 product with the query, rounded, so that equal ones are equal."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        embedder: Embedded,
        query: NDArray[np.float32],
        chosen: Filter,
        *,
        limit: int,
        without: int,
    ) -> None:
        self._connection, self._query, self._chosen, self._limit = connection, query, chosen, limit
        condition, values = chosen.sql()
        self._condition = f"own.embedder_id = ? AND own.explanation_id <> ? AND {condition}"
        self._values = [embedder.id, without, *values]
        self._found: _Pairs = []

    def compare_all(self) -> _Pairs:
        """Compare every vector."""
        return self._compare("embeddings AS own CROSS JOIN listed USING (explanation_id)")

    def compare_filtered(self) -> _Pairs:
        """Compare those of explanations that pass the filters."""
        keys = page_keys(self._connection, self._chosen, sort="score", limit=FILTERED)
        ids = json.dumps([key.explanation_id for key in keys if key.explanation_id is not None])
        tables = "json_each(?) AS asked CROSS JOIN embeddings AS own ON own.explanation_id = asked.value"
        return self._compare(f"{tables} CROSS JOIN listed USING (explanation_id)", ids)

    def compare_bounded(self, file: VectorFile) -> _Pairs:
        """Compare those that may be nearest, by their bounds."""
        file.walk(self._query, self._compare_rows, first=max(256, 4 * self._limit))
        return self._found

    def _compare_rows(self, ids: NDArray[np.int64]) -> float:
        """Compare the vectors of these numbers; the last cosine of the answer, below any while it is not full."""
        tables = "json_each(?) AS asked CROSS JOIN embeddings AS own ON own.id = asked.value"
        self._compare(f"{tables} CROSS JOIN listed USING (explanation_id)", json.dumps(ids.tolist()))
        return self._found[-1][0] if len(self._found) == self._limit else -np.inf

    def _compare(self, tables: str, *asked: str) -> _Pairs:
        sql = f"SELECT own.explanation_id, vector FROM {tables} WHERE {self._condition}"
        cursor = self._connection.execute(sql, [*asked, *self._values])
        query = self._query.astype(np.float64)
        while batch := cursor.fetchmany(_FETCHED):
            vectors = np.frombuffer(b"".join(row[1] for row in batch), "<f2").reshape(len(batch), -1)
            cosines = (vectors.astype(np.float64) @ query).round(9)
            pairs = [(cosine, row[0]) for cosine, row in zip(cosines.tolist(), batch, strict=True)]
            self._found = sorted(self._found + pairs, key=lambda pair: (-pair[0], pair[1]))[: self._limit]
        return self._found
