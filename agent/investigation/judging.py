"""Verdicts: arithmetic on what was predicted and what was seen, and nothing else.

The odds of a rival move against those of the leader of the time by the log-likelihood ratio of the observed levels,
over the items on which the two differ; where these are more than EFFECTIVE, the ratio is scaled down to so many,
since items of one experiment are not independent. A hypothesis that is put up later does not count what was known
before: it enters ENTRY nats below the best rival of that time. Among equals the shorter leads.
An item that was measured before counts once. Whatever is said by anyone changes nothing here.

    supported       at least RESOLVED predictions, SILENCES of them on silence, odds above ODDS over every rival that
                    ever predicted otherwise, and the levels hit in at least HITS of the items (balanced over levels)
    no_explanation  the leader is "no pattern", after TESTED experiments at least
    open            anything else, which may be the end of an investigation
    refuted         of a single hypothesis: odds below 1/ODDS of the leader's
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.journal_values import Experiment, Observation
from .hypotheses import NULLS, Hypothesis
from .levels import EDGES, Forecast, base_rate, brier, forecast, levels_of
from .view import Rival, Status

RESOLVED, SILENCES, ODDS, HITS = 8, 3, 20.0, 0.75
TESTED = 4
"""Experiments after which "no pattern" may be the answer."""
EFFECTIVE = 6.0
"""Items of one experiment that count in full."""
ENTRY = log(10)
TELLING = 0.3
"""Total variation between two forecasts of an item from which on they differ."""

Answer = Literal["supported", "open", "no_explanation"]


@dataclass(slots=True)
class _Tally:
    """What a hypothesis has on record."""

    log_odds: float
    status: Status = "live"
    resolved: int = 0
    silences: int = 0
    briers: list[float] = field(default_factory=list)
    right: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    seen: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """Items by level that was seen: on how many the likeliest level was that one, and how many there were."""

    @property
    def hits(self) -> float | None:
        met = self.seen > 0
        return float((self.right[met] / self.seen[met]).mean()) if met.any() else None


class Verdict(NamedTuple):
    """What the evidence says as a whole."""

    answer: Answer
    leader: str | None
    """Name of the hypothesis with the highest odds."""
    reason: str
    alike: tuple[str, ...] = ()
    """Rivals that predicted the same throughout, so that nothing tells them from the leader."""


def counts_for_odds(experiment: Experiment, kind: str) -> bool:
    """Whether an experiment bears on the odds: responses of features, effects in behaviours. Effects of a feature are
    about its single causal claims (`claims`)."""
    return not experiment.survey and (experiment.design["readout"] == "response") == (kind == "feature")


def judge(
    hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment], observations: Mapping[str, Observation],
    *, kind: str,
) -> tuple[Rival, ...]:  # fmt: skip
    """How every hypothesis stands after all observations, the leader first, those that are out last."""
    tallies: dict[str, _Tally] = {}
    met: set[object] = set()
    first = _first(hypotheses, experiments)
    for name in hypotheses:
        if name in first:
            tallies[name] = _Tally(0.0)
    for experiment in experiments:
        for prediction in experiment.predictions:
            name = prediction.hypothesis
            if name not in tallies:
                tallies[name] = _Tally(_best(tallies) - ENTRY)
        values = _seen(experiment, observations)
        if values is not None and counts_for_odds(experiment, kind):
            new = _new(experiment, met)
            if new.any():
                _resolve(tallies, hypotheses, experiment, levels_of(values), new)
    for name in hypotheses:
        tallies.setdefault(name, _Tally((_best(tallies) if tallies else 0.0) - ENTRY))
    return _ranked(tallies, hypotheses)


def verdict(
    rivals: Sequence[Rival], experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> Verdict:
    """What the evidence says as a whole; `rivals` as `judge` ranks them."""
    live = [rival for rival in rivals if rival.status == "live"]
    if not live:
        return Verdict("open", None, "no hypothesis was put up")
    leader = live[0]
    alike = _alike(leader.name, experiments, observations)
    if leader.hypothesis.kind == "no_pattern":
        tested = sum(bool(e.predictions) and _seen(e, observations) is not None for e in experiments)
        if tested < TESTED:
            return Verdict("open", leader.name, f"only {tested} experiments were run, wanted {TESTED}", alike)
        return Verdict("no_explanation", leader.name, "nothing predicts better than the base rate", alike)
    others = [rival for rival in live[1:] if rival.name not in alike]
    lead = leader.log_odds - max((rival.log_odds for rival in others), default=float("-inf"))
    hits = leader.hits or 0.0
    faults = [
        f"only {leader.resolved} of its predictions are resolved, wanted {RESOLVED}" * (leader.resolved < RESOLVED),
        f"only {leader.silences} of them are on silence, wanted {SILENCES}" * (leader.silences < SILENCES),
        "no rival ever predicted otherwise" * (not others),
        f"its odds are {exp(min(lead, 20)):.3g} to 1 over {others[0].name if others else ''}, wanted {ODDS:g}"
        * (bool(others) and lead <= log(ODDS)),
        f"it hits the level in {hits:.2f} of the items, wanted {HITS}" * (hits < HITS),
    ]
    found = [fault for fault in faults if fault]
    return Verdict("open" if found else "supported", leader.name, "; ".join(found) or "it met every bar", alike)


def _seen(experiment: Experiment, observations: Mapping[str, Observation]) -> Sequence[float] | None:
    """The observed values; None where there are none."""
    observation = observations.get(experiment.name)
    return observation.result["values"] if observation is not None and observation.status == "ok" else None


def forecasts(experiment: Experiment, name: str) -> Forecast | None:
    """The distribution over levels that a hypothesis gave each item; None where it made no prediction."""
    said = next((p.expected for p in experiment.predictions if p.hypothesis == name), None)
    return None if said is None else forecast(said, experiment.base)


def telling(one: Forecast, other: Forecast) -> NDArray[np.bool_]:
    """The items on which two forecasts differ. Each (item, level) -> (item,)."""
    return np.abs(one - other).sum(axis=1) / 2 > TELLING


def expects_silence(expected: Sequence[float | None]) -> bool:
    """Whether silence is expected of at least half of the items."""
    silent = sum(value is not None and EDGES[0] <= value < EDGES[1] for value in expected)
    return 2 * silent >= len(expected) > 0


def base_of(
    experiments: Sequence[Experiment], observations: Mapping[str, Observation], readout: str
) -> tuple[float, ...]:
    """The base rate of levels among all that was seen of a readout."""
    counts = np.zeros(4)
    for experiment in experiments:
        values = _seen(experiment, observations)
        if values is not None and not experiment.survey and experiment.design["readout"] == readout:
            counts += np.bincount(levels_of(values), minlength=4)
    return tuple(round(share, 6) for share in base_rate(counts.tolist()))


def claims(
    hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> list[dict[str, Any]]:
    """Every claim about what a feature writes or reads, with what experiments saw: `hypothesis` (the first that makes
    it), `claim`, `item`, `expected`, `values` (by experiment name) and `verdict`: supported where every measurement
    agrees in level or is stronger in its direction, refuted where none does, mixed else, untested where there is none.
    What experiments saw of a claim has nothing to do with who makes it, nor with when the feature fires."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, hypothesis in hypotheses.items():
        for claim, sort, expected, named in (
            ("promotes", "token", 1.0, hypothesis.promotes),
            ("suppresses", "token", -1.0, hypothesis.suppresses),
            ("reads", "node", 1.0, hypothesis.reads),
        ):
            for what in named:
                if (claim, what) not in found:
                    values = _seen_of(sort, what, experiments, observations)
                    found[claim, what] = {
                        "hypothesis": name, "claim": claim, "item": what, "expected": expected, "values": values,
                        "verdict": _borne_out([value * expected >= EDGES[1] for value in values.values()]),
                    }  # fmt: skip
    return list(found.values())


