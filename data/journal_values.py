"""What an investigation writes into its journal, as values that know nothing of storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
End = Literal["supported", "open", "no_explanation", "budget", "error"]


@dataclass(frozen=True, slots=True)
class Opened:
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
