"""Bounds of cosines, from a file of eight-bit vectors beside the database.

FILE-vectors-N has a rotation, then a row for each vector of the embedder N: its number, its rotated coordinates in
eight bits with a scale, the length of what that leaves out (`distance`), and the length of the coordinates behind the
first third (`rest`). The rotation puts the directions in which vectors differ most in front: their principal components
as they were when the file was made. For unit vectors the product with a query is, by Cauchy-Schwarz, at most

    head . query_head + rest * |query_rest| + distance      reading a third of each row
    codes . query + distance                                reading the row

Each time vectors are stored, the database notes the last one with a random token, and the file has that of its own last
one. A file whose token the database does not have is another's (a backup was restored) and is made anew; one that has
an older token lacks only what came since.
"""

import json
import mmap
import os
import sqlite3
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

_HEADER = struct.Struct("<8sIQq16s20x")
_MAGIC = b"NRNTVEC2"
_CHUNK = 1024
_DROPPED = 64 * 2**20
"""So many bytes of the file stay in memory, at most, while it is read."""
_SLACK = 1e-5
"""What float32 may add to a bound, and a cosine is rounded to less."""
_SAMPLE = 8192
"""Vectors of which the principal components are taken, at most."""


def record(dimension: int) -> np.dtype:
    """A row of the file."""
    fields = [("id", "<i8"), ("scale", "<f4"), ("distance", "<f4"), ("rest", "<f4"), ("codes", "i1", (dimension,))]
    return np.dtype(fields)


