"""Search by meaning, and features that resemble one: explanations as vectors, and windows that features share.

A vector belongs to an explanation and an embedding model. It is kept in the store beside the digest of the text
that it was made from, is stale when that is no longer the digest of the explanation's text, and is brought up to
date when a search needs it. Vectors are compared by the cosine of their angle. The search is exhaustive: every row
that passes the filters is compared, in batches, so that the nearest are found whatever the filters and the limit.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature, SourceId
from ...subject.errors import NeuronautError
from ...subject.json_files import read_json
from ..codec import content_digest, unpack_ids
from .database import Row
from .listing import COLUMNS, Conditions, Filter
from .store import Store
from .words import read_explained

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_EMBED_BATCH = 256


class Embedder:
    """Turns texts into unit vectors with a sentence-transformers model, loaded when first needed.

    >>> Embedder("sentence-transformers/all-MiniLM-L6-v2").model
    'sentence-transformers/all-MiniLM-L6-v2'
    """

    def __init__(self, model: str = DEFAULT_MODEL, *, device: str = "cpu") -> None:
        """`model` is a folder, or a name on the Hugging Face hub."""
        self.model = model
        self._device = device
        self._loaded: SentenceTransformer | None = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of the texts, shape (text, dimension). NeuronautError where there is no such model."""
        loaded = self._loaded = self._loaded or _load(self.model, self._device)
        vectors = loaded.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


def _load(model: str, device: str) -> "SentenceTransformer":
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise NeuronautError("semantic search needs: pip install sentence-transformers") from error
    from huggingface_hub import snapshot_download

    try:
        # Other formats of the same weights, and pickles, are left where they are.
        folder = model if Path(model).is_dir() else snapshot_download(model, ignore_patterns=_NOT_NEEDED)
        _check_modules(Path(folder))
        return SentenceTransformer(
            folder, device=device, model_kwargs={"use_safetensors": True}, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise NeuronautError(
            f"no embedding model {model} could be loaded; give the folder of one (--embedder FOLDER), or download it"
            f" where there is a network: hf download {DEFAULT_MODEL}"
        ) from error


def _check_modules(folder: Path) -> None:
    """Refuse a model whose parts are not sentence-transformers' own: importing them would run its code."""
    file = folder / "modules.json"
    if not file.is_file():
        return
    modules = read_json(file, list, wanted="a list of modules")
    types = [module.get("type") if isinstance(module, dict) else module for module in modules]
    if foreign := [kind for kind in types if not str(kind).startswith("sentence_transformers.")]:
        raise NeuronautError(
            f"{file} names {foreign[0]!r}, which is no part of sentence-transformers: code that comes with a model is "
            "not run; give another --embedder"
        )


_NOT_NEEDED = ["onnx/*", "openvino/*", "*.bin", "*.h5", "*.ot", "*.msgpack", "*.onnx"]


def refresh(store: Store, embedder: Embedder) -> int:
    """Embed the explanations that have no vector of this model, or of another text; returns how many."""
    stale = stale_texts(store.db.conn, embedder.model)
    for start in range(0, len(stale), _EMBED_BATCH):
        batch = stale[start : start + _EMBED_BATCH]
        vectors = embedder.embed([text for _, text in batch])
        with store.transaction():
            store_vectors(store.db.conn, embedder.model, batch, vectors)
    return len(stale)


def semantic_search(
    store: Store,
    query: str,
    *,
    embedder: Embedder,
    source: str | SourceId | None = None,
    limit: int = 20,
    update: bool = True,
    **conditions: Unpack[Conditions],
) -> list[Row]:
    """Rows whose best explanation is nearest in meaning, with `rank` from 1 and `similarity`, a cosine.

    Explanations without a vector are embedded first, unless `update` is false: then they are not found.

    >>> rows = semantic_search(store, "names after a bracket", embedder=Embedder(minilm), limit=3)
    >>> rows[0]["rank"]
    1
    """
    if not query.strip():
        raise NeuronautError("the query is empty; wanted some words, for example: neuronaut search 'method calls'")
    if update:
        refresh(store, embedder)
    chosen = Filter(store.known_source(source), conditions)
    batches = candidates(store.db.conn, embedder.model, chosen)
    return _nearest(store, embedder.embed([query])[0], batches, limit)


class Similar(NamedTuple):
    """Features that resemble one, by two measures; rows have `rank` and `similarity`."""

    by_explanation: list[Row]
    """Cosine of the best explanations' vectors."""
    by_activation: list[Row]
    """Jaccard index of the features' sets of top windows: what they share among what either has."""


def similar(store: Store, feature: Feature, *, embedder: Embedder | None, limit: int = 20) -> Similar:
    """Features that resemble this one; by explanation only where there is an embedder and an explanation.

    >>> neighbours = similar(store, Feature.parse("demo:mlp.1:17"), embedder=None, limit=3)
    >>> len(neighbours.by_activation) <= 3
    True
    """
    by_explanation: list[Row] = []
    best = store.best(feature)
    if embedder is not None and best is not None and best.explanation.text is not None:
        refresh(store, embedder)
        vector = embedder.embed([best.explanation.text])[0]
        batches = candidates(store.db.conn, embedder.model, Filter(None, {}), without=best.id)
        by_explanation = _nearest(store, vector, batches, limit)
    return Similar(by_explanation, _sharing_windows(store, feature, limit))


def resembling(store: Store, feature: Feature, *, limit: int = 20) -> Similar:
    """`similar` from what is stored alone: by explanation with the vector that the best explanation has, if any."""
    by_explanation: list[Row] = []
    best = store.best(feature)
    for model in stored_models(store) if best is not None else []:
        sql = "SELECT vector FROM embeddings WHERE model = ? AND explanation_id = ?"
        if best and (row := store.db.conn.execute(sql, [model, best.id]).fetchone()) is not None:
            batches = candidates(store.db.conn, model, Filter(None, {}), without=best.id)
            by_explanation = _nearest(store, np.frombuffer(row[0], "<f4"), batches, limit)
            break
    return Similar(by_explanation, _sharing_windows(store, feature, limit))


def stored_models(store: Store) -> list[str]:
    """The embedding models that explanations here have vectors of, the one with most first."""
    sql = "SELECT model FROM embeddings GROUP BY model ORDER BY count(*) DESC, model"
    return [row[0] for row in store.db.conn.execute(sql)]


def _nearest(
    store: Store,
    vector: NDArray[np.float32],
    batches: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]],
    limit: int,
) -> list[Row]:
    ids, cosines = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for batch_ids, vectors in batches:
        ids, cosines = np.append(ids, batch_ids), np.append(cosines, vectors @ vector)
        order = np.lexsort((ids, -cosines))[:limit]
        ids, cosines = ids[order], cosines[order]
    rows = read_explained(store.db.conn, ids.tolist())
    return _add_ranks(rows, cosines.tolist())


