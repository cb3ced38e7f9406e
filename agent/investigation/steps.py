"""What each node of the graph does.

A node reads where the investigation stands from the journal, does one thing, and writes it down under a key that
says what it is, so that a node that is run again after a kill finds it done. Policies are asked in `propose` and
`plan` only; what they decide is kept by its step before anything follows from it.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter

from ...data.journal import Journal
from ...data.journal_values import Charge, Experiment, Observation
from ...subject.errors import NeuronautError
from ..policies.policy import NoActionError, OutOfBudgetError, Policy
from .actions import LIVE, Action, Concede, Propose, Submit, UseTools
from .budget import Limits
from .ending import Ending
from .experiments import Tool
from .graph import Node, State
from .hypotheses import NULLS, Hypothesis
from .judging import Verdict, judge, verdict
from .planning import Planner, RejectedError, design_of
from .view import Phase, Refused, Rival, View
from .viewing import view_of

if TYPE_CHECKING:
    from collections.abc import Generator

MISSES = 3
"""Decisions in a row that may be invalid before exploring ends."""
CHALLENGES, TURNS = 2, 2
"""How often a leader is challenged, and how many plans each challenger may run."""
FAILURES = 6
"""Experiments in a row that may fail before exploring ends."""
_ACTION: TypeAdapter[Action] = TypeAdapter(Action)


@dataclass(frozen=True, slots=True)
class Settings:
    """How long an investigation may go on by itself, beside its budget."""

    rounds: int = 40
    """Plans that are run at most."""
    hide_names: bool = False
    """Whether policies are told the target's name."""


@dataclass(frozen=True)
class Work:
    """One investigation and what it is done with."""

    id: str
    journal: Journal
    lab: Any
    tools: Mapping[str, Tool[Any]]
    policy: Policy
    challenger: Policy
    limits: Limits
    settings: Settings
    ending: Ending
    tell: Callable[[Mapping[str, Any]], None]
    """Hears every event."""
    revision: str
    """Of the subject and the dictionary."""
    price: Callable[[Any], float]
    """Dollars of a reply."""

    # What stands in the journal

    def hypotheses(self) -> dict[str, Hypothesis]:
        """By name, in the order in which they were put up."""
        return {row["name"]: Hypothesis.model_validate(row["body"]) for row in self.journal.hypotheses(self.id)}

    def standing(self) -> tuple[tuple[Rival, ...], list[Experiment], dict[str, Observation]]:
        """How the rivals stand, and on what."""
        experiments, observations = self.journal.experiments(self.id), self.journal.observations(self.id)
        return judge(self.hypotheses(), experiments, observations, kind=self.lab.kind), experiments, observations

    def verdict(self) -> Verdict:
        """What the evidence says so far."""
        return verdict(*self.standing())

    def exhausted(self, share: float | None = None) -> str | None:
        """The kind of budget that is used up."""
        spent = self.journal.spent(self.id)
        return self.limits.exhausted(spent) if share is None else self.limits.exhausted(spent, share=share)

    def event(self, kind: str, payload: Mapping[str, Any], *, key: str) -> None:
        """Write an event down once, and tell it."""
        row = self.journal.event(self.id, kind, payload, key=key)
        if row is not None:
            self.tell({"investigation": self.id, **row})

    @contextmanager
    def charged(self, key: str, kind: str) -> "Generator[None]":
        """Charge the forward passes of the block, once for its key."""
        before = self.lab.meter.rows
        with self.lab.meter.counting(self.lab.subject):
            yield
        self.journal.charge(self.id, key, kind, Charge(forwards=self.lab.meter.rows - before))


