"""What follows from other rows of an investigation by arithmetic, made again and compared, each by its name.

Nobody is asked and nothing is run. Every check yields one line for each thing that comes out otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, get_args

from ..data.store.journal import Journal
from ..data.store.journal_values import Charge, Experiment, Observation
from .loop.behaviour_examiner import BehaviourExaminer
from .loop.conclusion import HOLDOUT, Stop, conclude, frozen_hash, outcome_among
from .loop.controls import claims
from .loop.decisions import label_of
from .loop.feature_examiner import FeatureExaminer
from .loop.graph import StopCode
from .loop.hypotheses import Hypothesis
from .loop.judging import Outcome, rank_rivals
from .loop.nodes import rival_row
from .loop.target import Finalist

SHORTFALLS = {"feature": FeatureExaminer.shortfall, "behaviour": BehaviourExaminer.shortfall}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that an investigation wrote down."""

    row: Mapping[str, Any]
    events: Rows
    hypotheses: Rows
    parsed: Mapping[str, Hypothesis]
    decisions: Mapping[int, Mapping[str, Any]]
    experiments: list[Experiment]
    observations: dict[str, Observation]

    @classmethod
    def read(cls, journal: Journal, id: str) -> "Transcript":
        """Reads the rows of an investigation."""
        hypotheses = journal.hypotheses(id)
        return cls(
            row=journal.row(id),
            events=journal.events(id),
            hypotheses=hypotheses,
            parsed={h["name"]: Hypothesis.model_validate(h["body"]) for h in hypotheses},
            decisions={decision["step"]: decision for decision in journal.decisions(id)},
            experiments=journal.experiments(id),
            observations=journal.observations(id),
        )

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of a kind."""
        return [event for event in self.events if event["kind"] == kind]

    def last(self, kind: str) -> Mapping[str, Any] | None:
        """The last event of a kind."""
        return next(iter(self.of_kind(kind)[::-1]), None)

    def outcome(self) -> Outcome:
        """What the evidence says at the end."""
        rivals = rank_rivals(self.parsed, self.experiments, self.observations, kind=self.row["kind"])
        rows = [Finalist(**row) for row in (self.last("finalists") or {"rows": []})["rows"]]
        return outcome_among(rows, rivals, self.experiments, self.observations)


def different_rounds(said: Transcript) -> Iterator[int]:
    """The rounds whose odds come out otherwise."""
    for event in said.of_kind("judged"):
        names = {rival["name"] for rival in event["rivals"]}
        known = {name: hypothesis for name, hypothesis in said.parsed.items() if name in names}
        until = [e for e in said.experiments if e.round <= event["round"]]
        observed = {e.name: said.observations[e.name] for e in until if e.name in said.observations}
        again = [rival_row(rival) for rival in rank_rivals(known, until, observed, kind=said.row["kind"])]
        if again != event["rivals"]:
            yield event["round"]


def check_hypotheses(said: Transcript, _: Journal) -> Iterator[str]:
    """Every hypothesis says what the decision that put it up says; the nulls are the lab's (rerun.py)."""
    for row in said.hypotheses:
        if row["origin"] == "label" and said.parsed[row["name"]] != label_of(said.last("baseline")):
            yield f"hypothesis {row['name']}: the label that there was says something else"
        if row["step"] < 0:
            continue
        action = said.decisions.get(row["step"], {}).get("action") or {}
        proposed = [Hypothesis.model_validate(body) for body in action.get("hypotheses", ())]
        if said.parsed[row["name"]] not in proposed:
            yield f"hypothesis {row['name']}: decision {row['step']} did not propose what it says"


def check_observed(said: Transcript, _: Journal) -> Iterator[str]:
    """What was told of every experiment as it was run is what is stored of it."""
    for event in said.of_kind("observed"):
        observation = said.observations.get(event["experiment"])
        if observation is None:
            yield f"observation {event['experiment']}: it was told, and is not stored"
            continue
        stored = {"status": observation.status, "reason": observation.reason, **observation.cost}
        stored |= {key: observation.result.get(key) for key in ("effect", "low", "high", "units")}
        for key, value in stored.items():
            if value != event[key]:
                yield f"observation {event['experiment']}: {key} is stored as {value}, and was told as {event[key]}"


