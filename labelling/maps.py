"""Maps of a source: its features by what they write or by how they are explained, or tokens by what is at its site.

Decoders are directions in the residual stream, of unit length; explanations are vectors of an embedding model. So near
points are features that write alike, or that are said to do alike.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..data.harvest.activations import neurons
from ..data.padding import pad_ids
from ..data.projection import project
from ..data.store.maps import Map, Method, TokenPoint
from ..data.store.search import DEFAULT_MODEL, Embedder, refresh, source_vectors, stored_models
from ..data.store.store import Store
from ..data.texts import TextRows, read_texts
from ..rules.language import CLASSES
from ..subject.address import SourceId
from ..subject.directions import directions
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .opening import with_limits

FEATURES, TOKENS = 100_000, 5000
"""Points of a map, at most."""
_BEFORE = 60
"""Characters of text in front of a token."""
_DIRECTIONS = 1024
"""Features whose directions are taken at a time."""
_NOWHERE = np.empty((0, 2), np.float32)
"""Places of a map whose vectors are not projected yet."""


def map_decoders(
    subject: Subject, source: Source, *, method: Method = "pca", points: int = FEATURES, seed: int = 0
) -> Map:
    """A point for each feature, at most `points`, by the direction that it writes into the residual stream.

    What writes nothing there has no point. Raises NeuronautError where that is all.

    >>> drawn = map_decoders(subject, Neurons(SourceId("demo", "mlp.1"), subject.width("mlp.1")))
    >>> drawn.places.shape == (subject.width("mlp.1"), 2)
    True
    """
    members = _draw(source.width, points, seed)
    parts = [
        directions(subject, source, members[start : start + _DIRECTIONS].tolist()).vector.cpu().numpy()
        for start in range(0, len(members), _DIRECTIONS)
    ]
    vectors = np.concatenate(parts)
    writes = vectors.any(axis=1)
    if not writes.any():
        raise NeuronautError(
            f"{source.id} writes nothing into the residual stream, so it has no directions to map; "
            "take --of explanations or --of activations"
        )
    about = {"points": int(writes.sum()), "features": source.width}
    drawn = Map(source.id, "decoder", method, members=members[writes], places=_NOWHERE, provenance=about)
    return _place(drawn, vectors[writes], seed=seed)


def map_explanations(
    store: Store,
    source: SourceId,
    *,
    embedder: str | None = None,
    method: Method = "pca",
    points: int = FEATURES,
    seed: int = 0,
) -> Map:
    """A point for each explained feature, at most `points`, by the vector of its best explanation.

    Vectors are those that are stored; with `embedder`, or where none are, missing ones are made by that model.
    """
    stored = stored_models(store)
    model = embedder or next(iter(stored), DEFAULT_MODEL)
    if embedder is not None or not stored:
        refresh(store, Embedder(model))
    members, vectors = source_vectors(store, source, model=model)
    if not len(members):
        raise NeuronautError(f"no explanation of {source} has a vector of {model}; label it, then name an --embedder")
    chosen = _draw(len(members), points, seed)
    about = {"points": len(chosen), "explained": len(members), "embedder": model}
    drawn = Map(source, "explanations", method, members=members[chosen], places=_NOWHERE, provenance=about)
    return _place(drawn, vectors[chosen], seed=seed)


def map_activations(
    subject: Subject, source: Source, store: Store, *, method: Method = "pca", points: int = TOKENS, seed: int = 0
) -> Map:
    """A point for each of `points` tokens of the corpus, by the vector at the source's site.

    The tokens are drawn from the pool of windows, a uniform sample of the corpus; those that count in no statistics
    (BOS, special tokens, massive positions) are left out.
    """
    site = source.id.site
    subject = with_limits(subject, store, [source.id])
    pool = [row for windows in store.pool(source.id.model).values() for row in windows]
    if not pool:
        raise NeuronautError(f"nothing of {source.id.model} was harvested, so there is no text to map")
    order = np.random.default_rng(seed).permutation(len(pool))
    tokens = pad_ids([row[row >= 0] for row in pool], width=max(map(len, pool)))[order]
    enough = 1 + int((tokens >= 0).sum(1).cumsum().searchsorted(2 * points))
    rows = TextRows(tokens[:enough], np.arange(len(tokens[:enough])), np.zeros(len(tokens[:enough]), np.int64))
    (own,) = neurons(subject, [site])
    read = [part[own.id] for part in read_texts(subject, [own], rows)]
    vectors, owners, positions = (
        np.concatenate([getattr(part, name).cpu().numpy() for part in read])
        for name in ("vectors", "owners", "positions")
    )
    chosen = _draw(len(vectors), points, seed)
    strings = [_describe_token(subject, rows.tokens[owners[place]], int(positions[place])) for place in chosen]
    about = {"points": len(chosen), "site": site}
    members = np.arange(len(chosen), dtype=np.int32)
    drawn = Map(source.id, "activations", method, members, places=_NOWHERE, tokens=strings, provenance=about)
    return _place(drawn, vectors[chosen], seed=seed, unit=False)


def _describe_token(subject: Subject, ids: NDArray[np.int64], position: int) -> TokenPoint:
    tokens = subject.decode_tokens(ids[: position + 1].tolist())
    before = "".join(tokens[:-1])
    return TokenPoint(classify_token(tokens[-1], before), tokens[-1], before[-_BEFORE:])


def classify_token(token: str, before: str) -> str:
    """The class of a token, one of TOKEN_KINDS, that follows a text."""
    if not token or token.isspace():
        return "white space"
    if CLASSES["punctuation"](token):
        return "punctuation"
    if not any(character.isalpha() for character in token):
        return "number"
    goes_on = not token[0].isspace() and (before[-1:].isalnum() or before[-1:] == "_")
    return "inside a word" if goes_on else "starts a word"


def _draw(count: int, points: int, seed: int) -> NDArray[np.int32]:
    """All numbers below `count`, or of more than `points` a sample, in order."""
    if count <= points:
        return np.arange(count, dtype=np.int32)
    return np.sort(np.random.default_rng(seed).choice(count, points, replace=False)).astype(np.int32)


def _place(drawn: Map, vectors: NDArray[np.float32], *, seed: int, unit: bool = True) -> Map:
    """The map with its points where their vectors are projected to; at unit length, or as they are."""
    if unit:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    projected = project(vectors, drawn.method, seed=seed)
    return replace(drawn, places=projected.places, provenance={**drawn.provenance, **projected.about})
