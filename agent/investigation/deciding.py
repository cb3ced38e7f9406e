"""What is decided, and what becomes of a decision.

Policies are asked here and nowhere else. A decision is kept by its step before anything follows from it, so that a
node that is run again decides the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from ...data.journal_values import Charge, Experiment
from ..policies.policy import NoActionError, OutOfBudgetError
from .actions import LIVE, Action, Concede, Propose, Submit, UseTools
from .graph import State
from .hypotheses import NULLS
from .planning import Planner, RejectedError
from .view import Phase, Refused, View
from .viewing import view_of
from .work import Work

MISSES = 3
"""Decisions in a row that may be invalid before exploring ends."""
IDLE = 3
"""Decisions for each round that may be run, so that one who only proposes comes to an end."""
CHALLENGES, TURNS = 2, 2
"""How often a leader is challenged, and how many plans each challenger may run."""
ACTION: TypeAdapter[Action] = TypeAdapter(Action)


class Decider:
    """The nodes that ask a policy."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._planned: dict[int, list[Experiment]] = {}

    def propose(self, state: State) -> Mapping[str, Any]:
        """The first rivals: the policy's, and the two that are always there. Surveys may be run once before."""
        work = self._work
        nulls = [hypothesis.model_dump(mode="json", exclude_defaults=True) for hypothesis in work.lab.nulls()]
        self._put_up(-1, nulls, origin="code")
        action = self._decide(state, "propose", ("use_tools", "propose") if state["round"] == 0 else ("propose",))
        if isinstance(action, Propose):
            self._propose(state["step"], action, origin="proposer")
            return {"step": state["step"] + 1, "misses": 0, "rejected": None, "next": "plan"}
        if isinstance(action, UseTools):
            try:
                self._planned[state["step"]] = self._experiments(state, action)
            except RejectedError as error:
                return self._missed(state, str(error), again="propose")
            return {"step": state["step"] + 1, "misses": 0, "rejected": None, "next": "preregister"}
        return self._missed(state, f"{action}" if isinstance(action, str) else "wanted hypotheses", again="propose")

    def plan(self, state: State) -> Mapping[str, Any]:
        """Ask what to do next, and make experiments of it."""
        work, challenging = self._work, state["role"] == "challenger"
        if kind := work.exhausted():
            return {"next": "freeze", "stop": f"budget: {kind}"}
        if state["round"] >= work.settings.rounds or state["step"] >= IDLE * work.settings.rounds:
            return {"next": "freeze", "stop": f"{state['round']} rounds were run in {state['step']} decisions"}
        open_now = ("use_tools", "concede") if challenging else ("use_tools", "propose", "submit")
        action = self._decide(state, "challenge" if challenging else "plan", open_now)
        step = {"step": state["step"] + 1, "misses": 0, "rejected": None}
        if isinstance(action, Propose):
            self._propose(state["step"], action, origin="proposer")
            return {**step, "next": "plan"}
        if isinstance(action, Submit):
            if state["challenges"] >= CHALLENGES:
                return {**step, "next": "freeze", "stop": f"submitted: {action.reason}"}
            return {**step, "next": "challenge"}
        if isinstance(action, Concede):
            return {**step, **self._conceded(state, action)}
        if isinstance(action, UseTools):
            try:
                self._planned[state["step"]] = self._experiments(state, action)
            except RejectedError as error:
                return self._missed(state, str(error), again="plan")
            return {**step, "next": "preregister"}
        return self._missed(state, action, again="plan")

    def _conceded(self, state: State, action: Concede) -> Mapping[str, Any]:
        """What follows where a challenger found nothing: the end, unless the evidence is not enough for a verdict."""
        work, found = self._work, self._work.verdict()
        again = found.answer == "open" and state["challenges"] + 1 < CHALLENGES
        words = f"the challenger conceded: {action.reason}" + f"; but {found.reason}" * again
        work.event("challenged", {"verdict": words}, key=f"challenge:{state['challenges']}")
        if again:
            return {"next": "plan", "role": "proposer", "challenges": state["challenges"] + 1}
        return {"next": "freeze", "stop": "the challenger conceded"}

    def _decide(self, state: State, phase: Phase, actions: Sequence[str]) -> Action | str:
        """The action of this step, or why there is none. What was decided before stands."""
        work, step = self._work, state["step"]
        stored = work.journal.decision(work.id, step)
        if stored is None:
            try:
                tools = [tool for tool in work.tools.values() if tool.survey or phase != "propose"]
                action: Action | None = work.policy.decide(self._view(state, phase), actions, tools)
                decided: dict[str, Any] = {"action": action.model_dump(mode="json", exclude_defaults=True)}
                decided["action"]["action"] = action.action
            except NoActionError as error:
                decided = {"none": str(error), "repairs": error.repairs}
            except OutOfBudgetError as error:
                decided = {"none": str(error), "spent": True}
            for reply in work.policy.asked:
                tokens = reply.input_tokens + reply.output_tokens
                work.journal.charge(work.id, reply.key, "call", Charge(calls=1, tokens=tokens, usd=work.price(reply)))
            work.journal.decide(work.id, step, state["role"], decided)
            stored = work.journal.decision(work.id, step) or decided
        work.event("decided", {"step": step, "role": state["role"], **{k: v for k, v in stored.items() if k != "role"}},
                   key=f"decided:{step}")  # fmt: skip
        if "none" in stored:
            return str(stored["none"])
        action = ACTION.validate_python(stored["action"])
        if action.action not in actions:
            return f"{action.action} is not open now; open are {', '.join(actions)}"
        if phase == "propose" and isinstance(action, UseTools):
            surveys = {name for name, tool in work.tools.items() if tool.survey}
            others = (call.tool for call in action.calls if call.tool not in surveys)
            return next((f"{tool} is no survey; experiments need rivals, so propose first" for tool in others), action)
        if isinstance(action, Propose):
            return next((fault for one in action.hypotheses if (fault := work.lab.fault(one))), action)
        return action

    def _view(self, state: State, phase: Phase) -> View:
        work = self._work
        self._work.catch_up()
        rivals, experiments, observations = work.standing()
        spent = work.journal.spent(work.id)
        return view_of(
            work.lab, rivals, experiments, observations, phase=phase, round=state["round"],
            name=f"the {work.lab.kind}" if work.settings.hide_names else work.lab.target,
            baseline=work.ending.baseline(work), spent=spent._asdict(), left=work.limits.left(spent),
            rejected=state["rejected"], step=state["step"], refused=self._refused(state["role"]),
        )  # fmt: skip

    def _refused(self, role: str) -> list[Refused]:
        """The decisions of a role that were not accepted."""
        work = self._work
        taken = {decision["step"]: decision for decision in work.journal.decisions(work.id)}
        rejected = work.journal.events(work.id, kind="rejected")
        return [
            Refused(event["step"], taken[event["step"]].get("action"), event["reason"])
            for event in rejected
            if taken[event["step"]]["role"] == role
        ]

    def _missed(self, state: State, reason: str, *, again: str) -> Mapping[str, Any]:
        """A decision that is not carried out: tell why, and ask again, a few times."""
        work, misses = self._work, state["misses"] + 1
        work.event("rejected", {"step": state["step"], "reason": reason}, key=f"rejected:{state['step']}")
        update = {"step": state["step"] + 1, "misses": misses, "rejected": reason}
        if misses < MISSES and work.exhausted() is None:
            return {**update, "next": again}
        return {**update, "next": "freeze", "stop": f"{misses} decisions in a row were not valid; the last: {reason}"}

    def _propose(self, step: int, action: Propose, *, origin: str) -> None:
        kinds = {hypothesis.kind for hypothesis in self._work.hypotheses().values()}
        wanted = [h for h in action.hypotheses if not (h.kind in NULLS and h.kind in kinds)]
        self._put_up(step, [h.model_dump(mode="json", exclude_defaults=True) for h in wanted], origin=origin)

    def _put_up(self, step: int, bodies: Sequence[Mapping[str, Any]], *, origin: str) -> None:
        names = self._work.journal.add_hypotheses(self._work.id, step, bodies, origin=origin)
        self._work.event("proposed", {"names": names, "origin": origin}, key=f"proposed:{step}")

    def planned(self, state: State) -> list[Experiment]:
        """The experiments of the last decision; made again after a kill, which gives the same ones."""
        work, step = self._work, state["step"] - 1
        if step in self._planned:
            return self._planned.pop(step)
        if any(e.round > state["round"] for e in work.standing().experiments):
            return []
        action = ACTION.validate_python((work.journal.decision(work.id, step) or {})["action"])
        return self._experiments(state, action) if isinstance(action, UseTools) else []

    def _experiments(self, state: State, action: UseTools) -> list[Experiment]:
        work = self._work
        self._work.catch_up()
        rivals, experiments, observations = work.standing()
        live = [rival for rival in rivals if rival.status == "live"]
        nulls = [rival for rival in live if rival.hypothesis.kind in NULLS]
        kept = [rival for rival in live if rival not in nulls][: LIVE - len(nulls)]
        named = {rival.name: rival.hypothesis for rival in live if rival in nulls or rival in kept}
        planner = Planner(
            work.lab, work.tools, named, experiments, observations, role=state["role"], round=state["round"] + 1,
            revision=work.revision,
        )  # fmt: skip
        with work.charged(f"design:{state['step']}", "design"):
            return planner.plan(action.calls)
