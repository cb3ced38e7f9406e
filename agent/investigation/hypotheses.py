"""Hypotheses: a claim in words with an executable twin, so that code can say what it predicts.

For a feature the twin is a rule of token conditions, and claims about what it writes and reads; for a behaviour
it is the nodes that bring it about. Two rivals are always there: `token_identity` (nothing but the current token
matters) and `no_pattern` (nothing in particular does: whatever is asked, the base rate is all that can be said).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ...explainers.rules import Rule

Kind = Literal["rule", "described", "circuit", "token_identity", "no_pattern"]
NULLS: tuple[Kind, ...] = ("token_identity", "no_pattern")
"""Kinds that any other hypothesis must beat."""

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1500)]


class Said(BaseModel, frozen=True):
    """What an investigation takes from outside: frozen, and nothing that is not known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Hypothesis(Said, frozen=True):
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
