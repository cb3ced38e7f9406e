"""Maps: points in the plane for the features of a source, or for tokens at its site, as `neuronaut map` drew them.

A source has one map of a kind and a method, the latest. Maps can always be drawn again, so merging leaves them out.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.address import SourceId
from .database import Row
from .writing import now

MAPS = """CREATE TABLE maps (
    id INTEGER PRIMARY KEY, source_id INTEGER NOT NULL REFERENCES sources(id) ON DELETE CASCADE, kind TEXT NOT NULL,
    method TEXT NOT NULL, n INTEGER NOT NULL, members BLOB NOT NULL, places BLOB NOT NULL, tokens TEXT,
    provenance TEXT NOT NULL, created TEXT NOT NULL, UNIQUE (source_id, kind, method))"""

Kind = Literal["decoder", "explanations", "activations"]
Method = Literal["pca", "umap"]
KINDS: tuple[Kind, ...] = ("decoder", "explanations", "activations")
METHODS: tuple[Method, ...] = ("pca", "umap")
TOKEN_KINDS: tuple[str, ...] = ("starts a word", "inside a word", "number", "punctuation", "white space")
"""The classes of tokens on a map of activations; each token is of one."""


class TokenPoint(NamedTuple):
    """What a point of a map of activations stands for."""

    kind: str
    """Class of the token, one of TOKEN_KINDS."""
    token: str
    before: str
    """The text in front of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """Points in the plane; near ones stand for vectors that are near."""

    source: SourceId
    kind: Kind
    """What has a point: each feature by its decoder or by its explanation, or tokens by the activations at the site."""
    method: Method
    members: NDArray[np.int32]
    """(point,): the features' indices; of activations the number of the token."""
    places: NDArray[np.float32]
    """(point, 2)"""
    tokens: Sequence[TokenPoint] = ()
    """Of activations, by number."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601; set by the store."""


def write_map(connection: sqlite3.Connection, drawn: Map) -> None:
    """Keep a map in place of the one of its source, kind and method."""
    connection.execute(
        "INSERT INTO maps (source_id, kind, method, n, members, places, tokens, provenance, created)"
        " SELECT id, ?, ?, ?, ?, ?, ?, ?, ? FROM sources WHERE name = ? ON CONFLICT (source_id, kind, method) DO UPDATE"
        " SET n = excluded.n, members = excluded.members, places = excluded.places, tokens = excluded.tokens,"
        " provenance = excluded.provenance, created = excluded.created",
        [
            drawn.kind,
            drawn.method,
            len(drawn.members),
            drawn.members.astype("<i4").tobytes(),
            drawn.places.astype("<f4").tobytes(),
            json.dumps(drawn.tokens, ensure_ascii=False) if drawn.tokens else None,
            json.dumps(dict(drawn.provenance), ensure_ascii=False),
            now(),
            str(drawn.source),
        ],
    )


def list_maps(connection: sqlite3.Connection) -> list[Row]:
    """Source, kind, method, number of points and time of each map, in the order of sources, KINDS and METHODS."""
    sql = """SELECT name AS source, maps.kind, method, n, created FROM maps JOIN sources ON sources.id = source_id
        ORDER BY name"""
    rows = [dict(row) for row in connection.execute(sql)]
    return sorted(rows, key=lambda row: (row["source"], KINDS.index(row["kind"]), METHODS.index(row["method"])))


def read_map(connection: sqlite3.Connection, source: SourceId, kind: str, method: str) -> Map | None:
    """A map; None where none was drawn."""
    row = connection.execute(
        "SELECT * FROM maps WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND kind = ? AND method = ?",
        [str(source), kind, method],
    ).fetchone()
    if row is None:
        return None
    return Map(
        source,
        row["kind"],
        row["method"],
        members=np.frombuffer(row["members"], "<i4"),
        places=np.frombuffer(row["places"], "<f4").reshape(-1, 2),
        tokens=[TokenPoint(*own) for own in json.loads(row["tokens"] or "[]")],
        provenance=json.loads(row["provenance"]),
        created=row["created"],
    )


def read_labels(connection: sqlite3.Connection, source: SourceId) -> dict[int, tuple[str, float | None, str | None]]:
    """Status, score and headline of each feature of a source, by index; not of negative tails."""
    sql = """SELECT idx, listed.status, score, coalesce(headline, text) FROM listed
        LEFT JOIN explanations ON explanations.id = explanation_id
        WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND listed.negative = 0"""
    return {row[0]: tuple(row)[1:] for row in connection.execute(sql, [str(source)])}
