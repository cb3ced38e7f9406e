"""Search by meaning, and features that resemble one: explanations as vectors, and windows that features share.

A vector belongs to an explanation and an embedding model, and is made when a search first needs it (vectors.py). The
nearest are found whatever the filters and the limit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature, SourceId
from ...subject.errors import NeuronautError
from ...subject.json_files import read_json
from .database import Row
from .listing import Conditions, Filter, Key, read_keys
from .shared_windows import find_overlaps
from .store import Store
from .vectors import (
    find_nearest,
    open_embedder,
    raise_watermark,
    read_source_vectors,
    read_unembedded,
    read_vector,
    store_vectors,
)
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
    """Embed the explanations that have no vector of this model; returns how many."""
    connection, count = store.db.conn, 0
    while True:
        known = open_embedder(connection, embedder.model)
        if known is None:
            with store.transaction():
                connection.execute("INSERT OR IGNORE INTO embedders (model, watermark) VALUES (?, 0)", [embedder.model])
            continue
        (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM explanations").fetchone()
        if known.watermark >= newest:
            return count
        batch = read_unembedded(connection, known, _EMBED_BATCH)
        vectors = embedder.embed([text for _, text in batch]) if batch else None
        with store.transaction():
            if vectors is None:
                raise_watermark(connection, known, newest)
            else:
                store_vectors(connection, known, batch, vectors)
        count += len(batch)


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
    return _nearest(store, embedder.model, embedder.embed([query])[0], chosen, limit=limit)


class Similar(NamedTuple):
    """Features that resemble one, by two measures; rows have `rank` and `similarity`."""

    by_explanation: list[Row]
    """Cosine of the best explanations' vectors."""
    by_activation: list[Row]
    """Jaccard index of the features' sets of top windows: what they share among what either has."""


def similar(
    store: Store, feature: Feature, *, embedder: Embedder | None, limit: int = 20, update: bool = True
) -> Similar:
    """Features that resemble this one; by explanation only where there is an embedder and an explanation.

    Explanations without a vector are embedded first, unless `update` is false: then the embedder is not loaded, and
    only the vectors that are stored are compared.

    >>> neighbours = similar(store, Feature.parse("demo:mlp.1:17"), embedder=None, limit=3)
    >>> len(neighbours.by_activation) <= 3
    True
    """
    by_explanation: list[Row] = []
    best = store.best(feature)
    if embedder is not None and best is not None and best.explanation.text is not None:
        if update:
            refresh(store, embedder)
        known = open_embedder(store.db.conn, embedder.model)
        vector = known and read_vector(store.db.conn, known, best.id)
        if vector is not None:
            everything = Filter(None, {})
            by_explanation = _nearest(store, embedder.model, vector, everything, limit=limit, without=best.id)
    return Similar(by_explanation, _sharing_windows(store, feature, limit))


def stored_models(store: Store) -> list[str]:
    """The embedding models that explanations here have vectors of, the one that knows most of them first."""
    sql = """SELECT model FROM embedders WHERE id IN (SELECT embedder_id FROM embedding_batches)
        ORDER BY watermark DESC, model"""
    return [row[0] for row in store.db.conn.execute(sql)]


def source_vectors(store: Store, source: SourceId, *, model: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Indices, and vectors (feature, dimension) of the best explanations, of the features that have one of a model."""
    known = open_embedder(store.db.conn, model)
    if known is None:
        return np.empty(0, np.int32), np.empty((0, 0), np.float32)
    return read_source_vectors(store.db.conn, known, str(source))


def _nearest(
    store: Store, model: str, vector: NDArray[np.float32], chosen: Filter, *, limit: int, without: int = 0
) -> list[Row]:
    known = open_embedder(store.db.conn, model)
    if known is None:
        return []
    unit = vector / max(float(np.linalg.norm(vector)), 1e-30)
    found = find_nearest(store.db.conn, store.path, known, unit, chosen, limit=limit, without=without)
    rows = read_explained(store.db.conn, [id_ for _, id_ in found])
    return _add_ranks(rows, [cosine for cosine, _ in found])


def _add_ranks(rows: Sequence[Row], similarities: Sequence[float]) -> list[Row]:
    return [
        row | {"rank": rank, "similarity": similarity}
        for rank, (row, similarity) in enumerate(zip(rows, similarities, strict=True), start=1)
    ]


def _sharing_windows(store: Store, feature: Feature, limit: int) -> list[Row]:
    overlaps = find_overlaps(store.db.conn, feature, limit)
    keys = [Key(0, overlap.source_id, overlap.idx, 0, None) for overlap in overlaps]
    return _add_ranks(read_keys(store.db.conn, keys), [overlap.similarity for overlap in overlaps])
