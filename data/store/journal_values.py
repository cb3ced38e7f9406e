"""The values of an investigation's journal, and the chain of its predictions.

Each prediction's hash covers the hash before it, the predicted values, their experiment and hypothesis, and the
time. So none can be changed, left out or put in later without a link that no longer fits.
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
    """An investigation as it begins."""

    id: str
    kind: Literal["feature", "behaviour"]
    target: str
    """A feature's address, or `MODEL TASK`."""
    policy: str
    settings: Json
    """Everything that determines the id, beside the target and the policy."""
    provenance: Json
    """Revisions, corpus, library versions: what the numbers depend on."""
    parent: str | None = None
    """The investigation that this one was forked from."""


class Prediction(NamedTuple):
    """One hypothesis's predictions for an experiment's items, before it is run."""

    hypothesis: str
    """Its name."""
    expected: tuple[float | None, ...]
    """By item, in units of the scale; None for no opinion."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment or survey as it was planned."""

    name: str
    """o1, o2, ... in the order of planning; its observation is cited by this name."""
    tool: str
    args: Json
    purpose: str
    survey: bool
    role: str
    """Whose idea it was: "proposer", "challenger" or, at the end, "code"."""
    round: int
    key: str
    """Hash of the target, its revision, the tool with its version and arguments, and the design: it identifies an
    observation across investigations."""
    design: Json
    base: tuple[float, ...] = ()
    """The base rate of levels that items without an opinion are forecast by."""
    reference: str | None = None
    """The leader at the time of planning, against which the rivals' odds move."""
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """The outcome of an experiment."""

    status: Literal["ok", "error"]
    result: Json
    """Of status "ok"; empty otherwise."""
    reason: str | None
    cost: Json = field(default_factory=dict)


class Charge(NamedTuple):
    """The cost of an experiment, a call or a whole investigation."""

    experiments: int = 0
    forwards: int = 0
    """Prompts that were run through the subject, however many to a batch."""
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    minutes: float = 0.0


def extend_chain(connection: sqlite3.Connection, id: str, experiment: Experiment) -> None:
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


def find_broken_link(id: str, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The experiment and hypothesis at which the chain breaks, None where it holds; `rows` in order."""
    previous = _genesis(id)
    for row in rows:
        if row["previous"] != previous or row["hash"] != _link(previous, row):
            return f"{row['experiment']} {row['hypothesis']}"
        previous = row["hash"]
    return None


def as_json(value: object) -> str:
    """A value as JSON, always in the same form."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _genesis(id: str) -> str:
    return hashlib.sha256(f"investigation {id}".encode()).hexdigest()


def _link(previous: str, row: Mapping[str, Any]) -> str:
    content = [previous, row["experiment"], row["hypothesis"], row["expected"], row["created"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
