"""What an investigation writes into its journal, as values that know nothing of storage.

The chain of an investigation's predictions.

Each prediction's hash covers the hash before it, what was predicted, of what and by whom, and when. So none can be
changed, left out or put in later without a link that no longer fits.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
End = Literal["supported", "open", "no_explanation", "budget", "error"]


@dataclass(frozen=True, slots=True)
class InvestigationRecord:
    """What an investigation is from its beginning on."""

    id: str
    kind: Literal["feature", "behaviour"]
    target: str
    """A feature's address, or `MODEL TASK`."""
    policy: str
    settings: Json
    """All that determines the id, with the target and the policy."""
    provenance: Json
    """Revisions, corpus, library versions: what the numbers rest on."""
    parent: str | None = None
    """The investigation that this one was forked from."""


class Prediction(NamedTuple):
    """What one hypothesis says of an experiment's items, before it is run."""

    hypothesis: str
    """Its name."""
    expected: tuple[float | None, ...]
    """By item, in units of the scale; None for no opinion."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment or survey as it was planned."""

    name: str
    """o1, o2, ... by the order of planning, which its observation is cited by."""
    tool: str
    args: Json
    purpose: str
    survey: bool
    role: str
    """Whose idea it was: "proposer" or "challenger"."""
    round: int
    key: str
    """Hash of the target, its revision, the tool with its version and arguments, and the design: what an observation
    is known by in all investigations."""
    design: Json
    base: tuple[float, ...] = ()
    """The base rate of levels that items without an opinion are forecast by."""
    reference: str | None = None
    """The leader at the time of planning, against which the rivals' odds move."""
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """What came of an experiment."""

    status: Literal["ok", "error"]
    result: Json
    """Of status "ok"; empty otherwise."""
    reason: str | None
    cost: Json = field(default_factory=dict)


class Charge(NamedTuple):
    """What something cost."""

    experiments: int = 0
    forwards: int = 0
    """Prompts that were run through the subject, however many to a batch."""
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    minutes: float = 0.0


def extend(connection: sqlite3.Connection, id: str, experiment: Experiment) -> None:
    """Add an experiment's predictions to the end of an investigation's chain, within the caller's transaction."""
    last = connection.execute(
        "SELECT seq, hash FROM predictions WHERE investigation = ? ORDER BY seq DESC LIMIT 1", [id]
    ).fetchone()
    seq, previous = (0, _genesis(id)) if last is None else (last["seq"], last["hash"])
    for prediction in experiment.predictions:
        seq += 1
        row: dict[str, Any] = {
            "investigation": id,
            "seq": seq,
            "experiment": experiment.name,
            "hypothesis": prediction.hypothesis,
            "expected": as_json(prediction.expected),
            "created": time.time_ns(),
            "previous": previous,
        }
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
