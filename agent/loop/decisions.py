"""Asks policies what to do next, and carries their decisions out or rejects them.

Policies are asked here and nowhere else. A decision is kept by its step before anything follows from it, so that a
node that is run again decides the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from ...data.store.journal_values import Charge, Experiment
from ...rules.language import Rule
from .budget import RESERVE
from .build_view import view_of
from .closing import last_calls
from .graph import State, stopped
from .hypotheses import LIVE, NULLS, Action, Call, Concede, Hypothesis, Propose, Readable, Submit, UseTools
from .planning import Plan, Planner
from .policy import NoActionError, OutOfBudgetError
from .rejections import Rejection
from .run import InvestigationRun
from .view import Phase, Refused, View

MISSES = 3
"""Decisions in a row that may be invalid before exploring ends."""
IDLE = 3
"""Decisions for each round that may be run, so that one who only proposes comes to an end."""
CHALLENGES, TURNS = 2, 2
"""How often a leader is challenged, and how many plans each challenger may run."""
ACTION: TypeAdapter[Action] = TypeAdapter(Action)


class Decider:
    """The nodes that ask a policy."""

    def __init__(self, run: InvestigationRun) -> None:
        self._run = run
        self._planned: dict[int, list[Experiment]] = {}

    def propose(self, state: State) -> Mapping[str, Any]:
        """Puts up the first rivals: the policy's, and the two that are always there. Surveys may be run once before."""
        run = self._run
        nulls = [hypothesis.model_dump(mode="json", exclude_defaults=True) for hypothesis in run.lab.nulls()]
        self._put_up(-1, nulls, origin="code")
        if label := label_of(run.baseline()):
            self._put_up(-2, [label.model_dump(mode="json", exclude_defaults=True)], origin="label")
        action = self._decide(state, "propose", ("use_tools", "propose") if state["round"] == 0 else ("propose",))
        if isinstance(action, Propose):
            return self._propose_and_use(state, action)
        if isinstance(action, UseTools):
            return self._use(state, action, again="propose")
        missed = action if isinstance(action, Rejection) else Rejection("wanted hypotheses", "not_open")
        return self._reject(state, [(None, missed)], again="propose")

    def plan(self, state: State) -> Mapping[str, Any]:
        """Asks what to do next, and makes experiments of it."""
        run, challenging = self._run, state["role"] == "challenger"
        if kind := run.exhausted():
            return stopped("budget", f"budget: {kind}")
        if state["round"] >= run.settings.rounds or state["step"] >= IDLE * run.settings.rounds:
            return stopped("rounds", f"{state['round']} rounds were run in {state['step']} decisions")
        open_now = ("use_tools", "concede") if challenging else ("use_tools", "propose", "submit")
        action = self._decide(state, "challenge" if challenging else "plan", open_now)
        step = {"step": state["step"] + 1, "misses": 0, "rejected": None}
        if isinstance(action, Propose):
            return self._propose_and_use(state, action)
        if isinstance(action, Submit):
            if state["challenges"] >= CHALLENGES:
                return {**step, **stopped("submitted", f"submitted: {action.reason}")}
            return {**step, "next": "challenge"}
        if isinstance(action, Concede):
            return {**step, **self._after_concession(state, action)}
        if isinstance(action, UseTools):
            return self._use(state, action, again="plan")
        return self._reject(state, [(None, action)], again="plan")

    def close(self, state: State) -> Mapping[str, Any]:
        """Runs what is missing at the end of exploring (closing.py), once, as far as the reserve allows."""
        run, spent = self._run, self._run.journal.spent(self._run.id)
        left = run.limits.left(spent, share=RESERVE).get("experiments", float("inf"))
        if state["role"] == "code" or run.lab.kind != "feature" or run.exhausted(share=RESERVE):
            return {"next": "freeze"}
        run.catch_up()
        calls = [call for call in last_calls(run.rival_state(), most=left) if call.tool in run.tools]
        if not calls or state["stop_code"] == "failures":
            return {"next": "freeze"}
        action = UseTools(calls=tuple(calls))
        body = {**action.model_dump(mode="json", exclude_defaults=True), "action": action.action}
        run.journal.decide(run.id, state["step"], "code", {"action": body})
        run.event("decided", {"step": state["step"], "role": "code", "action": body}, key=f"decided:{state['step']}")
        update = self._use(State({**state, "role": "code"}), action, again="freeze")
        after = "preregister" if update["next"] == "preregister" else "freeze"
        return {**update, "role": "code", "next": after, "stop": state["stop"], "stop_code": state["stop_code"]}

    def _propose_and_use(self, state: State, action: Propose) -> Mapping[str, Any]:
        """Puts hypotheses up, then plans the calls beside them."""
        self._propose(state["step"], action, origin="proposer")
        if action.calls:
            return self._use(state, action, again="plan")
        return {**self._carried(state, _of_faults(action)), "next": "plan"}

    def _use(self, state: State, action: UseTools | Propose, *, again: str) -> Mapping[str, Any]:
        """Plans what can be run of an action's calls; refused is one of which nothing is done."""
        plan = self._plan(state, action)
        refused = [*_of_faults(action), *plan.refused]
        if not plan.experiments:
            if isinstance(action, Propose):
                return {**self._carried(state, refused), "next": again}
            return self._reject(state, refused, again=again)
        self._planned[state["step"]] = plan.experiments
        return {**self._carried(state, refused), "next": "preregister"}

    def _carried(self, state: State, refused: Sequence[tuple[Call | None, Rejection]]) -> dict[str, Any]:
        """Writes down which parts of a decision are not carried out, and goes on with the others."""
        rejected = self._write_rejections(state, refused, partial=True)
        return {"step": state["step"] + 1, "misses": 0, "rejected": rejected or None}

    def _write_rejections(
        self, state: State, refused: Sequence[tuple[Call | None, Rejection]], *, partial: bool
    ) -> str:
        """The reasons in one line."""
        step = state["step"]
        for number, (call, rejection) in enumerate(refused):
            told: dict[str, Any] = {"step": step, **rejection.to_json()}
            if partial:
                told["partial"] = True
            if call is not None:
                told["call"] = call.model_dump(mode="json", exclude_defaults=True)
            self._run.event("rejected", told, key=f"rejected:{step}" + f":{number}" * (number > 0))
        return "; ".join(rejection.reason for _, rejection in refused)

    def _after_concession(self, state: State, action: Concede) -> Mapping[str, Any]:
        """Ends exploring where a challenger found nothing, unless the evidence is not enough for a verdict."""
        run, outcome = self._run, self._run.outcome()
        again = outcome.answer == "open" and state["challenges"] + 1 < CHALLENGES
        words = f"the challenger conceded: {action.reason}" + f"; but {outcome.reason}" * again
        run.event("challenged", {"verdict": words}, key=f"challenge:{state['challenges']}")
        if again:
            return {"next": "plan", "role": "proposer", "challenges": state["challenges"] + 1}
        return stopped("conceded", "the challenger conceded")

    def _decide(self, state: State, phase: Phase, actions: Sequence[str]) -> Action | Rejection:
        """The action of this step, or why there is none; what was decided before stands."""
        run, step = self._run, state["step"]
        stored = run.journal.decision(run.id, step)
        if stored is None:
            try:
                tools = [tool for tool in run.tools.values() if tool.survey or phase != "propose"]
                action: Action | None = run.policy.decide(self._view(state, phase), actions, tools)
                decided: dict[str, Any] = {"action": action.model_dump(mode="json", exclude_defaults=True)}
                decided["action"]["action"] = action.action
            except NoActionError as error:
                decided = {"none": str(error), "repairs": error.repairs}
            except OutOfBudgetError as error:
                decided = {"none": str(error), "spent": True}
            for reply in run.policy.asked:
                tokens = reply.input_tokens + reply.output_tokens
                run.journal.charge(run.id, reply.key, "call", Charge(calls=1, tokens=tokens, usd=run.price(reply)))
            run.journal.decide(run.id, step, state["role"], decided)
            stored = run.journal.decision(run.id, step) or decided
        run.event(
            "decided",
            {"step": step, "role": state["role"], **{k: v for k, v in stored.items() if k != "role"}},
            key=f"decided:{step}",
        )
        if "none" in stored:
            return Rejection(str(stored["none"]), "no_action")
        action = ACTION.validate_python(stored["action"])
        if action.action not in actions:
            return Rejection(f"{action.action} is not open now; open are {', '.join(actions)}", "not_open")
        if phase == "propose" and isinstance(action, UseTools):
            surveys = {name for name, tool in run.tools.items() if tool.survey}
            experiments = (call.tool for call in action.calls if call.tool not in surveys)
            reasons = (f"{tool} is no survey; experiments need rivals, so propose first" for tool in experiments)
            return next((Rejection(reason, "not_open") for reason in reasons), action)
        if isinstance(action, Propose):
            faults = (run.lab.fault(hypothesis) for hypothesis in action.hypotheses)
            return next((Rejection(fault, "bad_hypothesis") for fault in faults if fault), action)
        return action

    def _view(self, state: State, phase: Phase) -> View:
        run = self._run
        self._run.catch_up()
        rivals, experiments, observations = run.rival_state()
        spent = run.journal.spent(run.id)
        return view_of(
            run.lab,
            rivals,
            experiments,
            observations,
            phase=phase,
            round=state["round"],
            name=f"the {run.lab.kind}" if run.settings.hide_names else run.lab.target,
            baseline=run.baseline(),
            spent=spent._asdict(),
            left=run.limits.left(spent),
            rejected=state["rejected"],
            step=state["step"],
            refused=self._refused(state["role"]),
        )

    def _refused(self, role: str) -> list[Refused]:
        """The decisions of a role that were not accepted."""
        run = self._run
        decisions = {decision["step"]: decision for decision in run.journal.decisions(run.id)}
        return [
            Refused(
                event["step"],
                {"calls": [event["call"]]} if "call" in event else decisions[event["step"]].get("action"),
                Rejection.from_json(event),
                partial=event.get("partial", False),
            )
            for event in run.journal.events(run.id, kind="rejected")
            if decisions[event["step"]]["role"] == role
        ]

    def _reject(
        self, state: State, refused: Sequence[tuple[Call | None, Rejection]], *, again: str
    ) -> Mapping[str, Any]:
        """Writes down why nothing of a decision is carried out, and has the policy asked again, a few times."""
        run, misses = self._run, state["misses"] + 1
        reason = self._write_rejections(state, refused, partial=False)
        update = {"step": state["step"] + 1, "misses": misses, "rejected": reason}
        if misses < MISSES and run.exhausted() is None:
            return {**update, "next": again}
        return {**update, **stopped("misses", f"{misses} decisions in a row were not valid; the last: {reason}")}

    def _propose(self, step: int, action: Propose, *, origin: str) -> None:
        there = [*self._run.hypotheses().values()]
        kinds = {hypothesis.kind for hypothesis in there}
        new = [h for h in action.hypotheses if h not in there and not (h.kind in NULLS and h.kind in kinds)]
        self._put_up(step, [h.model_dump(mode="json", exclude_defaults=True) for h in new], origin=origin)

    def _put_up(self, step: int, bodies: Sequence[Mapping[str, Any]], *, origin: str) -> None:
        names = self._run.journal.add_hypotheses(self._run.id, step, bodies, origin=origin)
        self._run.event("proposed", {"names": names, "origin": origin}, key=f"proposed:{step}")

    def planned(self, state: State) -> list[Experiment]:
        """The experiments of the last decision; made again after a kill, which gives the same ones."""
        run, step = self._run, state["step"] - 1
        if step in self._planned:
            return self._planned.pop(step)
        if any(e.round > state["round"] for e in run.rival_state().experiments):
            return []
        action = ACTION.validate_python((run.journal.decision(run.id, step) or {})["action"])
        return self._plan(state, action).experiments if isinstance(action, UseTools | Propose) else []

    def _plan(self, state: State, action: UseTools | Propose) -> Plan:
        run = self._run
        self._run.catch_up()
        rivals, _, _ = run.rival_state()
        live = [rival for rival in rivals if rival.status == "live"]
        nulls = [rival for rival in live if rival.hypothesis.kind in NULLS]
        claims = [rival for rival in live if rival not in nulls][: LIVE - len(nulls)]
        hypotheses = {rival.name: rival.hypothesis for rival in live if rival in nulls or rival in claims}
        planner = Planner(run, hypotheses, role=state["role"], round=state["round"] + 1)
        with run.charged(f"design:{state['step']}", "design"):
            return planner.plan(action.calls)


def label_of(baseline: Mapping[str, Any] | None) -> Hypothesis | None:
    """The label that there was as a hypothesis; None where it has no rule, from which to predict."""
    if baseline is None or not baseline.get("text") or not baseline.get("rule"):
        return None
    return Hypothesis(text=baseline["text"], rule=Rule.parse(baseline["rule"]))


def _of_faults(action: Readable) -> list[tuple[Call | None, Rejection]]:
    """What was called beside an action and could not be read."""
    return [(None, Rejection(fault.reason, "bad_call", tool=fault.call)) for fault in action.faults]
