"""A policy that gives the decisions of an investigation again, one by one, by the number of the step.

Whoever decided then is not asked: with the same subject the same experiments follow, and code comes to the same
verdicts. A decision that does not fit what is open now means that something else has changed, and is an error.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from ...llm.types import Reply
from ...subject.errors import NeuronautError
from ..loop.experiments import AnyTool
from ..loop.hypotheses import Action
from ..loop.policy import NoActionError, OutOfBudgetError
from ..loop.view import View

_ACTION: TypeAdapter[Action] = TypeAdapter(Action)


class ReplayPolicy:
    """Follows a transcript."""

    name = "replay"

    def __init__(self, decisions: Sequence[Mapping[str, Any]]) -> None:
        """`decisions` as the journal gives them: each with `step`, `role`, and its `action` or why there was `none`."""
        self._decisions = {int(decision["step"]): decision for decision in decisions}

    @property
    def settings(self) -> Mapping[str, object]:
        """A hash of all decisions."""
        transcript = json.dumps([self._decisions[step] for step in sorted(self._decisions)], sort_keys=True)
        return {"decisions": hashlib.sha256(transcript.encode()).hexdigest()}

    @property
    def asked(self) -> Sequence[Reply]:
        """Nobody is asked."""
        return ()

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:
        """Gives the transcript's decision; raises NeuronautError where the transcript ends or does not fit."""
        del tools
        decision, role = self._decisions.get(view.step), "challenger" if view.phase == "challenge" else "proposer"
        if decision is None:
            raise NeuronautError(
                f"the transcript has no decision {view.step}, only {len(self._decisions)} in all; replay a finished one"
            )
        if decision["role"] != role:
            raise NeuronautError(
                f"decision {view.step} of the transcript is the {decision['role']}'s, but the {role} is asked now; "
                "replay it with the subject, the data and the settings that it was made with"
            )
        if "action" not in decision:
            if decision.get("spent"):
                raise OutOfBudgetError(str(decision["none"]))
            raise NoActionError(str(decision["none"]), repairs=int(decision.get("repairs", 0)))
        action = _ACTION.validate_python(decision["action"])
        if action.action not in actions:
            raise NeuronautError(
                f"decision {view.step} of the transcript is {action.action}, but open now are {', '.join(actions)}; "
                "replay it with the subject, the data and the settings that it was made with"
            )
        return action
