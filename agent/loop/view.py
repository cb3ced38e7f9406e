"""The view of a policy: everything that the investigation knows, and nothing through which more could be had.

A view is made of values. It holds no subject, no store and no holdout text, so a policy can only choose among
actions. It is cut to a bounded size by whoever renders it, not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...data.records import Example, Statistics
from .experiments import Design, Measured
from .hypotheses import Hypothesis
from .levels import asks_for_silence
from .rejections import Rejection

Phase = Literal["propose", "plan", "challenge"]
Status = Literal["live", "refuted", "retired"]


@dataclass(frozen=True, slots=True)
class Rival:
    """A hypothesis and its standing. Verdicts are code's alone."""

    name: str
    """H1, H2, ..."""
    hypothesis: Hypothesis
    status: Status
    log_odds: float
    """Log of its posterior odds, in nats, up to a constant that is common to all rivals."""
    share: float
    """Its posterior share among the live rivals."""
    resolved: int
    """Experiments that it made a prediction for and that were measured."""
    silences: int
    """Of these, how many it predicted silence for on at least half of the items."""
    hits: float | None
    """Share of items, balanced over levels, on which the level it thought likeliest was seen."""
    brier: float | None


@dataclass(frozen=True, slots=True)
class Done:
    """An experiment or survey that was run."""

    name: str
    """o1, o2, ...: what a report cites."""
    tool: str
    args: Mapping[str, Any]
    purpose: str
    survey: bool
    design: Design
    measured: Measured | None
    """None where it failed."""
    reason: str | None
    """Why it failed."""
    expected: Mapping[str, tuple[float | None, ...]]
    """By hypothesis name, what each item was expected to be; empty for surveys."""
    role: str = "proposer"
    """Whose idea it was: the proposer's or a challenger's."""
    round: int = 0
    """Of the plan that it was part of."""

    @property
    def of_silence(self) -> bool:
        """Whether the leader of its time expected silence."""
        return asks_for_silence(self.expected.values())


@dataclass(frozen=True, slots=True)
class Refused:
    """A decision that was not accepted."""

    step: int
    action: Mapping[str, Any] | None
    """As plain JSON; None where the policy gave none."""
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class View:
    """What is known at one step."""

    phase: Phase
    kind: Literal["feature", "behaviour"]
    target: str
    """What the target is called for this policy; hidden names are "the feature"."""
    round: int
    seed: int
    statistics: Statistics | None
    """Of a feature."""
    scale: float
    """What 1 is in experiments' values, in the source's units (features) or in those of the metric (behaviours)."""
    examples: tuple[Example, ...]
    """Training examples of a feature, the strongest first: strong and weak ones, near misses and silent ones."""
    about: Mapping[str, Any]
    """What else is known from the start, as plain JSON: the baseline explanation and its score on `select`; of a
    behaviour the metric, both sides' values, sample prompts and the nodes."""
    rivals: tuple[Rival, ...]
    """All that were ever proposed, the leader first. A challenger sees the leader alone, without its odds."""
    done: tuple[Done, ...]
    """All that was run, in order. A challenger sees what it ran itself."""
    spent: Mapping[str, float]
    left: Mapping[str, float]
    """By kind of budget that has a limit: what may still be used before the reserve."""
    rejected: str | None = None
    """Why the last decision was not accepted."""
    step: int = 0
    """Decisions that were taken before this one."""
    refused: tuple[Refused, ...] = ()
    """All decisions that were not accepted, in order. A challenger sees its own."""

    @property
    def last_rejection(self) -> Rejection | None:
        """Why the decision right before this one was not accepted; None where it was."""
        return next((refused.rejection for refused in self.refused[-1:] if refused.step == self.step - 1), None)

    @property
    def leader(self) -> Rival | None:
        """The live rival with the highest odds."""
        return next((rival for rival in self.rivals if rival.status == "live"), None)
