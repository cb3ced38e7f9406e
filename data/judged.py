"""Judgements in the store: each scoring's predictions and truth, so that metrics can be computed again.

All judgements of one scoring (the explanation's and its controls') share a round, which is the digest of their
content: storing the same scoring twice changes nothing.
"""

import json
import sqlite3
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .codec import content_digest
from .records import Judgements
from .writing import now


def add_judgements(connection: sqlite3.Connection, explanation_id: int, judgements: Sequence[Judgements]) -> None:
    """Store the judgements of one scoring of an explanation."""
    digests = [_digest(part) for part in judgements]
    around = content_digest(*sorted(digests))[:16]
    connection.executemany(
        "INSERT INTO judgements (explanation_id, scorer, examples, role, kind, units, items, true, predicted,"
        " threshold, windows, missing, provenance, round, digest, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            (explanation_id, j.scorer, j.examples, j.role, j.kind, *j.true.shape, _pack(j.true), _pack(j.predicted),
             j.threshold, json.dumps(j.windows), json.dumps(j.missing, sort_keys=True),
             json.dumps(j.provenance, sort_keys=True), around, content_digest(around, digest), now())
            for j, digest in zip(judgements, digests, strict=True)
        ],
    )  # fmt: skip


def read_judgements(connection: sqlite3.Connection, explanation_id: int) -> list[list[Judgements]]:
    """The judgements of an explanation, one list per scoring, the earliest first."""
    rounds: dict[str, list[Judgements]] = {}
    for row in connection.execute("SELECT * FROM judgements WHERE explanation_id = ? ORDER BY id", [explanation_id]):
        shape = row["units"], row["items"]
        rounds.setdefault(row["round"], []).append(
            Judgements(
                row["scorer"], row["examples"], row["role"], row["kind"], _unpack(row["true"], shape),
                _unpack(row["predicted"], shape), row["threshold"], tuple(json.loads(row["windows"])),
                json.loads(row["missing"]), json.loads(row["provenance"]),
            )
        )  # fmt: skip
    return list(rounds.values())


def _digest(judgements: Judgements) -> str:
    said = (judgements.scorer, judgements.examples, judgements.role, judgements.kind, judgements.threshold)
    return content_digest(
        *said, judgements.true.tolist(), np.nan_to_num(judgements.predicted, nan=-1e30).tolist(),
        list(judgements.windows), judgements.missing, judgements.provenance,
    )  # fmt: skip


def _pack(values: NDArray[np.float32]) -> bytes:
    return zlib.compress(values.astype("<f4").tobytes())


def _unpack(blob: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.frombuffer(zlib.decompress(blob), "<f4").reshape(shape)
