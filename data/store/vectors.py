"""Vectors of explanations, and the nearest of them, found exactly: whatever is left out is proven to be farther.

The database holds each vector as float16, in a row that never changes: a text that changes loses its row. Beside a
database of many lies FILE-vectors-N, made from those rows: of each its number and eight bits a dimension with a scale,
and how far that is from the vector. A search multiplies all eight-bit rows with the query, which gives each cosine to
within that distance (Cauchy-Schwarz, for unit vectors), and looks up vectors in the database from the highest bound
down, until the next bound is below the last cosine of the answer. So a row that is gone, or does not pass the filters,
costs a look and changes nothing.

Each time vectors are stored, the database notes the last one with a random token, and the file has that of its own last
one. A file whose token the database does not have is another's (a backup was restored) and is made anew; one that has
an older token lacks only what came since.
"""

import json
import mmap
import os
import secrets
import sqlite3
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from .listing import Filter, count_rows, page_keys

INDEXED = 20_000
"""From the vector of this number on a file is made."""
FILTERED = 10_000
"""So many rows are compared one by one where filters leave no more."""
_HEADER = struct.Struct("<8sIQq16s20x")
_MAGIC = b"NRNTVEC1"
_CHUNK = 1024
_DROPPED = 64 * 2**20
"""So many bytes of the file stay in memory, at most, while it is read."""
_SLACK = 1e-5
"""What float32 may add to a bound, and a cosine is rounded to less."""
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
    file = refresh_file(connection, path, embedder)
    return found.compare_all() if file is None else found.compare_bounded(file)


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

    def compare_bounded(self, file: Path) -> _Pairs:
        """Compare from the highest bound down, until none can be nearer."""
        ids, bounds = read_bounds(file, self._query)
        done, count = 0, max(256, 4 * self._limit)
        while done < len(ids):
            count = min(count, len(ids))
            order = np.argpartition(-bounds, count - 1)[:count] if count < len(ids) else np.arange(len(ids))
            order = order[np.argsort(-bounds[order], kind="stable")]
            new = json.dumps(ids[order[done:]].tolist())
            tables = "json_each(?) AS asked CROSS JOIN embeddings AS own ON own.id = asked.value"
            self._compare(f"{tables} CROSS JOIN listed USING (explanation_id)", new)
            done = count
            last = float(bounds[order[-1]])
            if len(self._found) == self._limit and self._found[-1][0] > last + _SLACK:
                break
            count *= 4
        return self._found

    def _compare(self, tables: str, *asked: str) -> _Pairs:
        sql = f"SELECT own.explanation_id, vector FROM {tables} WHERE {self._condition}"
        cursor = self._connection.execute(sql, [*asked, *self._values])
        query = self._query.astype(np.float64)
        while batch := cursor.fetchmany(4 * _CHUNK):
            vectors = np.frombuffer(b"".join(row[1] for row in batch), "<f2").reshape(len(batch), -1)
            cosines = (vectors.astype(np.float64) @ query).round(9)
            pairs = [(cosine, row[0]) for cosine, row in zip(cosines.tolist(), batch, strict=True)]
            self._found = sorted(self._found + pairs, key=lambda pair: (-pair[0], pair[1]))[: self._limit]
        return self._found


def record(dimension: int) -> np.dtype:
    """A row of the file."""
    return np.dtype([("id", "<i8"), ("scale", "<f4"), ("distance", "<f4"), ("codes", "i1", (dimension,))])


def refresh_file(connection: sqlite3.Connection, path: str, embedder: Embedded) -> Path | None:
    """Bring the file in step with the database; None where vectors are few, or no file can be written."""
    sql = "SELECT last, token FROM embedding_batches WHERE embedder_id = ? ORDER BY last DESC LIMIT 1"
    newest = connection.execute(sql, [embedder.id]).fetchone()
    if newest is None or newest["last"] < INDEXED or path == ":memory:":
        return None
    file = Path(f"{Path(path).resolve()}-vectors-{embedder.id}")
    if _read_header(file)[2:] == tuple(newest):
        return file
    if not os.access(file.parent, os.W_OK):
        return None
    with FileLock(f"{file}.lock"):
        _append(connection, file, embedder, tuple(newest))
    return file