def check_frozen(said: Transcript, _: Journal) -> Iterator[str]:
    """What was frozen is what the evidence says, and what the leader says, and its hash is of that."""
    frozen = said.last("frozen")
    # A target that was refused has no hypotheses, so there is nothing to judge.
    if frozen is None or not said.parsed:
        return
    outcome = said.outcome()
    if (frozen["evidence"], frozen["hypothesis"]) != (outcome.answer, outcome.leader):
        yield (
            f"frozen verdict: {frozen['evidence']}, {frozen['hypothesis']} is stored; "
            f"the evidence says {outcome.answer}, {outcome.leader}"
        )
    if frozen["verdict"] not in (outcome.answer, "no_explanation"):
        yield f"frozen verdict: {frozen['verdict']} is stored, the evidence says {outcome.answer}"
    if frozen["verdict"] == outcome.answer and frozen["reason"] != outcome.reason:
        yield f"frozen reason: {frozen['reason']!r} is stored, the evidence says {outcome.reason!r}"
    if frozen["alike"] != list(outcome.alike):
        yield f"frozen equals: {frozen['alike']} are stored, by the evidence they are {list(outcome.alike)}"
    leader = said.parsed.get(frozen["hypothesis"] or "")
    if leader is not None:
        says = {
            "text": None if frozen["verdict"] == "no_explanation" else leader.text,
            "rule": None if leader.rule is None else leader.rule.to_json(),
            "nodes": leader.nodes,
        }
        for key, value in says.items():
            if frozen[key] != value:
                yield f"frozen {key}: it is not that of {frozen['hypothesis']}"
    if frozen["hash"] != frozen_hash(frozen["text"], frozen["rule"], frozen["nodes"]):
        yield "frozen hash: it is not that of the frozen text, rule and nodes"


def check_conclusion(said: Transcript, _: Journal) -> Iterator[str]:
    """Status and reason are what follows from what was frozen, the holdout, the controls and the observations."""
    frozen, concluded, ended = said.last("frozen"), said.last("concluded"), said.last("ended")
    if frozen is not None and concluded is not None:
        # Before there were codes, only the words of why exploring ended were written down.
        codes = [concluded["stop_code"]] if "stop_code" in concluded else [None, *get_args(StopCode)]
        again = [
            conclude(
                frozen,
                (said.last(HOLDOUT) or {"scores": []})["scores"],
                said.of_kind("control"),
                said.observations,
                shortfall=SHORTFALLS[said.row["kind"]],
                stop=Stop(concluded["stop"], code),
            )
            for code in codes
        ]
        for place, name in enumerate(("status", "reason")):
            if concluded[name] not in [made[place] for made in again]:
                yield f"{name}: {concluded[name]!r} was concluded, judged again it is {again[0][place]!r}"
        if concluded["claims"] != claims(said.parsed, said.experiments, said.observations):
            yield "claims: the verdicts on what it writes and reads come out otherwise"
    told = ended if concluded is None else concluded
    if said.row["ended"] is not None and told is not None:
        for name in ("status", "reason"):
            for where, row in (("stored", said.row), ("told at the end", ended or told)):
                if row[name] != told[name]:
                    yield f"{name}: {row[name]!r} is {where}, {told[name]!r} was concluded"
    if (said.row["ended"] is None) != (ended is None):
        yield f"status: {said.row['status']!r} is stored, and an end was {'not ' if ended is None else ''}told"


def check_holdout(said: Transcript, journal: Journal) -> Iterator[str]:
    """The holdout was read once, after freezing; its scores are those that were stored with the explanation."""
    holdout, id = said.last(HOLDOUT), said.row["id"]
    peeks = journal.peeks(id)
    counted = 0 if holdout is None else holdout["peeks"]
    if len(peeks) != counted and said.row["ended"] is not None:
        yield f"peeks: {len(peeks)} readings of the holdout are stored, {counted} told"
    result, frozen = journal.stored_result(id), said.last("frozen")
    if result is None or frozen is None or frozen["text"] is None:
        return
    for key in ("text", "rule"):
        if result[key] != frozen[key]:
            yield f"explanation {result['id']}: its {key} is not what was frozen"
    stored = [{key: row[key] for key in _SCORE} for row in result["scores"]]
    for score in (holdout or {"scores": []})["scores"]:
        if {key: score[key] for key in _SCORE} not in stored:
            name = " ".join((score["scorer"], score["examples"], score["metric"]))
            yield f"holdout score {name}: {score['value']} was told, no such score is with explanation {result['id']}"


