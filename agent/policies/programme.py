"""The core of the scripted policies: a fixed programme, which asks nobody and decides from the view alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ...llm.types import Reply
from ..loop.experiments import AnyTool
from ..loop.hypotheses import Action, Call, Concede, Hypothesis, Propose, Submit
from ..loop.view import View
from .progress import PolicyState


class Programme(ABC):
    """Investigates a target by a fixed programme."""

    name = "scripted"
    settings: Mapping[str, object]
    asked: Sequence[Reply] = ()
    abstains: ClassVar[str]
    """Why it submits that there is no explanation."""
    ends: ClassVar[str]
    """Why it submits the leader."""

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:  # noqa: ARG002
        """The next step of the programme."""
        state = PolicyState(view, frozenset(tool.name for tool in tools))
        if view.phase == "propose":
            return Propose(hypotheses=tuple(self.first_rivals(view)))
        if view.phase == "challenge":
            return self.challenge(state) or Concede()
        return self.next_step(state) or self._submit(view)

    @abstractmethod
    def first_rivals(self, view: View) -> Iterable[Hypothesis]:
        """What is put up before anything is tried."""

    @abstractmethod
    def challenge(self, state: PolicyState) -> Action | None:
        """What a challenger tries; None where nothing is left."""

    @abstractmethod
    def next_step(self, state: PolicyState) -> Action | None:
        """What the proposer does next; None at the end of the programme."""

    def _submit(self, view: View) -> Submit:
        leader = view.leader
        if leader is None or leader.hypothesis.kind == "no_pattern":
            return Submit(answer="no_explanation", reason=self.abstains)
        return Submit(answer=leader.name, reason=self.ends)


def make_call(tool: str, purpose: str, **args: Any) -> Call:
    """A call of a tool with these arguments."""
    return Call(tool=tool, args=args, purpose=purpose)
