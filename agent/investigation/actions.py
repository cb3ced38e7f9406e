"""What a policy may do: four actions, as data. Everything else an investigation does is code."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .hypotheses import Hypothesis, Said, Words
from .levels import Level

LIVE = 8
"""Hypotheses that are rivals at one time."""
CALLS = 8
"""Tools that one decision uses at most."""


class Call(Said, frozen=True):
    """One use of a tool."""

    tool: str
    args: dict[str, Any] = Field(default_factory=dict)
    purpose: Words = "to tell the rivals apart"
    """Why, in a few words, for the report."""
    expects: dict[str, Level] = Field(default_factory=dict)
    """By hypothesis name, the level that those without an executable twin expect on every item."""


class Propose(Said, frozen=True):
    """Put rival hypotheses up."""

    action: Literal["propose"] = "propose"
    hypotheses: tuple[Hypothesis, ...] = Field(min_length=1, max_length=LIVE)


class UseTools(Said, frozen=True):
    """Run experiments, whose outcome every hypothesis has to predict, or look something up."""

    action: Literal["use_tools"] = "use_tools"
    calls: tuple[Call, ...] = Field(min_length=1, max_length=CALLS)


class Submit(Said, frozen=True):
    """End the search: name the hypothesis that stands, or say that none does."""

    action: Literal["submit"] = "submit"
    answer: str
    """Name of a hypothesis, or "open" where the evidence does not decide, or "no_explanation"."""
    reason: Words = "nothing more is worth an experiment"


class Concede(Said, frozen=True):
    """The challenger's end: nothing more to try against the leader."""

    action: Literal["concede"] = "concede"
    reason: Words = "no experiment that could break it is left"


Action = Annotated[Propose | UseTools | Submit | Concede, Field(discriminator="action")]
