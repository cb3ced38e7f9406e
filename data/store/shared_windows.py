"""Features that share top windows with one: by the table `window_features`, which says of a window whose it is.

The similarity of two features is the Jaccard index of their sets of top windows, s / (a + b - s) for s shared ones
among a and b. As b is at least s, it is at most s / a: features are taken from the most shared windows down, until the
next ones can be no nearer. `window_features` follows from `examples` and is written with them; it carries the digest of
its harvest, and a source whose harvest has another one is read whole.
"""

import json
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature
from ..codec import pack_ids, unpack_ids


class Overlap(NamedTuple):
    """A feature that shares windows with another."""

    similarity: float
    feature_id: int
    source_id: int
    idx: int


def write_shared_windows(connection: sqlite3.Connection, source_id: int) -> None:
    """Write the table anew for one source."""
    connection.execute("DELETE FROM window_features WHERE source_id = ?", [source_id])
    lists = list(_read_lists(connection, source_id))
    windows = np.concatenate([own for _, own in lists] or [np.zeros(0, np.int32)])
    features = np.repeat([idx for idx, _ in lists], [len(own) for _, own in lists]).astype(np.int32)
    order = np.lexsort((features, windows))
    distinct, starts = np.unique(windows[order], return_index=True)
    connection.executemany(
        "INSERT INTO window_features (source_id, window_id, features) VALUES (?, ?, ?)",
        (
            (source_id, window, pack_ids(own))
            for window, own in zip(distinct.tolist(), np.split(features[order], starts[1:]), strict=False)
        ),
    )
    connection.execute(
        "INSERT OR REPLACE INTO window_harvests SELECT source_id, digest FROM harvests WHERE source_id = ?", [source_id]
    )


def _read_lists(connection: sqlite3.Connection, source_id: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Index and distinct top windows of every feature of a source that has some."""
    sql = """SELECT idx, windows FROM features JOIN examples ON feature_id = features.id
        WHERE source_id = ? AND examples.kind = 'top'"""
    for idx, windows in connection.execute(sql, [source_id]):
        yield idx, np.unique(unpack_ids(windows))


def find_overlaps(connection: sqlite3.Connection, feature: Feature, limit: int) -> list[Overlap]:
    """The features of the same model that share most of their top windows with this one."""
    row = connection.execute(
        "SELECT feature_id, source_id, windows FROM examples JOIN features ON features.id = feature_id"
        " WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND idx = ? AND examples.kind = ?",
        [str(feature.source), feature.index, "bottom" if feature.negative else "top"],
    ).fetchone()
    if row is None:
        return []
    own, windows = (row["source_id"], feature.index), np.unique(unpack_ids(row["windows"]))
    shared = _count_shared(connection, feature.source.model, windows)
    candidates = sorted(((count, *key) for key, count in shared.items() if key != own), key=lambda c: (-c[0], *c[1:]))
    found: list[Overlap] = []
    for count, source_id, idx in candidates:
        if len(found) == limit and count / len(windows) < found[-1].similarity:
            break
        found.append(_measure(connection, source_id, idx, count, len(windows)))
        found = sorted(found, key=lambda overlap: (-overlap.similarity, overlap.feature_id))[:limit]
    return found


def _count_shared(connection: sqlite3.Connection, model: str, windows: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """How many of these windows each feature of a model has, by source and index, of those that have some."""
    shared: dict[tuple[int, int], int] = {}
    sql = """SELECT sources.id, window_harvests.digest = harvests.digest AS fresh FROM sources
        JOIN harvests ON harvests.source_id = sources.id
        LEFT JOIN window_harvests ON window_harvests.source_id = sources.id WHERE model = ?"""
    for source_id, fresh in connection.execute(sql, [model]).fetchall():
        if fresh:
            found = connection.execute(
                "SELECT features FROM window_features WHERE source_id = ? AND window_id IN"
                " (SELECT value FROM json_each(?))",
                [source_id, json.dumps(windows.tolist())],
            ).fetchall()
            features = np.concatenate([unpack_ids(blob) for (blob,) in found] or [np.zeros(0, np.int32)])
            indices, counts = np.unique(features, return_counts=True)
            pairs = zip(indices.tolist(), counts.tolist(), strict=True)
        else:
            lists = _read_lists(connection, source_id)
            pairs = ((idx, int(np.isin(own, windows).sum())) for idx, own in lists)
        shared |= {(source_id, idx): count for idx, count in pairs if count}
    return shared


def _measure(connection: sqlite3.Connection, source_id: int, idx: int, count: int, own: int) -> Overlap:
    feature_id, windows = connection.execute(
        "SELECT features.id, windows FROM features JOIN examples ON feature_id = features.id"
        " WHERE source_id = ? AND idx = ? AND examples.kind = 'top'",
        [source_id, idx],
    ).fetchone()
    return Overlap(count / (own + len(np.unique(unpack_ids(windows))) - count), feature_id, source_id, idx)
