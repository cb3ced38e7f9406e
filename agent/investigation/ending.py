"""The nodes before and after exploring: what there is to beat, and how an investigation ends.

From `freeze` on nothing is decided any more: the leader by the odds is fixed with the hash of what it says, the
holdout is read once, the controls are run, and code draws the conclusion. An investigation that stands on false
observations as well, or fails on the holdout, ends open.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

from ...data.journal_values import End, Experiment, Observation
from ...data.records import Explanation, Score
from ...data.store import Store
from .claims import claims
from .controls import ControlResult
from .graph import State
from .hypotheses import Hypothesis

if TYPE_CHECKING:
    from .work import Work

HOLDOUT = "holdout"


class Examiner(Protocol):
    """Examines what was found about one target."""

    def refusal(self) -> Explanation | None:
        """Why there is nothing to investigate; None where there is."""
        ...

    def baseline(self) -> dict[str, Any]:
        """What an investigation has to beat: `text`, `rule`, `scores` on `select`."""
        ...

    def holdout(self, text: str, hypothesis: Hypothesis) -> list[Score]:
        """All scores on the holdout; to be called once."""
        ...

    def controls(
        self, hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment],
        observations: Mapping[str, Observation], leader: str,
    ) -> list[ControlResult]:  # fmt: skip
        """Whether false observations leave the leader unsupported."""
        ...

    def indescribable(self, hypothesis: Hypothesis) -> str | None:
        """Why a hypothesis is no explanation although it predicts; None where it is one."""
        ...

    def shortfall(self, scores: Sequence[Score]) -> str | None:
        """Why an explanation with these holdout scores is not supported; None where it may be."""
        ...

    def explanation(self, text: str, hypothesis: Hypothesis) -> Explanation | None:
        """The hypothesis as an explanation for the store; None where there is no feature that it is of."""
        ...


class Ending:
    """The nodes of one investigation that ask no policy."""

    def __init__(self, store: Store, examiner: Examiner, *, explainer: str, provenance: Mapping[str, object]) -> None:
        """`explainer` is what the stored explanation's explainer is called."""
        self._database, self._examiner, self._explainer = store, examiner, explainer
        self._provenance = provenance

    def node(self, name: str, work: "Work", state: State) -> Mapping[str, Any]:
        """Run the node of this name."""
        return getattr(self, f"_{name}")(work, state)

    def baseline(self, work: "Work") -> Mapping[str, Any] | None:
        """What the baseline node found."""
        return work.journal.event_of(work.id, "baseline")

    def _acquire(self, work: "Work", state: State) -> Mapping[str, Any]:
        del state
        refusal = self._examiner.refusal()
        if refusal is None:
            return {"next": "baseline"}
        refused = {
            "hypothesis": None, "verdict": "no_explanation", "evidence": "open", "reason": refusal.reason, "text": None,
            "rule": None, "nodes": {}, "hash": None, "alike": [],
        }  # fmt: skip
        work.event("frozen", refused, key="frozen")
        return {"next": "report", "stop": refusal.reason}

    def _baseline(self, work: "Work", state: State) -> Mapping[str, Any]:
        del state
        with work.charged("baseline", "baseline"):
            work.event("baseline", self._examiner.baseline(), key="baseline")
        return {}

    def _freeze(self, work: "Work", state: State) -> Mapping[str, Any]:
        """Fix the leader by the odds."""
        del state
        found, hypotheses = work.verdict(), work.hypotheses()
        leader = hypotheses.get(found.leader or "")
        table = None if leader is None else self._examiner.indescribable(leader)
        answer, reason = (found.answer, found.reason) if table is None else ("no_explanation", table)
        body = {
            "hypothesis": found.leader, "verdict": answer, "evidence": found.answer, "reason": reason,
            "alike": list(found.alike), "nodes": dict(leader.nodes) if leader is not None else {},
            "text": leader.text if leader is not None and answer != "no_explanation" else None,
            "rule": None if leader is None or leader.rule is None else leader.rule.to_json(),
        }  # fmt: skip
        said = json.dumps([body["text"], body["rule"], body["nodes"]], sort_keys=True)
        work.event("frozen", {**body, "hash": hashlib.sha256(said.encode()).hexdigest()}, key="frozen")
        return {}

    def _holdout(self, work: "Work", state: State) -> Mapping[str, Any]:
        """Read the holdout, once, for the frozen explanation."""
        del state
        frozen = self._frozen(work)
        if frozen["text"] is None or work.journal.event_of(work.id, HOLDOUT) is not None:
            return {}
        work.journal.peek(work.id, HOLDOUT)
        with work.charged(HOLDOUT, HOLDOUT):
            scores = self._examiner.holdout(frozen["text"], work.hypotheses()[frozen["hypothesis"]])
        work.event(HOLDOUT, {"scores": [asdict(score) for score in scores], "peeks": len(work.journal.peeks(work.id))},
                   key=HOLDOUT)  # fmt: skip
        return {}

    def _controls(self, work: "Work", state: State) -> Mapping[str, Any]:
        del state
        frozen = self._frozen(work)
        if frozen["verdict"] == "supported":
            _, experiments, observations = work.standing()
            with work.charged("controls", "controls"):
                found = self._examiner.controls(work.hypotheses(), experiments, observations, frozen["hypothesis"])
            for control in found:
                work.event("control", asdict(control), key=f"control:{control.name}")
        return {}

    def _report(self, work: "Work", state: State) -> Mapping[str, Any]:
        """Draw the conclusion, and tell what single claims came to."""
        status, reason = self._conclusion(work, state)
        _, experiments, observations = work.standing()
        told = claims(work.hypotheses(), experiments, observations)
        work.event(
            "concluded", {"status": status, "reason": reason, "claims": told, "stop": state["stop"]}, key="concluded"
        )
        return {}

    def _store(self, work: "Work", state: State) -> Mapping[str, Any]:
        """Put the explanation and its scores where labels are, and close the investigation."""
        del state
        concluded = work.journal.event_of(work.id, "concluded") or {}
        with self._database.transaction():
            kept = self._keep(work, concluded)
            ended = {"status": concluded["status"], "reason": concluded["reason"], "explanation_id": kept}
            work.event("ended", ended, key="ended")
            work.journal.finish(work.id, concluded["status"], reason=concluded["reason"], explanation=kept)
        return {}

    def _keep(self, work: "Work", concluded: Mapping[str, Any]) -> int | None:
        frozen, read = self._frozen(work), work.journal.event_of(work.id, HOLDOUT)
        leader = work.hypotheses().get(frozen["hypothesis"] or "")
        made = None
        if frozen["text"] is not None and leader is not None:
            made = self._examiner.explanation(frozen["text"], leader)
        elif (refusal := self._examiner.refusal()) is not None:
            made = refusal
        elif leader is not None and (unnamed := self._examiner.explanation("none", leader)) is not None:
            made = replace(unnamed, text=None, rule=None, status="no_pattern", reason=concluded["reason"])
        if made is None:
            return None
        provenance = {**self._provenance, "investigation": work.id, "verdict": concluded["status"], "key": work.id}
        scores = [Score(**{**row, "windows": tuple(row["windows"])}) for row in (read or {}).get("scores", [])]
        return self._database.add_result(replace(made, explainer=self._explainer, provenance=provenance), scores)

    def _conclusion(self, work: "Work", state: State) -> tuple[End, str]:
        """The status an investigation ends with, and why."""
        frozen = self._frozen(work)
        stop, answer, reason = state["stop"] or "", frozen["verdict"], frozen["reason"]
        if answer == "supported":
            read = work.journal.event_of(work.id, HOLDOUT) or {"scores": []}
            scores = [Score(**{**row, "windows": tuple(row["windows"])}) for row in read["scores"]]
            failed = [e["name"] for e in work.journal.events(work.id, kind="control") if not e["passed"]]
            if fault := self._examiner.shortfall(scores):
                return "open", fault
            if failed:
                return "open", f"the controls {', '.join(failed)} did not come out as they must"
            return "supported", reason
        observations = work.journal.observations(work.id).values()
        if observations and all(observation.status == "error" for observation in observations):
            return "error", f"every experiment failed; the last: {list(observations)[-1].reason}"
        if answer == "open" and stop.startswith("budget"):
            return "budget", f"{stop} is spent; {reason}"
        return answer, reason if answer == "no_explanation" else f"{reason} ({stop})" if stop else reason

    def _frozen(self, work: "Work") -> dict[str, Any]:
        found = work.journal.event_of(work.id, "frozen")
        assert found is not None, "freeze comes before what follows it"
        return found