class Steps:
    """The nodes of one investigation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._planned: dict[int, list[Experiment]] = {}
        self._taken: set[str] = set()
        """Experiments whose observations the lab knows."""

    def node(self, name: str) -> Node:
        """The function of a node."""
        body = getattr(self, name, None) or partial(self._work.ending.node, name, self._work)

        def run(state: State) -> Mapping[str, Any]:
            began = time.monotonic()
            if name not in ("plan", "preregister", "execute", "judge"):
                self._work.event("phase", {"phase": name}, key=f"phase:{name}:{state['challenges']}")
            update = body(state)
            minutes = Charge(minutes=(time.monotonic() - began) / 60)
            self._work.journal.charge(self._work.id, f"{name}:{uuid.uuid4().hex[:12]}", "minutes", minutes)
            return update

        return run

    # Deciding

    def propose(self, state: State) -> Mapping[str, Any]:
        """The first rivals: the policy's, and the two that are always there."""
        work = self._work
        nulls = [hypothesis.model_dump(mode="json", exclude_defaults=True) for hypothesis in work.lab.nulls()]
        self._put_up(-1, nulls, origin="code")
        action = self._decide(state, "propose", ("propose",))
        if isinstance(action, Propose):
            self._propose(state["step"], action, origin="proposer")
            return {"step": state["step"] + 1, "misses": 0, "rejected": None, "next": "plan"}
        return self._missed(state, f"{action}" if isinstance(action, str) else "wanted hypotheses", again="propose")

    def plan(self, state: State) -> Mapping[str, Any]:
        """Ask what to do next, and make experiments of it."""
        work, challenging = self._work, state["role"] == "challenger"
        if kind := work.exhausted():
            return {"next": "freeze", "stop": f"budget: {kind}"}
        if state["round"] >= work.settings.rounds:
            return {"next": "freeze", "stop": f"{state['round']} rounds were run"}
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
            work.event(
                "challenged",
                {"verdict": f"the challenger conceded: {action.reason}"},
                key=f"challenge:{state['challenges']}",
            )
            return {**step, "next": "freeze", "stop": "the challenger conceded"}
        if isinstance(action, UseTools):
            try:
                self._planned[state["step"]] = self._experiments(state, action)
            except RejectedError as error:
                return self._missed(state, str(error), again="plan")
            return {**step, "next": "preregister"}
        return self._missed(state, action, again="plan")

    def _decide(self, state: State, phase: Phase, actions: Sequence[str]) -> Action | str:
        """The action of this step, or why there is none. What was decided before stands."""
        work, step = self._work, state["step"]
        stored = work.journal.decision(work.id, step)
        if stored is None:
            policy = work.challenger if state["role"] == "challenger" else work.policy
            try:
                action: Action | None = policy.decide(self._view(state, phase), actions, list(work.tools.values()))
                decided: dict[str, Any] = {"action": action.model_dump(mode="json", exclude_defaults=True)}
                decided["action"]["action"] = action.action
            except NoActionError as error:
                decided = {"none": str(error), "repairs": error.repairs}
            except OutOfBudgetError as error:
                decided = {"none": str(error), "spent": True}
            for reply in policy.asked:
                tokens = reply.input_tokens + reply.output_tokens
                work.journal.charge(work.id, reply.key, "call", Charge(calls=1, tokens=tokens, usd=work.price(reply)))
            work.journal.decide(work.id, step, state["role"], decided)
            stored = work.journal.decision(work.id, step) or decided
        work.event("decided", {"step": step, "role": state["role"], **{k: v for k, v in stored.items() if k != "role"}},
                   key=f"decided:{step}")  # fmt: skip
        if "none" in stored:
            return str(stored["none"])
        action = _ACTION.validate_python(stored["action"])
        if action.action not in actions:
            return f"{action.action} is not open now; open are {', '.join(actions)}"
        if isinstance(action, Propose):
            return next((fault for one in action.hypotheses if (fault := work.lab.fault(one))), action)
        return action

    def _view(self, state: State, phase: Phase) -> View:
        work = self._work
        self._catch_up()
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
        rejected = [event for event in work.journal.events(work.id) if event["kind"] == "rejected"]
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

    # Experimenting

    def _experiments(self, state: State, action: UseTools) -> list[Experiment]:
        work = self._work
        self._catch_up()
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

    def preregister(self, state: State) -> Mapping[str, Any]:
        """Write down what will be done and what every rival predicts."""
        work, step = self._work, state["step"] - 1
        if step not in self._planned:  # after a kill: the decision is kept, and planning is deterministic
            decision = work.journal.decision(work.id, step) or {}
            action = _ACTION.validate_python(decision["action"])
            known = {e.name for e in work.journal.experiments(work.id) if e.round == state["round"] + 1}
            if not known and isinstance(action, UseTools):
                self._planned[step] = self._experiments(state, action)
        planned = self._planned.pop(step, [])
        work.journal.preregister(work.id, planned)
        names = [e.name for e in work.journal.experiments(work.id) if e.round == state["round"] + 1]
        work.event("planned", {"round": state["round"] + 1, "role": state["role"], "experiments": names},
                   key=f"planned:{state['round'] + 1}")  # fmt: skip
        return {"round": state["round"] + 1}

    def execute(self, state: State) -> Mapping[str, Any]:
        """Run what is planned and not observed."""
        work = self._work
        self._catch_up()
        observed = work.journal.observations(work.id)
        for experiment in work.journal.experiments(work.id):
            if experiment.name not in observed:
                self._run(experiment)
            result = work.journal.observations(work.id)[experiment.name]
            if experiment.round == state["round"]:
                told = {key: result.result.get(key) for key in ("effect", "low", "high", "units")}
                work.event("observed", {"experiment": experiment.name, "tool": experiment.tool, "status": result.status,
                                        **told, "reason": result.reason, **result.cost},
                           key=f"observed:{experiment.name}")  # fmt: skip
        return {}

    def _run(self, experiment: Experiment) -> None:
        """Measure one experiment, or take its result from where it was measured before; a failure has a reason and
        no number."""
        work, before = self._work, self._work.lab.meter.rows
        known = work.journal.known(experiment.key)
        if known is not None:
            observation = Observation("ok", known, None, {"forwards": 0, "known": True})
        elif kind := work.exhausted(share=1.0):
            observation = Observation("error", {}, f"not run: the budget of {kind} is spent")
        else:
            with work.lab.meter.counting(work.lab.subject):
                observation = _measured(work.tools[experiment.tool], experiment, work.lab)
            observation = replace(observation, cost={"forwards": work.lab.meter.rows - before})
        charge = Charge(experiments=1, forwards=work.lab.meter.rows - before)
        work.journal.observe(work.id, experiment.name, observation, charge=charge)
        self._catch_up()

    def judge(self, state: State) -> Mapping[str, Any]:
        """Turn observations into odds, and see whether to go on."""
        work, round = self._work, state["round"]
        rivals, experiments, observations = work.standing()
        work.event("judged", {"round": round, "rivals": [told(rival) for rival in rivals]}, key=f"judged:{round}")
        spent = work.journal.spent(work.id)
        limits = {kind: value for kind, value in asdict(work.limits).items() if value is not None}
        work.event("spent", {**spent._asdict(), "limits": limits}, key=f"spent:{round}")
        last = [observations[e.name].status for e in experiments if e.name in observations][-FAILURES:]
        if len(last) == FAILURES and set(last) == {"error"}:
            return {"next": "freeze", "stop": f"the last {FAILURES} experiments failed"}
        if kind := work.exhausted():
            return {"next": "freeze", "stop": f"budget: {kind}"}
        if state["role"] == "proposer":
            return {"next": "plan"}
        return self._challenged(state, verdict(rivals, experiments, observations))

    def challenge(self, state: State) -> Mapping[str, Any]:
        """Another context, which sees the leading text alone, tries to break it."""
        del state
        return {"role": "challenger", "turns": 0, "challenged": self._work.verdict().leader}

    def _challenged(self, state: State, found: Verdict) -> Mapping[str, Any]:
        """What follows from a challenger's round."""
        stands = found.leader == state["challenged"] or (state["challenged"] in found.alike)
        key = f"challenge:{state['challenges']}"
        if stands and state["turns"] + 1 < TURNS:
            return {"next": "plan", "turns": state["turns"] + 1}
        if stands and found.answer != "open":
            self._work.event("challenged", {"verdict": f"{found.leader} stands"}, key=key)
            return {"next": "freeze", "stop": "the leader stood its challenge"}
        told = f"{state['challenged']} stands, but: {found.reason}" if stands else f"{found.leader} leads instead"
        self._work.event("challenged", {"verdict": told}, key=key)
        return {"next": "plan", "role": "proposer", "challenges": state["challenges"] + 1}

    def _catch_up(self) -> None:
        """Let the lab know what was observed, in the order of the journal, each once."""
        work = self._work
        observations = work.journal.observations(work.id)
        for experiment in work.journal.experiments(work.id):
            observation = observations.get(experiment.name)
            if observation is None or experiment.name in self._taken:
                continue
            self._taken.add(experiment.name)
            if observation.status == "ok" and not experiment.survey:
                work.lab.take(design_of(experiment.design), observation.result["values"])


def _measured(tool: Tool[Any], experiment: Experiment, lab: Any) -> Observation:
    try:
        measured = tool.measure(design_of(experiment.design), lab)
    except (NeuronautError, MemoryError, torch.OutOfMemoryError) as error:
        return Observation("error", {}, " ".join(str(error).split()) or type(error).__name__, {})
    numbers = [*measured.values, *(v for v in (measured.effect, measured.low, measured.high) if v is not None)]
    if not all(abs(value) < float("inf") for value in numbers):
        return Observation("error", {}, f"{tool.name} gave a value that is not a finite number", {})
    wanted = 0 if tool.survey else len(experiment.design["items"])
    if len(measured.values) != wanted:
        return Observation("error", {}, f"{tool.name} gave {len(measured.values)} values for {wanted} items", {})
    return Observation("ok", asdict(measured), None, {})


def told(rival: Rival) -> dict[str, Any]:
    """How a rival stands, as events tell it."""
    row = asdict(rival)
    return {**{key: value for key, value in row.items() if key != "hypothesis"}, "kind": rival.hypothesis.kind}
