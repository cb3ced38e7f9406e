"""Hypotheses, a claim in words with an executable twin that predicts; and the four actions of policies, as data.

For a feature the twin is a rule of token conditions, and claims about what it writes and reads; for a behaviour
it is the nodes that bring it about. Two rivals are always there: `token_identity` (nothing but the current token
matters) and `no_pattern` (nothing in particular does: whatever is asked, the base rate is all that can be said).
Everything that an investigation does beside the four actions is code.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ...rules.language import Rule
from .levels import Level

Kind = Literal["rule", "described", "circuit", "token_identity", "no_pattern"]
NULLS: tuple[Kind, ...] = ("token_identity", "no_pattern")
"""Kinds that any other hypothesis must beat."""

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1500)]


class StrictModel(BaseModel, frozen=True):
    """The base of what an investigation takes from outside: frozen, and without fields that it does not know."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Hypothesis(StrictModel, frozen=True):
    """One of several rivals."""

    text: Words
    """What is claimed, in a sentence or two that a reader understands without anything else."""
    kind: Kind = "rule"
    """rule: has a rule; described: words only, so that whoever plans an experiment says what it expects; circuit:
    has nodes."""
    rule: Rule | None = None
    """Predicts the activation of a feature at every token, in the source's units."""
    nodes: dict[str, float] = Field(default_factory=dict, max_length=200)
    """Of a behaviour: how much of it goes when this node alone is cut (noising), as a share; 0.5 if not known. Of
    several nodes that are cut together, `head.0:0 + head.0:1`: what goes beyond their own shares (backups)."""
    promotes: tuple[str, ...] = Field(default=(), max_length=20)
    """Tokens whose logits the feature raises."""
    suppresses: tuple[str, ...] = Field(default=(), max_length=20)
    reads: tuple[str, ...] = Field(default=(), max_length=20)
    """Upstream components that the feature's activation depends on, such as `head.0:1` or `mlp_out.0`."""
    parent: str | None = None
    """Name of the hypothesis that this one revises."""


LIVE = 8
"""Hypotheses that are rivals at one time."""
CALLS = 8
"""Tools that one decision uses at most."""


class Call(StrictModel, frozen=True):
    """One use of a tool."""

    tool: str
    args: dict[str, Any] = Field(default_factory=dict)
    purpose: Words = "to tell the rivals apart"
    """Why, in a few words, for the report."""
    expects: dict[str, Level] = Field(default_factory=dict)
    """By hypothesis name, the level that those without an executable twin expect on every item."""


class Fault(StrictModel, frozen=True):
    """A call of a reply that could not be read."""

    call: str
    """The tool, or the action, that was called."""
    reason: str


class Readable(StrictModel, frozen=True):
    """An action that may be the readable part of a reply."""

    faults: tuple[Fault, ...] = ()
    """What was called beside it and is not done."""


class Propose(Readable, frozen=True):
    """Put rival hypotheses up, and run experiments on them at once."""

    action: Literal["propose"] = "propose"
    hypotheses: tuple[Hypothesis, ...] = Field(min_length=1, max_length=LIVE)
    calls: tuple[Call, ...] = Field(default=(), max_length=CALLS)
    """What is run once they are up."""


class UseTools(Readable, frozen=True):
    """Run experiments, whose outcome every hypothesis has to predict, or look something up."""

    action: Literal["use_tools"] = "use_tools"
    calls: tuple[Call, ...] = Field(min_length=1, max_length=CALLS)


class Submit(StrictModel, frozen=True):
    """End the search: name the hypothesis that stands, or say that none does."""

    action: Literal["submit"] = "submit"
    answer: str
    """Name of a hypothesis, or "open" where the evidence does not decide, or "no_explanation"."""
    reason: Words = "nothing more is worth an experiment"


class Concede(StrictModel, frozen=True):
    """The challenger's end: nothing more to try against the leader."""

    action: Literal["concede"] = "concede"
    reason: Words = "no experiment that could break it is left"


Action = Annotated[Propose | UseTools | Submit | Concede, Field(discriminator="action")]