def _borne_out(agreed: Sequence[bool]) -> str:
    return "untested" if not agreed else "supported" if all(agreed) else "mixed" if any(agreed) else "refuted"


def _seen_of(
    sort: str, what: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> dict[str, float]:
    """The value of an item in every experiment on effects that measured it."""
    values: dict[str, float] = {}
    for experiment in experiments:
        seen = _seen(experiment, observations)
        if seen is None or experiment.survey or experiment.design["readout"] != "effect":
            continue
        for item, value in zip(experiment.design["items"], seen, strict=True):
            if item.get("about", {}).get(sort) == what:
                values[experiment.name] = value
    return values


def _first(hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment]) -> set[str]:
    """The rivals of the first experiment, who begin level; all of them while there is none."""
    predicted = next((e.predictions for e in experiments if e.predictions), None)
    return set(hypotheses) if predicted is None else {prediction.hypothesis for prediction in predicted}


def _length(hypothesis: Hypothesis) -> int:
    """How much a hypothesis says, for choosing the shortest of equals."""
    return len(hypothesis.nodes) if hypothesis.rule is None else hypothesis.rule.length()


def _best(tallies: Mapping[str, _Tally]) -> float:
    return max(tally.log_odds for tally in tallies.values() if tally.status == "live")


def _new(experiment: Experiment, met: set[object]) -> NDArray[np.bool_]:
    """Which items were not measured before, and from now on were. A response is known by its window up to the pivot, an
    effect by what it is of and by the draw of prompts."""
    said, draw = [], experiment.args.get("prompts")
    for item in experiment.design["items"]:
        known = tuple(item["ids"][: item["pivot"] + 1]) or (draw, json.dumps(item["about"], sort_keys=True))
        said.append(known not in met)
        met.add(known)
    return np.array(said, np.bool_)


