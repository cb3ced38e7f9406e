"""The chain of an investigation's predictions.

Each prediction's hash covers the hash before it, what was predicted, of what and by whom, and when. So none can be
changed, left out or put in later without a link that no longer fits.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .journal_values import Experiment


def extend(connection: sqlite3.Connection, id: str, experiment: Experiment) -> None:
    """Add an experiment's predictions to the end of an investigation's chain, within the caller's transaction."""
    last = connection.execute(
        "SELECT seq, hash FROM predictions WHERE investigation = ? ORDER BY seq DESC LIMIT 1", [id]
    ).fetchone()
    seq, previous = (0, _genesis(id)) if last is None else (last["seq"], last["hash"])
    for prediction in experiment.predictions:
        seq += 1
        row: dict[str, Any] = {
            "investigation": id, "seq": seq, "experiment": experiment.name, "hypothesis": prediction.hypothesis,
            "expected": as_json(prediction.expected), "created": time.time_ns(), "previous": previous,
        }  # fmt: skip
        row["hash"] = previous = _link(previous, row)
        connection.execute(
            "INSERT INTO predictions (investigation, seq, experiment, hypothesis, expected, created, previous, hash)"
            " VALUES (:investigation, :seq, :experiment, :hypothesis, :expected, :created, :previous, :hash)",
            row,
        )


def broken(id: str, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Where the chain does not hold: the experiment and hypothesis; None where it holds. `rows` in order."""
    previous = _genesis(id)
    for row in rows:
        if row["previous"] != previous or row["hash"] != _link(previous, row):
            return f"{row['experiment']} {row['hypothesis']}"
        previous = row["hash"]
    return None


def as_json(value: object) -> str:
    """The one way in which a value is written."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _genesis(id: str) -> str:
    return hashlib.sha256(f"investigation {id}".encode()).hexdigest()


def _link(previous: str, row: Mapping[str, Any]) -> str:
    said = [previous, row["experiment"], row["hypothesis"], row["expected"], row["created"]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
