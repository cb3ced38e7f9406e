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
class Term:
    """What one experiment added to a rival's log odds, and on which of its items."""

    experiment: str
    against: str
    """The leader of that time, whose forecasts the rival's are weighed against; its own odds stay."""
    items: int
    """New items on which the two forecast differently: no other bears on the odds."""
    hits: int
    """Of these, how many came out at the level that the rival thought likeliest,"""
    expected: float
    """and how many it expected to, as sure as it was;"""
    other_hits: int
    other_expected: float
    """and the same of the other."""
    weight: float
    """Below 1 where so many items of one experiment do not count in full."""
    log_odds: float
    """In nats, with the weight."""


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
    prior: float = 0.0
    """Its log odds when it was put up."""
    terms: tuple[Term, ...] = ()
    """What was added since: `log_odds` is the prior and the sum of these."""
    cause: float | None = None
    """Of a feature: share of items, balanced over those that fired and those that did not, on which it expected that;
    None of a behaviour."""


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
    """A decision that was not carried out, or one call of it."""

    step: int
    action: Mapping[str, Any] | None
    """As plain JSON, of a call with this call alone; None where the policy gave none."""
    rejection: Rejection
    partial: bool = False
    """Whether the rest of the decision was carried out."""


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
    """Why the last decision, or a part of it, was not carried out."""
    step: int = 0
    """Decisions that were taken before this one."""
    refused: tuple[Refused, ...] = ()
    """All that was not carried out, in order. A challenger sees its own."""

    @property
    def last_rejection(self) -> Rejection | None:
        """Why nothing of the decision right before this one was carried out; None where something was."""
        last = (refused for refused in self.refused[-1:] if refused.step == self.step - 1 and not refused.partial)
        return next((refused.rejection for refused in last), None)

    @property
    def leader(self) -> Rival | None:
        """The live rival with the highest odds."""
        return next((rival for rival in self.rivals if rival.status == "live"), None)
