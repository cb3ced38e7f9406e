"""Arguments that causal tools share."""

from pydantic import Field

from .places import Carried, Drawn


class ActiveArgs(Carried, frozen=True):
    """Of tools that look at places where the feature is active."""

    count: int = Field(6, ge=2, le=32, description="how many active places to use, the strongest first")


class TokenArgs(Drawn, frozen=True):
    """Of tools whose items are tokens."""

    count: int = Field(6, ge=2, le=32, description="how many places to use; active ones are the strongest first")
    tokens: tuple[str, ...] = Field(
        (), max_length=20,
        description="tokens to ask about beside those that hypotheses claim, as the examples show them (' the')",
    )  # fmt: skip