def rows_start(dimension: int) -> int:
    """The first byte of the rows: behind the header and the rotation."""
    return _HEADER.size + 4 * dimension**2


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A file that is in step with its database."""

    path: Path
    dimension: int
    count: int

    def walk(self, query: NDArray[np.float32], compare: Callable[[NDArray[np.int64]], float], *, first: int) -> None:
        """Give `compare` the numbers of the `first` rows by their bounds, then of all that may be nearer than it says.

        It answers with the last cosine of the answer as it stands, and minus infinity while that is not full: then it
        is given the next ones. What is at last not compared is proven to be farther.
        """
        ids, bounds = self.bound(query)
        last, left = -np.inf, len(ids)
        while last == -np.inf and left:
            first = min(first, left)
            places = np.argpartition(bounds, len(ids) - first)[len(ids) - first :]
            last = compare(ids[places])
            bounds[places] = -np.inf
            first, left = first * 4, left - first
        places = np.flatnonzero(bounds > last - _SLACK)
        bounds = self.refine(query, places)
        order = np.argsort(-bounds, kind="stable")
        done, count = 0, first
        while done < len(order) and bounds[order[done]] > last - _SLACK:
            last = compare(ids[places[order[done : done + count]]])
            done, count = done + count, count * 4

    def bound(self, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The numbers of all rows, and what the product of each with the query can be at most, from a third of it."""
        ids, bounds = np.empty(self.count, np.int64), np.empty(self.count, np.float32)
        kind = record(self.dimension)
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            turned = query @ self._rotation(mapped)
            step = _DROPPED // kind.itemsize
            with ThreadPoolExecutor(2) as pool:
                for first in range(0, self.count, step):
                    last = min(first + step, self.count)
                    rows = np.frombuffer(mapped, kind, last - first, rows_start(self.dimension) + first * kind.itemsize)
                    spans = [slice(first, (first + last) // 2), slice((first + last) // 2, last)]
                    parts = [rows[span.start - first : span.stop - first] for span in spans]
                    list(pool.map(lambda span, part: _bound(part, turned, ids[span], bounds[span]), spans, parts))
                    del rows, parts
                    # The pages stay in the system's cache; this process gives them back.
                    mapped.madvise(mmap.MADV_DONTNEED)
        return ids, bounds

    def refine(self, query: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the product of these rows with the query can be at most, from the whole of each."""
        bounds = np.empty(len(places), np.float32)
        kind = record(self.dimension)
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            turned = query @ self._rotation(mapped)
            rows = np.frombuffer(mapped, kind, self.count, rows_start(self.dimension))
            for first in range(0, len(places), _CHUNK):
                own = rows[places[first : first + _CHUNK]]
                bounds[first : first + _CHUNK] = (
                    own["codes"].astype(np.float32) @ turned * own["scale"] + own["distance"]
                )
            del rows
        return bounds

    def _rotation(self, mapped: mmap.mmap) -> NDArray[np.float32]:
        side = self.dimension
        return np.frombuffer(mapped, "<f4", side**2, _HEADER.size).reshape(side, side).copy()


def _bound(
    rows: NDArray[np.void], query: NDArray[np.float32], ids: NDArray[np.int64], bounds: NDArray[np.float32]
) -> None:
    """Fill in the numbers and bounds of rows."""
    head = _head(len(query))
    rest = float(np.linalg.norm(query[head:]))
    codes = np.empty((_CHUNK, head), np.float32)
    for first in range(0, len(rows), _CHUNK):
        own = rows[first : first + _CHUNK]
        # One copy into a buffer that stays in the processor's cache: of bytes there is no fast product.
        np.copyto(codes[: len(own)], own["codes"][:, :head])
        product = codes[: len(own)] @ query[:head] * own["scale"]
        bounds[first : first + _CHUNK] = product + own["rest"] * rest + own["distance"]
        ids[first : first + _CHUNK] = own["id"]


def _head(dimension: int) -> int:
    return -(-dimension // 3)


def refresh_file(
    connection: sqlite3.Connection, path: str, embedder_id: int, newest: tuple[int, bytes]
) -> VectorFile | None:
    """Bring the file in step with the database, whose last vector and token are `newest`; None where it cannot be."""
    file = Path(f"{Path(path).resolve()}-vectors-{embedder_id}")
    if _read_header(file)[2:] != newest:
        if not os.access(file.parent, os.W_OK):
            return None
        with FileLock(f"{file}.lock"):
            _append(connection, file, embedder_id, newest)
    dimension, count, _, _ = _read_header(file)
    return VectorFile(file, dimension, count)


def _read_header(file: Path) -> tuple[int, int, int, bytes]:
    """Dimension, rows, last id and token; zeros where there is no such file, or one of another form."""
    try:
        with file.open("rb") as stream:
            magic, dimension, count, last, token = _HEADER.unpack(stream.read(_HEADER.size))
    except (FileNotFoundError, struct.error):
        return 0, 0, 0, b""
    whole = magic == _MAGIC and file.stat().st_size >= rows_start(dimension) + count * record(dimension).itemsize
    return (dimension, count, last, token) if whole else (0, 0, 0, b"")


def _append(connection: sqlite3.Connection, file: Path, embedder_id: int, newest: tuple[int, bytes]) -> None:
    """Write what the file lacks, or all where it is another's; the header last, so that a kill leaves the old one."""
    dimension, count, last, token = _read_header(file)
    sql = "SELECT 1 FROM embedding_batches WHERE embedder_id = ? AND last = ? AND token = ?"
    if connection.execute(sql, [embedder_id, last, token]).fetchone() is None:
        dimension, count, last = 0, 0, 0
    with file.open("r+b" if count else "w+b") as stream:
        if count:
            stream.seek(_HEADER.size)
            rotation = np.frombuffer(stream.read(4 * dimension**2), "<f4").reshape(dimension, dimension)
        else:
            rotation = _find_rotation(connection, embedder_id)
            dimension = len(rotation)
            stream.seek(_HEADER.size)
            stream.write(rotation.tobytes())
        stream.seek(rows_start(dimension) + count * record(dimension).itemsize)
        cursor = connection.execute(
            "SELECT id, vector FROM embeddings WHERE embedder_id = ? AND id > ? AND id <= ? ORDER BY id",
            [embedder_id, last, newest[0]],
        )
        while batch := cursor.fetchmany(8 * _CHUNK):
            stream.write(quantise([row[0] for row in batch], _stack([row[1] for row in batch]) @ rotation).tobytes())
            count += len(batch)
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        stream.write(_HEADER.pack(_MAGIC, dimension, count, *newest))


def _find_rotation(connection: sqlite3.Connection, embedder_id: int) -> NDArray[np.float32]:
    """Principal components (dimension, dimension) of a sample of the vectors, the largest first."""
    ends = [f"SELECT {end}(explanation_id) FROM embeddings WHERE embedder_id = ?" for end in ("min", "max")]
    first, last = (connection.execute(sql, [embedder_id]).fetchone()[0] for sql in ends)
    asked = json.dumps(np.linspace(first, last, min(_SAMPLE, last - first + 1)).astype(int).tolist())
    sql = """SELECT (SELECT vector FROM embeddings WHERE embedder_id = ? AND explanation_id >= asked.value
            ORDER BY explanation_id LIMIT 1)
        FROM json_each(?) AS asked"""
    return find_axes(_stack([row[0] for row in connection.execute(sql, [embedder_id, asked])]))


def find_axes(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """The directions (dimension, axis) of a sample of vectors (row, dimension), those of the largest squares first."""
    exact = sample.astype(np.float64)
    return np.linalg.eigh(exact.T @ exact)[1][:, ::-1].astype("<f4")


def _stack(vectors: Sequence[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(vectors), "<f2").reshape(len(vectors), -1).astype(np.float32)


def quantise(ids: Sequence[int], vectors: NDArray[np.float32]) -> NDArray[np.void]:
    """The rows of the file for these rotated vectors (row, dimension)."""
    rows = np.zeros(len(ids), record(vectors.shape[1]))
    scales = np.maximum(np.abs(vectors).max(axis=1), 1e-30) / 127
    rows["id"], rows["scale"], rows["codes"] = ids, scales, np.rint(vectors / scales[:, None])
    exact = rows["codes"] * scales[:, None]
    rows["distance"] = np.linalg.norm(vectors - exact, axis=1)
    rows["rest"] = np.linalg.norm(exact[:, _head(vectors.shape[1]) :], axis=1)
    return rows
