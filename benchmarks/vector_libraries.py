"""Libraries for the nearest of many vectors, beside the search that the store has (data/store/vectors.py).

    pip install usearch faiss-cpu hnswlib sqlite-vec
    python -m neuronaut.benchmarks.vector_libraries [--vectors 100000] [--only NAME...]

Each library that is installed builds its index in a process of its own, on one thread, and answers QUERIES queries for
the 10 nearest. The table gives the share of the true 10 that it finds, CPU seconds to build, milliseconds a query (wall
time of the best), bytes on disk, and how much more memory the process holds at the end.
"""

import argparse
import importlib
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.store.vector_file import VectorFile, find_axes, quantise, rows_start
from .synthetic_database import DIMENSIONS, make_vectors

QUERIES, NEAREST = 20, 10
Vectors = NDArray[np.float32]
Search = Callable[[Vectors], NDArray[np.int64]]
"""Ids (from 0) of the nearest to one query."""


def _store(vectors: Vectors, folder: Path) -> Search:
    """Bounds from eight bits a dimension, then the float16 vectors that may be nearest."""
    np.save(folder / "kept.npy", vectors.astype("<f2"))
    # The database's part.
    kept = np.load(folder / "kept.npy", mmap_mode="r")
    axes = find_axes(np.asarray(kept[:: max(1, len(kept) // 8192)], np.float32))
    file = VectorFile(folder / "a.db-vectors-1", vectors.shape[1], len(kept))
    with file.path.open("wb") as stream:
        stream.seek(rows_start(vectors.shape[1]) - axes.nbytes)
        stream.write(axes.tobytes())
        for first in range(0, len(kept), 8192):
            part = np.asarray(kept[first : first + 8192], np.float32) @ axes
            stream.write(quantise(range(first, first + len(part)), part).tobytes())

    def search(query: Vectors) -> NDArray[np.int64]:
        cosines, ids = np.empty(0, np.float32), np.empty(0, np.int64)

        def compare(more: NDArray[np.int64]) -> float:
            nonlocal cosines, ids
            cosines = np.concatenate([cosines, kept[more].astype(np.float32) @ query])
            ids = np.concatenate([ids, more])
            best = np.argsort(-cosines)[:NEAREST]
            cosines, ids = cosines[best], ids[best]
            return float(cosines[-1]) if len(ids) == NEAREST else -np.inf

        file.walk(query, compare, first=256)
        return ids

    return search


def _usearch(vectors: Vectors, folder: Path) -> Search:
    module = importlib.import_module("usearch.index")
    index = module.Index(ndim=vectors.shape[1], metric="ip", dtype="i8")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    index.save(str(folder / "index"))
    return lambda query: index.search(query, NEAREST, threads=1).keys.astype(np.int64)


def _faiss(kind: str) -> Callable[[Vectors, Path], Search]:
    def build(vectors: Vectors, folder: Path) -> Search:
        module = importlib.import_module("faiss")
        module.omp_set_num_threads(1)
        index = module.index_factory(vectors.shape[1], kind, module.METRIC_INNER_PRODUCT)
        index.train(vectors[:100_000])
        index.add(vectors)
        if kind.startswith("IVF"):
            index.nprobe = 32
        module.write_index(index, str(folder / "index"))
        return lambda query: index.search(query[None], NEAREST)[1][0]

    return build


def _hnswlib(vectors: Vectors, folder: Path) -> Search:
    module = importlib.import_module("hnswlib")
    index = module.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
    index.add_items(vectors, num_threads=1)
    index.set_ef(64)
    index.save_index(str(folder / "index"))
    return lambda query: index.knn_query(query, NEAREST, num_threads=1)[0][0].astype(np.int64)


def _sqlite_vec(vectors: Vectors, folder: Path) -> Search:
    module = importlib.import_module("sqlite_vec")
    connection: Any = sqlite3.connect(folder / "index")
    # Not every Python can: that of pyenv, for one, is built without.
    connection.enable_load_extension(True)
    module.load(connection)
    connection.execute(f"CREATE VIRTUAL TABLE v USING vec0(e int8[{vectors.shape[1]}] distance_metric=cosine)")
    insert = "INSERT INTO v (rowid, e) VALUES (?, vec_int8(?))"
    with connection:
        connection.executemany(insert, ((number, _eight_bits(row)) for number, row in enumerate(vectors)))
    sql = "SELECT rowid FROM v WHERE e MATCH vec_int8(?) AND k = ? ORDER BY distance"
    return lambda query: np.array([row[0] for row in connection.execute(sql, [_eight_bits(query), NEAREST])])


def _eight_bits(vector: Vectors) -> bytes:
    return np.rint(vector * (127 / np.abs(vector).max())).astype(np.int8).tobytes()


LIBRARIES: Mapping[str, Callable[[Vectors, Path], Search]] = {
    "neuronaut (numpy, exact)": _store,
    "faiss SQ8, all rows": _faiss("SQ8"),
    "faiss IVF1024,SQ8": _faiss("IVF1024,SQ8"),
    "faiss HNSW32": _faiss("HNSW32"),
    "usearch HNSW, 8 bits": _usearch,
    "hnswlib HNSW": _hnswlib,
    "sqlite-vec, 8 bits, all rows": _sqlite_vec,
}


def main() -> None:
    """Measure each library in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description="Libraries for the nearest of many vectors")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--measure", choices=list(LIBRARIES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options.measure, options.vectors)
        return
    print("| library | recall at 10 | build, CPU s | query, ms | on disk, MB | memory, MB |\n|---|--:|--:|--:|--:|--:|")
    for name in options.only:
        own = [sys.executable, "-m", "neuronaut.benchmarks.vector_libraries", "--vectors", str(options.vectors)]
        done = subprocess.run([*own, "--measure", name], capture_output=True, text=True, check=False)
        reason = (done.stderr.strip().splitlines() or ["?"])[-1]
        failed = f"| {name} | not measured: {reason} | | | | |"
        print(failed if done.returncode else done.stdout.strip(), flush=True)


def _measure(name: str, count: int) -> None:
    vectors = np.concatenate([make_vectors(min(50_000, count - n), seed=n) for n in range(0, count, 50_000)])
    queries = make_vectors(QUERIES, seed=-1 % 2**31, dimensions=DIMENSIONS)
    truth = [set(np.argsort(-(vectors @ query))[:NEAREST].tolist()) for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        before, began = _resident(), time.process_time()
        search = LIBRARIES[name](vectors, Path(folder))
        built, seconds, found = time.process_time() - began, [], 0
        for query, true in zip(queries, truth, strict=True):
            asked = time.perf_counter()
            ids = search(query)
            seconds.append(time.perf_counter() - asked)
            found += len(true & set(ids.tolist()))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    recall = found / (QUERIES * NEAREST)
    held, best = _resident() - before, 1000 * min(seconds)
    print(f"| {name} | {recall:.3f} | {built:.0f} | {best:.1f} | {size / 1e6:.0f} | {held:.0f} |")


def _resident() -> float:
    """Megabytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