def _read_header(file: Path) -> tuple[int, int, int, bytes]:
    """Dimension, rows, last id and token; zeros where there is no such file, or one of another form."""
    try:
        with file.open("rb") as stream:
            magic, dimension, count, last, token = _HEADER.unpack(stream.read(_HEADER.size))
    except (FileNotFoundError, struct.error):
        return 0, 0, 0, b""
    whole = file.stat().st_size >= _HEADER.size + count * record(dimension).itemsize
    return (dimension, count, last, token) if magic == _MAGIC and whole else (0, 0, 0, b"")


def _append(connection: sqlite3.Connection, file: Path, embedder: Embedded, newest: tuple[int, bytes]) -> None:
    """Write what the file lacks, or all where it is another's; the header last, so that a kill leaves the old one."""
    dimension, count, last, token = _read_header(file)
    sql = "SELECT 1 FROM embedding_batches WHERE embedder_id = ? AND last = ? AND token = ?"
    if connection.execute(sql, [embedder.id, last, token]).fetchone() is None:
        dimension, count, last = 0, 0, 0
    with file.open("r+b" if count else "w+b") as stream:
        cursor = connection.execute(
            "SELECT id, vector FROM embeddings WHERE embedder_id = ? AND id > ? AND id <= ? ORDER BY id",
            [embedder.id, last, newest[0]],
        )
        while batch := cursor.fetchmany(8 * _CHUNK):
            dimension = dimension or len(batch[0][1]) // 2
            stream.seek(_HEADER.size + count * record(dimension).itemsize)
            stream.write(quantise([row[0] for row in batch], b"".join(row[1] for row in batch)).tobytes())
            count += len(batch)
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        stream.write(_HEADER.pack(_MAGIC, dimension, count, *newest))


def quantise(ids: Sequence[int], vectors: bytes) -> NDArray[np.void]:
    """The rows of the file for these float16 vectors."""
    exact = np.frombuffer(vectors, "<f2").reshape(len(ids), -1).astype(np.float32)
    rows = np.zeros(len(ids), record(exact.shape[1]))
    scales = np.maximum(np.abs(exact).max(axis=1), 1e-30) / 127
    rows["id"], rows["scale"], rows["codes"] = ids, scales, np.rint(exact / scales[:, None])
    rows["distance"] = np.linalg.norm(exact - rows["codes"] * scales[:, None], axis=1)
    return rows


def read_bounds(file: Path, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The numbers of all rows, and how near each may be to the query."""
    dimension, count, _, _ = _read_header(file)
    ids, bounds = np.empty(count, np.int64), np.empty(count, np.float32)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        step = _DROPPED // record(dimension).itemsize
        with ThreadPoolExecutor(2) as pool:
            for first in range(0, count, step):
                last = min(first + step, count)
                middle = (first + last) // 2
                spans = [slice(first, middle), slice(middle, last)]
                list(pool.map(lambda span: _multiply(mapped, span, query, ids, bounds), spans))
                # The pages stay in the system's cache; this process gives them back.
                mapped.madvise(mmap.MADV_DONTNEED)
    return ids, bounds


def _multiply(
    mapped: mmap.mmap, span: slice, query: NDArray[np.float32], ids: NDArray[np.int64], bounds: NDArray[np.float32]
) -> None:
    """Fill in a span of the numbers and bounds."""
    kind = record(len(query))
    codes = np.empty((_CHUNK, len(query)), np.float32)
    for first in range(span.start, span.stop, _CHUNK):
        part = slice(first, min(first + _CHUNK, span.stop))
        own = np.frombuffer(mapped, kind, count=part.stop - first, offset=_HEADER.size + first * kind.itemsize)
        # One copy into a buffer that stays in the processor's cache: of bytes there is no fast product.
        np.copyto(codes[: len(own)], own["codes"])
        bounds[part] = codes[: len(own)] @ query * own["scale"] + own["distance"]
        ids[part] = own["id"]
