"""The nodes before and after exploring: what there is to beat, and how an investigation ends.

From `freeze` on nothing is decided any more: the leader by the odds, or of several that are about as likely the one
that predicts `select` best (the shortest within its standard error), is fixed with the hash of what it says, the
holdout is read once, the controls are run, and code draws the conclusion. An investigation that stands on false
observations as well, or fails on the holdout, ends open.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf, log
from typing import Any, NamedTuple

from ...data.records import Score
from ...data.store.journal_values import End, Experiment, Observation
from ...rules.language import Rule
from .controls import claims
from .feature_lab import FeatureLab
from .graph import State, StopCode
from .hypotheses import NULLS, Hypothesis
from .judging import HITS, ODDS, RESOLVED, Outcome, outcome_of
from .run import InvestigationRun
from .target import Finalist, Question, Shortfall, run_controls
from .view import Rival

HOLDOUT, LEARN = "holdout", "learn_rule"


class Conclusion:
    """The nodes of one investigation that ask no policy."""

    def __init__(self, run: InvestigationRun) -> None:
        self._run = run

    def acquire(self, state: State) -> Mapping[str, Any]:
        """Refuses a target about which nothing can be found, such as a dead feature."""
        del state
        refusal = self._run.examiner.refusal()
        if refusal is None:
            return {"next": "baseline"}
        refused = {
            "hypothesis": None,
            "verdict": "no_explanation",
            "evidence": "open",
            "reason": refusal.reason,
            "text": None,
            "rule": None,
            "nodes": {},
            "hash": None,
            "alike": [],
        }
        self._run.event("frozen", refused, key="frozen")
        return {"next": "report", "stop": refusal.reason, "stop_code": "refused"}

    def baseline(self, state: State) -> Mapping[str, Any]:
        """Writes down what there is to beat."""
        del state
        with self._run.charged("baseline", "baseline"):
            self._run.event("baseline", self._run.examiner.baseline(), key="baseline")
        return {}

    def freeze(self, state: State) -> Mapping[str, Any]:
        """Fixes the answer: the leader by the odds or, of finalists, the one that `select` favours."""
        del state
        rows, hypotheses = self._finalists(), self._run.hypotheses()
        outcome = outcome_among(rows, *self._run.rival_state())
        leader = hypotheses.get(outcome.leader or "")
        table = None if leader is None else self._run.examiner.indescribable(leader, outcome.grading)
        if table is None and outcome.answer == "open" and (longer := self._longer()) is not None:
            table = self._run.examiner.indescribable(longer, None)
        answer, reason = (outcome.answer, outcome.reason) if table is None else ("no_explanation", table)
        body = {
            "hypothesis": outcome.leader,
            "verdict": answer,
            "evidence": outcome.answer,
            "reason": reason,
            "alike": list(outcome.alike),
            "grading": outcome.grading,
            "nodes": dict(leader.nodes) if leader is not None else {},
            "text": leader.text if leader is not None and answer != "no_explanation" else None,
            "rule": None if leader is None or leader.rule is None else leader.rule.to_json(),
        }
        digest = frozen_hash(body["text"], body["rule"], body["nodes"])
        self._run.event("frozen", {**body, "hash": digest}, key="frozen")
        return {}

    def _longer(self) -> Hypothesis | None:
        """The rule too long to be told that was learned last, where it fits more than the one that can be."""
        _, experiments, observations = self._run.rival_state()
        learned = [observations[e.name].result for e in experiments if e.tool == LEARN and e.name in observations]
        longer = (learned[-1].get("found") or {}).get("longer") if learned else None
        return None if longer is None else Hypothesis(text="a longer rule", rule=Rule.model_validate(longer))

    def _finalists(self) -> list[Finalist]:
        """The rules that are too likely to be left aside, compared on `select`, once.

        Those within the wanted odds of the leader, and those that were out for their levels alone: of all that was
        measured they say as rightly as the leader whether it fires. So a null that leads by its many values is
        displaced by a cause. The label that was there before is one where it is ahead of all others by more than its
        standard error.
        """
        run = self._run
        event = run.journal.event_of(run.id, "finalists")
        if event is not None:
            return [Finalist(**row) for row in event["rows"]]
        rivals = run.rival_state().rivals
        leader = next((rival for rival in rivals if rival.status == "live"), None)
        if leader is None or leader.hypothesis.kind == "no_pattern":
            return []
        rules = {rival.name: rival for rival in rivals if rival.hypothesis.rule is not None}
        likely = _likely(leader, rules) | self._right_about_the_cause(leader, rules)
        labels = {row["name"] for row in run.journal.hypotheses(run.id) if row["origin"] == "label"} & set(rules)
        if not (likely | labels) - {leader.name}:
            return []
        compared = likely | labels | {leader.name}
        with run.charged("finalists", "finalists"):
            rows = run.examiner.compare({name: rules[name].hypothesis for name in rules if name in compared})
        best = max((row.value for row in rows if row.name not in labels), default=-inf)
        among = likely | {leader.name}
        rows = [row for row in rows if row.name in among or row.value - (row.error or 0.0) > best]
        run.event("finalists", {"rows": [row._asdict() for row in rows]}, key="finalists")
        return rows

    def _right_about_the_cause(self, leader: Rival, rules: Mapping[str, Rival]) -> set[str]:
        """Rules that say of all that was measured as rightly as the leader whether it fires, live or out."""
        lab = self._run.lab
        tested = {
            name: rival.hypothesis.rule
            for name, rival in rules.items()
            if rival.hypothesis.kind not in NULLS and rival.resolved >= RESOLVED and (rival.cause or 0.0) >= HITS
        }
        if not tested or not isinstance(lab, FeatureLab):
            return set()
        of_leader = leader.hypothesis.rule
        least = 0.0 if of_leader is None else lab.told_rightly(of_leader)
        return {name for name, rule in tested.items() if rule is not None and lab.told_rightly(rule) >= least}

    def holdout(self, state: State) -> Mapping[str, Any]:
        """Reads the holdout, once, for the frozen explanation."""
        del state
        frozen = self._frozen_event()
        if frozen["text"] is None or self._run.journal.event_of(self._run.id, HOLDOUT) is not None:
            return {}
        self._run.journal.peek(self._run.id, HOLDOUT)
        with self._run.charged(HOLDOUT, HOLDOUT):
            examined = self._run.examiner.holdout(frozen["text"], self._run.hypotheses()[frozen["hypothesis"]])
        read = {"scores": [asdict(score) for score in examined.scores]}
        read |= {"label": [asdict(score) for score in examined.label_scores], "added": list(examined.added)}
        self._run.event(HOLDOUT, {**read, "peeks": len(self._run.journal.peeks(self._run.id))}, key=HOLDOUT)
        return {}

    def controls(self, state: State) -> Mapping[str, Any]:
        """Finds the roles of the frozen nodes, and runs the negative controls of a supported explanation."""
        del state
        frozen = self._frozen_event()
        if frozen["nodes"]:
            with self._run.charged("roles", "roles"):
                roles = self._run.examiner.roles(self._run.hypotheses()[frozen["hypothesis"]])
            self._run.event("roles", roles or {}, key="roles")
        if frozen["verdict"] == "supported":
            _, experiments, observations = self._run.rival_state()
            with self._run.charged("controls", "controls"):
                results = run_controls(
                    self._run.lab,
                    self._run.examiner,
                    hypotheses=self._run.hypotheses(),
                    experiments=experiments,
                    observations=observations,
                    leader=frozen["hypothesis"],
                )
            for control in results:
                self._run.event("control", asdict(control), key=f"control:{control.name}")
        return {}

    def report(self, state: State) -> Mapping[str, Any]:
        """Draws the conclusion, and the verdicts on single claims."""
        _, experiments, observations = self._run.rival_state()
        examined = self._run.journal.event_of(self._run.id, HOLDOUT) or {"scores": []}
        status, reason, question = conclude(
            self._frozen_event(),
            examined["scores"],
            self._run.journal.events(self._run.id, kind="control"),
            observations,
            shortfall=self._run.examiner.shortfall,
            stop=Stop(state["stop"], state.get("stop_code")),
        )
        verdicts = claims(self._run.hypotheses(), experiments, observations)
        self._run.event(
            "concluded",
            {
                "status": status,
                "reason": reason,
                "question": question,
                "claims": verdicts,
                "stop": state["stop"],
                "stop_code": state.get("stop_code"),
            },
            key="concluded",
        )
        return {}

    def store(self, state: State) -> Mapping[str, Any]:
        """Puts the explanation and its scores where labels are, and closes the investigation."""
        del state
        concluded = self._run.journal.event_of(self._run.id, "concluded") or {}
        with self._run.store.transaction():
            explanation = self._store_explanation(concluded)
            ended = {"status": concluded["status"], "reason": concluded["reason"], "explanation_id": explanation}
            self._run.event("ended", ended, key="ended")
            self._run.journal.finish(
                self._run.id, concluded["status"], reason=concluded["reason"], explanation=explanation
            )
        return {}

    def _store_explanation(self, concluded: Mapping[str, Any]) -> int | None:
        """Stores what was found with its scores, an abstention too; returns its id, None where there is nothing."""
        frozen, examined = self._frozen_event(), self._run.journal.event_of(self._run.id, HOLDOUT)
        leader = self._run.hypotheses().get(frozen["hypothesis"] or "")
        explanation = None
        if frozen["text"] is not None and leader is not None:
            explanation = self._run.examiner.explanation(frozen["text"], leader)
        elif (refusal := self._run.examiner.refusal()) is not None:
            explanation = refusal
        elif leader is not None and (unnamed := self._run.examiner.explanation("none", leader)) is not None:
            explanation = replace(
                unnamed,
                text=None,
                rule=None,
                headline=None,
                predictor=None,
                status="no_pattern",
                reason=concluded["reason"],
            )
        if explanation is None:
            return None
        provenance = {
            **self._run.provenance,
            "investigation": self._run.id,
            "verdict": concluded["status"],
            "key": self._run.id,
        }
        scores = [score_of(row) for row in (examined or {}).get("scores", [])]
        return self._run.store.add_result(
            replace(explanation, explainer=f"investigate:{self._run.policy.name}", provenance=provenance), scores
        )

    def _frozen_event(self) -> dict[str, Any]:
        frozen = self._run.journal.event_of(self._run.id, "frozen")
        assert frozen is not None, "freeze comes before what follows it"
        return frozen


def _likely(leader: Rival, rules: Mapping[str, Rival]) -> set[str]:
    """Live rules within the wanted odds of the leader; levels alone do not displace a null."""
    if leader.hypothesis.kind in NULLS:
        return set()
    return {
        name
        for name, rival in rules.items()
        if rival.hypothesis.kind not in NULLS
        and rival.status == "live"
        and leader.log_odds - rival.log_odds <= log(ODDS)
    }


def outcome_among(
    finalists: Sequence[Finalist],
    rivals: Sequence[Rival],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
) -> Outcome:
    """What the evidence says of the finalist that predicts `select` best: the shortest within its standard error.

    Of these, rules that words can tell go before those that they cannot. Where it would not be supported and the leader
    by the odds is, the leader stays the answer; but for a null that predicts `select` worse by more than the standard
    error.
    """
    leading = outcome_of(rivals, experiments, observations)
    of_leader = next((row for row in finalists if row.name == leading.leader), None)
    best = max(finalists, key=lambda row: row.value, default=None)
    if best is None:
        return leading
    near = [row for row in finalists if row.value >= best.value - (best.error or 0.0)]
    chosen = min(near, key=lambda row: (not row.told, row.length, -row.value))
    outcome = outcome_of(rivals, experiments, observations, name=chosen.name)
    is_null = any(rival.name == leading.leader and rival.hypothesis.kind in NULLS for rival in rivals)
    if is_null and of_leader is not None and chosen.value - (chosen.error or 0.0) > of_leader.value:
        return outcome
    return leading if (leading.answer, outcome.answer) == ("supported", "open") else outcome


class Stop(NamedTuple):
    """Why exploring ended, in words and for code."""

    reason: str | None
    code: StopCode | None


class Ending(NamedTuple):
    """How an investigation ended."""

    status: End
    reason: str
    question: Question | None
    """What stayed open; None where nothing did, or nothing could be asked."""


def conclude(
    frozen: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    observations: Mapping[str, Observation],
    *,
    shortfall: Callable[[Sequence[Score]], Shortfall | None],
    stop: Stop,
) -> Ending:
    """What an investigation ends with: arithmetic on what is written down."""
    answer, reason = frozen["verdict"], frozen["reason"]
    if answer == "supported":
        failed = [control["name"] for control in controls if not control["passed"]]
        if fault := shortfall([score_of(row) for row in scores]):
            return Ending("open", fault.reason, fault.question)
        if failed:
            return Ending("open", f"the controls {', '.join(failed)} did not come out as they must", "controls")
        return Ending("supported", reason, None)
    if observations and all(observation.status == "error" for observation in observations.values()):
        return Ending("error", f"every experiment failed; the last: {list(observations.values())[-1].reason}", None)
    question = "evidence" if answer == "open" else None
    if answer == "open" and stop.code == "budget":
        return Ending("budget", f"{stop.reason} is spent; {reason}", question)
    why = reason if answer == "no_explanation" or not stop.reason else f"{reason} ({stop.reason})"
    return Ending(answer, why, question)


def frozen_hash(text: str | None, rule: str | None, nodes: Mapping[str, float]) -> str:
    """The hash of what an explanation says, as it is frozen before the holdout is read."""
    return hashlib.sha256(json.dumps([text, rule, nodes], sort_keys=True).encode()).hexdigest()


def score_of(row: Mapping[str, Any]) -> Score:
    """A score as an event has it."""
    return Score(**{**row, "windows": tuple(row["windows"])})