def _resolve(
    tallies: dict[str, _Tally], hypotheses: Mapping[str, Hypothesis], experiment: Experiment, seen: NDArray[np.int64],
    new: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Move the odds by what one experiment's new items showed."""
    seen, items = seen[new], np.arange(int(new.sum()))
    said = {p.hypothesis: forecast(p.expected, experiment.base)[new] for p in experiment.predictions}
    against = said.get(experiment.reference or "")
    for prediction in experiment.predictions:
        name, tally = prediction.hypothesis, tallies[prediction.hypothesis]
        mine = said[name]
        if against is not None and name != experiment.reference:
            differ = telling(mine, against)
            ratio = np.log(mine[items, seen] / against[items, seen])[differ].sum()
            tally.log_odds += float(ratio * min(1.0, EFFECTIVE / max(differ.sum(), 1)))
        expected = [value for value, fresh in zip(prediction.expected, new.tolist(), strict=True) if fresh]
        sure = np.array([value is not None for value in expected])
        if sure.any():
            tally.resolved += 1
            tally.silences += expects_silence(expected)
            tally.briers.append(brier(mine[sure], seen[sure]))
            np.add.at(tally.right, seen[sure], (mine.argmax(axis=1) == seen)[sure])
            np.add.at(tally.seen, seen[sure], 1)
    best = _best(tallies)
    for name, tally in tallies.items():
        if hypotheses[name].kind not in NULLS and tally.resolved > 1 and tally.log_odds < best - log(ODDS):
            tally.status = "refuted"


def _alike(leader: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]) -> tuple[str, ...]:
    """Rivals that predicted along with the leader and never differed from it on anything that bears on the odds."""
    met: dict[str, bool] = {}
    responses = any(e.predictions and e.design["readout"] == "response" for e in experiments)
    for experiment in experiments:
        mine = forecasts(experiment, leader)
        if mine is None or _seen(experiment, observations) is None:
            continue
        if not counts_for_odds(experiment, "feature" if responses else "behaviour"):
            continue
        for prediction in experiment.predictions:
            if prediction.hypothesis != leader:
                differs = bool(telling(mine, forecast(prediction.expected, experiment.base)).any())
                met[prediction.hypothesis] = met.get(prediction.hypothesis, False) or differs
    return tuple(name for name, differed in met.items() if not differed)


def _ranked(tallies: Mapping[str, _Tally], hypotheses: Mapping[str, Hypothesis]) -> tuple[Rival, ...]:
    live = {name: tally.log_odds for name, tally in tallies.items() if tally.status == "live"}
    top = max(live.values(), default=0.0)
    total = sum(exp(value - top) for value in live.values())
    rivals = [
        Rival(
            name, hypotheses[name], tally.status, round(tally.log_odds, 6),
            exp(tally.log_odds - top) / total if name in live else 0.0, tally.resolved, tally.silences, tally.hits,
            float(np.mean(tally.briers)) if tally.briers else None,
        )
        for name, tally in tallies.items()
    ]  # fmt: skip
    # Among equals a claim that says more than a null stands first, then the shorter, then the older one.
    order = list(hypotheses)

    def place(rival: Rival) -> tuple[bool, float, bool, int, int]:
        hypothesis = rival.hypothesis
        null = hypothesis.kind in NULLS
        return rival.status != "live", -rival.log_odds, null, _length(hypothesis), order.index(rival.name)

    return tuple(sorted(rivals, key=place))
