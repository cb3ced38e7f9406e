"""Replaying and forking: the verdict again from what is written down, and another way from some step on.

A replay asks nobody and runs nothing: it checks the chain of predictions, and judges the stored predictions and
observations again, round by round. Since verdicts are arithmetic, every odd must come out to the bit. A fork copies
the decisions before a step under a new id; run again, it takes these as decided, finds their experiments measured,
and goes on by itself.
"""

from typing import NamedTuple

from ..data.store.journal import Journal, investigation_id
from ..data.store.journal_values import InvestigationRecord
from ..subject.errors import NeuronautError
from .loop.hypotheses import Hypothesis
from .loop.judging import FORMULA, outcome_of, rank_rivals
from .loop.nodes import rival_row


class Replay(NamedTuple):
    """What a replay found."""

    id: str
    rounds: int
    """Rounds whose verdicts were made again."""
    different: tuple[int, ...]
    """Rounds in which anything came out otherwise."""
    answer: str
    """What the evidence says at the end."""
    leader: str | None
    frozen: bool
    """Whether that is what was frozen; True where nothing is frozen yet."""
    broken: str | None
    """Where the chain of predictions does not hold."""
    formulas: tuple[str, ...]
    """By which arithmetic it was judged, where that was not this code's."""

    @property
    def same(self) -> bool:
        """Whether everything came out as it was written down."""
        return not self.different and self.frozen and self.broken is None


def replay(journal: Journal, id: str) -> Replay:
    """Judges a stored investigation again, unless its chain is broken. `id` may be the beginning of one."""
    row = journal.row(id)
    id, kind = row["id"], row["kind"]
    every, observations = journal.experiments(id), journal.observations(id)
    hypotheses = journal.hypotheses(id)
    rounds = {event["round"]: event for event in journal.events(id, kind="judged")}
    others = tuple({event["formula"] for event in rounds.values()} - {FORMULA})
    if (broken := journal.broken_link(id)) is not None:
        return Replay(
            id=id,
            rounds=len(rounds),
            different=tuple(rounds),
            answer="open",
            leader=None,
            frozen=False,
            broken=broken,
            formulas=others,
        )
    different = []
    for round, event in rounds.items():
        names = {rival["name"] for rival in event["rivals"]}
        known = {h["name"]: Hypothesis.model_validate(h["body"]) for h in hypotheses if h["name"] in names}
        until = [e for e in every if e.round <= round]
        observed = {e.name: observations[e.name] for e in until if e.name in observations}
        again = [rival_row(rival) for rival in rank_rivals(known, until, observed, kind=kind)]
        if again != event["rivals"]:
            different.append(round)
    known = {h["name"]: Hypothesis.model_validate(h["body"]) for h in hypotheses}
    outcome = outcome_of(rank_rivals(known, every, observations, kind=kind), every, observations)
    frozen = journal.event_of(id, "frozen")
    # A target that was refused has no hypotheses, so there is nothing to judge.
    as_frozen = (
        frozen is None or not known or (frozen["evidence"], frozen["hypothesis"]) == (outcome.answer, outcome.leader)
    )
    return Replay(
        id=id,
        rounds=len(rounds),
        different=tuple(different),
        answer=outcome.answer,
        leader=outcome.leader,
        frozen=as_frozen,
        broken=None,
        formulas=others,
    )


def fork(journal: Journal, id: str, *, step: int, seed: int | None = None) -> InvestigationRecord:
    """Copies an investigation's decisions before `step`, to be run with `investigate(..., fork=...)`.

    The copy has its own `seed` where one is given.
    """
    row = journal.row(id)
    steps = [decision["step"] for decision in journal.decisions(row["id"])]
    if not 0 <= step <= len(steps):
        raise NeuronautError(f"{row['id']} has {len(steps)} decisions; fork it at step 0 to {len(steps)}, not {step}")
    settings = {**row["settings"], "fork": [row["id"], step]}
    if seed is not None:
        settings["seed"] = seed
    new = InvestigationRecord(
        id=investigation_id(row["kind"], row["target"], row["policy"], settings),
        kind=row["kind"],
        target=row["target"],
        policy=row["policy"],
        settings=settings,
        provenance=row["provenance"],
        parent=row["id"],
    )
    journal.fork(row["id"], new, step=step)
    return new