_SCORE = ("scorer", "examples", "metric", "value", "reason", "ci_low", "ci_high", "n")


def check_ledger(said: Transcript, journal: Journal) -> Iterator[str]:
    """Every experiment is charged with what it took, and no sum is below what was told."""
    ledger, met = journal.ledger(said.row["id"]), set[str]()
    for experiment in said.experiments:
        observation = said.observations.get(experiment.name)
        if observation is None or experiment.key in met:
            continue
        met.add(experiment.key)
        charged = ledger.get(experiment.key)
        if charged is None:
            yield f"ledger: {experiment.name} was run and never charged"
        elif charged["forwards"] != observation.cost.get("forwards", 0):
            took = observation.cost.get("forwards", 0)
            yield f"ledger: {experiment.name} is charged {charged['forwards']} forwards, and took {took}"
    told, spent = said.last("spent"), journal.spent(said.row["id"])._asdict()
    for kind in Charge._fields:
        # Sums of floats depend on the order of the rows.
        if told is not None and spent[kind] < told[kind] - 1e-9:
            yield f"ledger: {spent[kind]:g} {kind} are charged, {told[kind]:g} were told after the last round"


def check_times(said: Transcript, journal: Journal) -> Iterator[str]:
    """Rows are in the order of their times, predictions before observations, and the holdout is read after freezing."""
    times = journal.times(said.row["id"])
    for table, rows in times.items():
        for (first, earlier), (second, later) in pairwise(rows):
            if later < earlier:
                yield f"times: {table} {second} is written after {first} and dated before it"
    predicted: dict[str, int] = {}
    for experiment, time in times["predictions"]:
        predicted[experiment] = max(time, predicted.get(experiment, time))
    for experiment, time in times["observations"]:
        if time <= predicted.get(experiment, time - 1):
            yield f"times: {experiment} was observed before it was predicted"
    events = dict(times["events"])
    for purpose, time in times["peeks"]:
        if not events.get("frozen", time) <= time <= events.get(purpose, time):
            yield f"times: the holdout was read for {purpose} before freezing, or after its scores were told"
    for name, time in times["observations"]:
        told = events.get(f"observed:{name}")
        if told is not None and time / 1e9 > datetime.fromisoformat(told).timestamp() + 0.001:
            yield f"times: {name} was told before it was observed"
    within = [time for _, time in times["events"]]
    if within and not said.row["created"] <= within[0] <= within[-1] <= (said.row["ended"] or within[-1]):
        yield "times: it began after its first event, or ended before its last one"


def check_begun(said: Transcript, _: Journal) -> Iterator[str]:
    """Target, policy and settings are those that it was begun with."""
    begun = said.last("begun") or said.row
    for name in ("target", "policy", "settings"):
        if said.row[name] != begun[name]:
            yield f"{name}: what is stored is not what it was begun with"


def check_seal(said: Transcript, journal: Journal) -> Iterator[str]:
    """A session that ended since there are seals has one: it is made in the same transaction."""
    if "stop_code" in (said.last("concluded") or {}) and said.row["ended"] and not journal.is_sealed(said.row["id"]):
        yield "seal: it was made when the session ended, and is gone"


CHECKS: Mapping[str, Callable[[Transcript, Journal], Iterator[str]]] = {
    "how it was begun": check_begun,
    "the hypotheses": check_hypotheses,
    "the observations": check_observed,
    "what was frozen": check_frozen,
    "the conclusion": check_conclusion,
    "the holdout": check_holdout,
    "the ledger": check_ledger,
    "the order of times": check_times,
    "the seal": check_seal,
}
