"""The protocol of policies, which decide what is done next from what is known, and never judge."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ...llm.types import Reply
from .experiments import AnyTool
from .hypotheses import Action
from .view import View


class NoActionError(Exception):
    """A policy had no valid action to give, even after its repair; says why in one line.

    The turn is counted and skipped.
    """

    def __init__(self, reason: str, *, repairs: int = 0) -> None:
        super().__init__(reason)
        self.repairs = repairs


class OutOfBudgetError(Exception):
    """The policy may ask no more: its budget of dollars, tokens or calls is spent."""


class Policy(Protocol):
    """Decides; for the same view it decides the same."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the view, determines its decisions."""
        ...

    @property
    def asked(self) -> Sequence[Reply]:
        """What a language model answered for the last decision, with the keys that the log knows.

        Empty where none is asked.
        """
        ...

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:
        """One of the `actions` (propose, use_tools, submit, concede) that are open now, with these tools.

        Raises NoActionError, or OutOfBudgetError.
        """
        ...
