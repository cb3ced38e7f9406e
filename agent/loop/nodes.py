"""The nodes of the graph, with what each does.

A node reads where the investigation stands from the journal, does one thing, and writes it down under a key that
says what it is, so that a node that is run again after a kill finds it done.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ...data.store.journal_values import Charge, Experiment, Observation
from ...subject.errors import NeuronautError
from ...subject.memory import is_out_of_memory
from .conclusion import Conclusion
from .decisions import TURNS, Decider
from .experiments import AnyTool, design_from_json
from .graph import Node, NodeName, State, stopped
from .hypotheses import NULLS
from .judging import FORMULA, Outcome, outcome_of
from .run import InvestigationRun
from .target import Lab
from .view import Rival

FAILURES = 6
"""Experiments in a row that may fail before exploring ends."""


class Nodes:
    """The nodes of one investigation."""

    def __init__(self, run: InvestigationRun) -> None:
        self._run, self._decider = run, Decider(run)
        conclusion = Conclusion(run)
        self._bodies: Mapping[NodeName, Node] = {
            "acquire": conclusion.acquire,
            "baseline": conclusion.baseline,
            "propose": self._decider.propose,
            "plan": self._decider.plan,
            "preregister": self.preregister,
            "execute": self.execute,
            "judge": self.judge,
            "challenge": self.challenge,
            "close": self._decider.close,
            "freeze": conclusion.freeze,
            "holdout": conclusion.holdout,
            "controls": conclusion.controls,
            "report": conclusion.report,
            "store": conclusion.store,
        }

    def node(self, name: NodeName) -> Node:
        """The function of a node; it also tells that a phase begins, and charges the minutes."""
        body = self._bodies[name]

        def timed(state: State) -> Mapping[str, Any]:
            began = time.monotonic()
            if name not in ("plan", "preregister", "execute", "judge"):
                self._run.event("phase", {"phase": name}, key=f"phase:{name}:{state['challenges']}")
            update = body(state)
            minutes = Charge(minutes=(time.monotonic() - began) / 60)
            self._run.journal.charge(self._run.id, f"{name}:{uuid.uuid4().hex[:12]}", "minutes", minutes)
            return update

        return timed

    def preregister(self, state: State) -> Mapping[str, Any]:
        """Writes down what will be done and what every rival predicts."""
        run = self._run
        run.journal.preregister(run.id, self._decider.planned(state))
        names = [e.name for e in run.rival_state().experiments if e.round == state["round"] + 1]
        run.event(
            "planned",
            {"round": state["round"] + 1, "role": state["role"], "experiments": names},
            key=f"planned:{state['round'] + 1}",
        )
        return {"round": state["round"] + 1}

    def execute(self, state: State) -> Mapping[str, Any]:
        """Runs what is planned and not observed."""
        run = self._run
        run.catch_up()
        _, experiments, observations = run.rival_state()
        for experiment in (e for e in experiments if e.round == state["round"] or e.name not in observations):
            if experiment.name not in observations:
                self._measure(experiment)
            observation = run.rival_state().observations[experiment.name]
            numbers = {key: observation.result.get(key) for key in ("effect", "low", "high", "units")}
            run.event(
                "observed",
                {
                    "experiment": experiment.name,
                    "tool": experiment.tool,
                    "status": observation.status,
                    **numbers,
                    "reason": observation.reason,
                    **observation.cost,
                },
                key=f"observed:{experiment.name}",
            )
        return {}

    def _measure(self, experiment: Experiment) -> None:
        """Measures one experiment, or takes its result from where it was measured before.

        A failure has a reason and no number.
        """
        run, before = self._run, self._run.lab.meter.rows
        stored, fresh = run.journal.known_result(experiment.key), True
        if kind := run.exhausted(share=1.0):
            observation, fresh = Observation("error", {}, f"not run: the budget of {kind} is spent"), False
        elif stored is not None:
            observation = Observation("ok", stored, None, {"forwards": 0, "known": True})
        else:
            with run.lab.meter.counting(run.lab.subject):
                observation = _run_tool(run.tools[experiment.tool], experiment, run.lab)
            observation = replace(observation, cost={"forwards": run.lab.meter.rows - before})
        charge = Charge(experiments=int(fresh and not experiment.survey), forwards=run.lab.meter.rows - before)
        run.journal.observe(run.id, experiment.name, observation, charge=charge)
        run.catch_up()

    def judge(self, state: State) -> Mapping[str, Any]:
        """Turns observations into odds, and decides whether to go on."""
        run, round = self._run, state["round"]
        rivals, experiments, observations = run.rival_state()
        judged = {"round": round, "formula": FORMULA, "rivals": [rival_row(rival) for rival in rivals]}
        run.event("judged", judged, key=f"judged:{round}")
        spent = run.journal.spent(run.id)
        limits = {kind: value for kind, value in asdict(run.limits).items() if value is not None}
        run.event("spent", {**spent._asdict(), "limits": limits}, key=f"spent:{round}")
        if state["stop"] is not None:
            return {"next": "close"}
        if kind := run.exhausted():
            return stopped("budget", f"budget: {kind}")
        last = [observations[e.name].status for e in experiments if e.name in observations][-FAILURES:]
        if len(last) == FAILURES and set(last) == {"error"}:
            return stopped("failures", f"the last {FAILURES} experiments failed")
        if state["role"] == "proposer":
            put_up = any(rival.hypothesis.kind not in NULLS for rival in rivals)
            return {"next": "plan" if put_up else "propose"}
        return self._after_challenge(state, outcome_of(rivals, experiments, observations))

    def challenge(self, state: State) -> Mapping[str, Any]:
        """Begins a challenge: a policy that sees the leading text alone tries to break it."""
        del state
        return {"role": "challenger", "turns": 0, "challenged": self._run.outcome().leader}

    def _after_challenge(self, state: State, outcome: Outcome) -> Mapping[str, Any]:
        """Decides what follows from a challenger's round."""
        stands = outcome.leader == state["challenged"] or (state["challenged"] in outcome.alike)
        key = f"challenge:{state['challenges']}"
        if stands and state["turns"] + 1 < TURNS:
            return {"next": "plan", "turns": state["turns"] + 1}
        if stands and outcome.answer != "open":
            self._run.event("challenged", {"verdict": f"{outcome.leader} stands"}, key=key)
            return stopped("stood", "the leader stood its challenge")
        words = f"{state['challenged']} stands, but: {outcome.reason}" if stands else f"{outcome.leader} leads instead"
        self._run.event("challenged", {"verdict": words}, key=key)
        return {"next": "plan", "role": "proposer", "challenges": state["challenges"] + 1, "rejected": None}


def _run_tool(tool: AnyTool, experiment: Experiment, lab: Lab) -> Observation:
    try:
        measured = tool.measure(design_from_json(experiment.design), lab)
    except Exception as error:
        if not isinstance(error, NeuronautError) and not is_out_of_memory(error):
            raise
        return Observation("error", {}, " ".join(str(error).split()) or type(error).__name__, {})
    numbers = [*measured.values, *(v for v in (measured.effect, measured.low, measured.high) if v is not None)]
    if not all(abs(value) < float("inf") for value in numbers):
        return Observation("error", {}, f"{tool.name} gave a value that is not a finite number", {})
    wanted = 0 if tool.survey else len(experiment.design["items"])
    if len(measured.values) != wanted:
        return Observation("error", {}, f"{tool.name} gave {len(measured.values)} values for {wanted} items", {})
    return Observation("ok", asdict(measured), None, {})


def rival_row(rival: Rival) -> dict[str, Any]:
    """A rival's standing, for events; what its odds are the sum of follows from the experiments."""
    row = asdict(rival)
    untold = ("hypothesis", "prior", "terms")
    return {**{key: row[key] for key in row if key not in untold}, "kind": rival.hypothesis.kind}