def _add_ranks(rows: Sequence[Row], similarities: Sequence[float]) -> list[Row]:
    return [
        row | {"rank": rank, "similarity": similarity}
        for rank, (row, similarity) in enumerate(zip(rows, similarities, strict=True), start=1)
    ]


def _sharing_windows(store: Store, feature: Feature, limit: int) -> list[Row]:
    overlaps = sorted(window_overlap(store.db.conn, feature), key=lambda overlap: (-overlap[1], overlap[0]))[:limit]
    sql = f"SELECT {COLUMNS} FROM feature_status WHERE feature_id = ?"
    rows = [dict(store.db.conn.execute(sql, [feature_id]).fetchone()) for feature_id, _ in overlaps]
    return _add_ranks(rows, [overlap for _, overlap in overlaps])


_BATCH = 4096


def stale_texts(connection: sqlite3.Connection, model: str) -> list[tuple[int, str]]:
    """Id and text of every explanation that has no vector of its present text."""
    sql = """SELECT id, text, content_hash FROM explanations
        LEFT JOIN embeddings ON explanation_id = id AND model = ? WHERE text IS NOT NULL ORDER BY id"""
    return [(id_, text) for id_, text, digest in connection.execute(sql, [model]) if digest != content_digest(text)]


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
        "SELECT listed.explanation_id, vector FROM listed JOIN embeddings USING (explanation_id)"
        f" WHERE model = ? AND listed.explanation_id <> ? AND {condition}",
        [model, without, *values],
    )
    while batch := cursor.fetchmany(_BATCH):
        ids = np.array([row[0] for row in batch], np.int64)
        yield ids, np.frombuffer(b"".join(row[1] for row in batch), "<f4").reshape(len(batch), -1)


def window_overlap(connection: sqlite3.Connection, feature: Feature) -> list[tuple[int, float]]:
    """Features (by id) of the same model that share top windows with this one, and the Jaccard index."""
    row = connection.execute(
        "SELECT feature_id, windows FROM examples JOIN features ON features.id = feature_id"
        " JOIN sources ON sources.id = source_id WHERE name = ? AND idx = ? AND examples.kind = ?",
        [str(feature.source), feature.index, "bottom" if feature.negative else "top"],
    ).fetchone()
    if row is None:
        return []
    feature_id, windows = row[0], np.unique(unpack_ids(row[1]))
    cursor = connection.execute(
        "SELECT feature_id, windows FROM examples JOIN features ON features.id = feature_id"
        " JOIN sources ON sources.id = source_id WHERE model = ? AND examples.kind = 'top' AND feature_id <> ?",
        [feature.source.model, feature_id],
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
