"""Vectors as points in the plane: by principal components, exactly, or by UMAP, which keeps neighbours together.

UMAP: McInnes, Healy and Melville 2018, arXiv:1802.03426, from the package umap-learn. It draws at random, so a map has
its seed and the package's version beside it; of the same seed, version and machine it is the same.
"""

from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..subject.errors import NeuronautError

FEWEST = 4
"""Points of a map."""
_ROWS = 4096
"""Vectors that are added up at a time in double precision."""
_NEIGHBOURS, _DISTANCE = 15, 0.1
"""UMAP's n_neighbors and min_dist, which are its own defaults."""


class Projection(NamedTuple):
    """Points in the plane, and how they came about."""

    places: NDArray[np.float32]
    """(vector, 2)"""
    about: dict[str, object]


def project(vectors: NDArray[np.float32], method: str, *, seed: int = 0) -> Projection:
    """Put vectors (vector, width) into the plane by "pca" or "umap".

    Raises NeuronautError for fewer than FEWEST vectors or equal ones, and where UMAP is not installed.

    >>> project(np.eye(5, 3, dtype=np.float32), "pca").places.shape
    (5, 2)
    """
    if len(vectors) < FEWEST:
        raise NeuronautError(f"there are {len(vectors)} points to map; wanted {FEWEST} at least")
    if not np.isfinite(vectors).all():
        raise NeuronautError("a vector holds numbers that are not finite, and has no place on a map")
    if (vectors == vectors[0]).all():
        raise NeuronautError("all vectors are equal, which makes a map of one point")
    return _METHODS[method](vectors, seed)


def principal_components(vectors: NDArray[np.float32], seed: int = 0) -> Projection:
    """Coordinates along the two directions in which the vectors vary most, with their shares of the variance.

    Exact: from the eigenvectors of the vectors' covariance or, where they are fewer than their width, of their inner
    products. Of each direction that sign is taken in which the farthest point is positive.
    """
    del seed  # Nothing is drawn.
    mean = vectors.mean(axis=0, dtype=np.float64)
    wide = len(vectors) < vectors.shape[1]
    if wide:
        centred = vectors - mean
        variances, axes = np.linalg.eigh(centred @ centred.T)
        places = axes * np.sqrt(variances.clip(0))
    else:
        parts = [vectors[start : start + _ROWS] - mean for start in range(0, len(vectors), _ROWS)]
        variances, axes = np.linalg.eigh(sum(part.T @ part for part in parts))
        places = np.concatenate([part @ axes[:, -2:] for part in parts])
    places = places[:, :-3:-1]
    places = places * np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
    shares = variances[:-3:-1].clip(0) / variances.clip(0).sum()
    return Projection(places.astype(np.float32), {"variance": shares.tolist(), "versions": _versions("numpy")})


def neighbour_embedding(vectors: NDArray[np.float32], seed: int = 0) -> Projection:
    """A map on which near neighbours stay near, by UMAP."""
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise NeuronautError(
            f"{error.name} is not installed; run: pip install 'neuronaut[maps]', or take --method pca"
        ) from error
    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    # One thread and a seed make it the same each time; principal components to begin with draw nothing.
    reducer = UMAP(n_neighbors=neighbours, min_dist=_DISTANCE, init="pca", random_state=seed, n_jobs=1)
    # Its axes mean nothing: turned so that the map is widest across.
    places = principal_components(np.asarray(reducer.fit_transform(vectors), np.float32)).places
    about = {
        "seed": seed,
        "neighbours": neighbours,
        "min_dist": _DISTANCE,
        "versions": _versions("numpy", "umap-learn"),
    }
    return Projection(places, about)


_METHODS = {"pca": principal_components, "umap": neighbour_embedding}


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}
