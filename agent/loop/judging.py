"""Verdicts: arithmetic on what was predicted and what was seen, and nothing else.

The odds of a rival move against those of the leader of the time by the log-likelihood ratio of the observed levels,
over the items on which the two differ; where these are more than EFFECTIVE, the ratio is scaled down to so many,
since items of one experiment are not independent. A forecast is taken for what came of such forecasts before: that of
a level is counted together, as CREDIT items, with the levels that were seen where the same rival expected this one. So
what is right about where a unit fires, and not about how strongly or how surely, is not beaten by the base rate. A
hypothesis that is put up later does not count what was known before: it enters ENTRY nats below the best rival of that
time. Among equals the shorter leads. An item that was measured before counts once. Whatever is said by anyone changes
nothing here.

Of a feature two questions are asked. What makes it fire, at half of its scale or more, is the cause, and the verdict
is on that; how strongly it fires is its grading, which may stay open while the cause is proven. Of a behaviour the
levels are all there is.

    supported       at least RESOLVED predictions, SILENCES of them on silence, odds above ODDS over every rival that
                    ever predicted another cause, and the cause hit in at least HITS of the items (balanced over those
                    that fired and those that did not; of a behaviour the level, balanced over levels)
    graded          of a supported cause: odds above ODDS over the rivals that graded it otherwise, too, and the levels
                    hit in at least HITS of the items (balanced over levels)
    no_explanation  the leader is "no pattern", after TESTED experiments at least
    open            anything else, which may be the end of an investigation
    refuted         of a single hypothesis: odds below 1/ODDS of the leader's
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from math import exp, log
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.store.journal_values import Experiment, Observation
from .hypotheses import NULLS, Hypothesis
from .levels import LEVELS, Forecast, balanced, base_rate, brier, expects_silence, fire_odds, fires, forecast, levels_of
from .view import Rival, Status, Term

FORMULA = "verdicts-3"
"""Names this arithmetic, with that of levels.py, in stored verdicts: another one may come to other verdicts."""
RESOLVED, SILENCES, ODDS, HITS = 8, 3, 20.0, 0.75
TESTED = 4
"""Experiments after which "no pattern" may be the answer."""
EFFECTIVE = 6.0
"""Items of one experiment that count in full."""
ENTRY = log(10)
TOLD = 1000
"""Odds to 1 above which they are not told as a number."""
CREDIT = 12.0
"""Items for which a forecast counts beside what came of such forecasts before."""
TELLING = 0.3
"""Total variation between two forecasts of an item from which on they differ."""
STRONG = LEVELS.index("strong")

Answer = Literal["supported", "open", "no_explanation"]


@dataclass(slots=True)
class _Tally:
    """What a hypothesis has on record."""

    log_odds: float
    prior: float = field(init=False)
    """The log odds at first; `terms` were added since."""
    terms: list[Term] = field(default_factory=list)
    status: Status = "live"
    resolved: int = 0
    silences: int = 0
    brier: float = 0.0
    """Sum over what is resolved."""
    right: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    seen: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """Items by level that was seen: on how many the likeliest level was that one, and how many there were."""
    came: NDArray[np.float64] = field(default_factory=lambda: np.zeros((4, 4)))
    """Items by the level it thought likeliest and by the one seen; those of one experiment are EFFECTIVE at most."""
    expected: list[float] = field(default_factory=list)
    fired: list[bool] = field(default_factory=list)
    """What it expected of each item that it had an opinion on, and whether that fired."""

    def __post_init__(self) -> None:
        self.prior = self.log_odds

    def copied(self) -> "_Tally":
        """One that moves on by itself; what the lists hold never changes."""
        own = copy(self)
        own.terms, own.expected, own.fired = self.terms.copy(), self.expected.copy(), self.fired.copy()
        own.right, own.seen, own.came = self.right.copy(), self.seen.copy(), self.came.copy()
        return own

    def add(self, term: Term) -> None:
        """Moves the odds."""
        self.log_odds += term.log_odds
        self.terms.append(term)

    def believed(self, forecasts: Forecast, expected: Sequence[float | None]) -> Forecast:
        """The forecasts together with what came of such before; where there was no opinion they stay."""
        before = self.came[forecasts.argmax(axis=1)]
        known = (CREDIT * forecasts + before) / (CREDIT + before.sum(axis=1, keepdims=True))
        sure = np.array([value is not None for value in expected])
        return np.where(sure[:, None], known, forecasts)

    def resolve(self, expected: Sequence[float], forecasts: Forecast, observed: NDArray[np.int64]) -> None:
        """Counts what was expected of some items, and seen."""
        self.resolved += 1
        self.brier += brier(forecasts, observed)
        likeliest = forecasts.argmax(axis=1)
        np.add.at(self.right, observed, likeliest == observed)
        np.add.at(self.seen, observed, 1)
        np.add.at(self.came, (likeliest, observed), min(1.0, EFFECTIVE / len(observed)))
        self.expected += expected
        self.fired += (observed == STRONG).tolist()

    @property
    def hits(self) -> float | None:
        met = self.seen > 0
        return float((self.right[met] / self.seen[met]).mean()) if met.any() else None

    @property
    def cause(self) -> float | None:
        """Balanced share of items that fire, and of those that do not, as it expects; None without one of both."""
        fired, said = np.array(self.fired, np.bool_), fires(self.expected, max(self.expected, default=0.0))
        return None if fired.all() or not fired.any() else balanced(said, fired)


class OddsUpdater:
    """Judges what was observed, experiment by experiment, and remembers those that nothing can change any more."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._tallies: dict[str, _Tally] = {}
        self._met: set[object] = set()
        """Items that were measured."""
        self._taken = 0

    def after(
        self,
        hypotheses: Mapping[str, Hypothesis],
        experiments: Sequence[Experiment],
        observations: Mapping[str, Observation],
    ) -> tuple[Rival, ...]:
        """The standing of every hypothesis after all observations: those of the last time, and later ones."""
        while self._taken < len(experiments) and experiments[self._taken].name in observations:
            self._take(experiments[self._taken], hypotheses, observations)
            self._taken += 1
        # What was not observed yet may be by the next time.
        ahead = self._copy() if self._taken < len(experiments) else self
        for experiment in experiments[self._taken :]:
            ahead._take(experiment, hypotheses, observations)
        return _rank(ahead._tallies, hypotheses, self._kind)

    def _copy(self) -> "OddsUpdater":
        ahead = OddsUpdater(self._kind)
        ahead._tallies = {name: tally.copied() for name, tally in self._tallies.items()}
        ahead._met = set(self._met)
        return ahead

    def _take(
        self, experiment: Experiment, hypotheses: Mapping[str, Hypothesis], observations: Mapping[str, Observation]
    ) -> None:
        # The rivals of the first experiment begin level.
        entry = _entry(self._tallies)
        for prediction in experiment.predictions:
            self._tallies.setdefault(prediction.hypothesis, _Tally(entry))
        values = observed_values(experiment, observations)
        if values is not None and counts_for_odds(experiment, self._kind):
            new = _mark_new(experiment, self._met)
            if new.any():
                self._resolve(hypotheses, experiment, levels_of(values, experiment.design["readout"]), new)

    def _resolve(
        self,
        hypotheses: Mapping[str, Hypothesis],
        experiment: Experiment,
        observed: NDArray[np.int64],
        new: NDArray[np.bool_],
    ) -> None:
        """Moves the odds by what one experiment's new items showed."""
        observed = observed[new]
        fresh = np.flatnonzero(new).tolist()
        expected = {p.hypothesis: [p.expected[item] for item in fresh] for p in experiment.predictions}
        forecasts_by_name = {name: forecast(values, experiment.base) for name, values in expected.items()}
        weighed = {
            name: self._tallies[name].believed(forecasts_by_name[name], values) for name, values in expected.items()
        }
        reference = experiment.reference or ""
        for name, mine in forecasts_by_name.items():
            tally = self._tallies[name]
            if reference in forecasts_by_name and name != reference:
                differ = differing_items(mine, forecasts_by_name[reference])
                if differ.any():
                    own, other = (weighed[side][differ] for side in (name, reference))
                    tally.add(_term(experiment.name, reference, own, other, observed[differ]))
            sure = np.array([value is not None for value in expected[name]])
            if sure.any():
                tally.silences += expects_silence(expected[name])
                values = [value for value in expected[name] if value is not None]
                tally.resolve(values, mine[sure], observed[sure])
        best = _best(self._tallies)
        for name, tally in self._tallies.items():
            if hypotheses[name].kind not in NULLS and tally.resolved > 1 and tally.log_odds < best - log(ODDS):
                tally.status = "refuted"


def _mark_new(experiment: Experiment, met: set[object]) -> NDArray[np.bool_]:
    """Which items were not met before; from now on they were.

    A response is known by its window up to the pivot, an effect by what it is of and by the draw of prompts.
    """
    new, draw = [], experiment.args.get("prompts")
    for item in experiment.design["items"]:
        item_key = tuple(item["ids"][: item["pivot"] + 1]) or (draw, json.dumps(item["about"], sort_keys=True))
        new.append(item_key not in met)
        met.add(item_key)
    return np.array(new, np.bool_)


def _term(experiment: str, against: str, mine: Forecast, other: Forecast, observed: NDArray[np.int64]) -> Term:
    """What the items on which two forecasts differ, all of them new, say of the one against the other."""
    items = np.arange(len(observed))
    weight = min(1.0, EFFECTIVE / len(items))
    (hits, expected), (other_hits, other_expected) = (
        (int((side.argmax(axis=1) == observed).sum()), float(side.max(axis=1).sum())) for side in (mine, other)
    )
    ratio = float(np.log(mine[items, observed] / other[items, observed]).sum())
    return Term(
        experiment=experiment,
        against=against,
        items=len(items),
        hits=hits,
        expected=expected,
        other_hits=other_hits,
        other_expected=other_expected,
        weight=weight,
        log_odds=ratio * weight,
    )


def _best(tallies: Mapping[str, _Tally]) -> float:
    return max(tally.log_odds for tally in tallies.values() if tally.status == "live")


def _entry(tallies: Mapping[str, _Tally]) -> float:
    """The log odds with which a hypothesis begins."""
    return _best(tallies) - ENTRY if tallies else 0.0


class Outcome(NamedTuple):
    """What the evidence says as a whole."""

    answer: Answer
    leader: str | None
    """Name of the hypothesis with the highest odds."""
    reason: str
    alike: tuple[str, ...] = ()
    """Rivals that predicted the same throughout, so that nothing tells them from the leader."""
    grading: str | None = None
    """Of a supported cause, why it is open how strongly it fires; None where it is not."""


def counts_for_odds(experiment: Experiment, kind: str) -> bool:
    """Whether an experiment bears on the odds: responses of features, effects in behaviours.

    Effects of a feature are about its single causal claims (controls.py).
    """
    return not experiment.survey and (experiment.design["readout"] == "response") == (kind == "feature")


def rank_rivals(
    hypotheses: Mapping[str, Hypothesis],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
    *,
    kind: str,
) -> tuple[Rival, ...]:
    """Ranks every hypothesis by all observations, the leader first, those that are out last."""
    return OddsUpdater(kind).after(hypotheses, experiments, observations)


def outcome_of(
    rivals: Sequence[Rival],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
    *,
    name: str | None = None,
) -> Outcome:
    """Sums the evidence up for one rival, for the leader without a name; `rivals` as `rank_rivals` ranks them."""
    live = [rival for rival in rivals if rival.status == "live"]
    if not live:
        return Outcome("open", None, "no hypothesis was put up")
    leader = next((rival for rival in rivals if rival.name == name), live[0])
    alike = _alike(leader.name, experiments, observations)
    if leader.hypothesis.kind == "no_pattern":
        tested = sum(bool(e.predictions) and observed_values(e, observations) is not None for e in experiments)
        if tested < TESTED:
            return Outcome("open", leader.name, f"only {tested} experiments were run, wanted {TESTED}", alike)
        return Outcome("no_explanation", leader.name, "nothing predicts better than the base rate", alike)
    is_feature = _is_of_feature(experiments)
    leads = {r.name: leader.log_odds - r.log_odds for r in live if r is not leader and r.name not in alike}
    graded = dict[str, float]()
    for other in list(leads) if is_feature else ():
        cause = cause_odds(leader.name, other, experiments, observations)
        if cause is None:
            graded[other] = leads.pop(other)
        else:
            leads[other] = max(leads[other], cause)
    faults = [
        f"only {leader.resolved} of its predictions are resolved, wanted {RESOLVED}" * (leader.resolved < RESOLVED),
        f"only {leader.silences} of them are on silence, wanted {SILENCES}" * (leader.silences < SILENCES),
        "no rival ever predicted otherwise" * (not leads),
        _too_close(leads),
        _too_few("cause", leader.cause) if is_feature else _too_few("level", leader.hits),
    ]
    if unmet := "; ".join(filter(None, faults)):
        return Outcome("open", leader.name, f"what makes it fire is open: {unmet}" if is_feature else unmet, alike)
    grading = "; ".join(filter(None, [_too_close(graded), _too_few("level", leader.hits)])) if is_feature else ""
    return Outcome("supported", leader.name, "it met every bar", alike, grading or None)


def _too_close(leads: Mapping[str, float]) -> str:
    """What is to be said where one of the others is too likely; the log odds over each."""
    nearest = min(leads, key=lambda name: leads[name], default=None)
    if nearest is None or (lead := leads[nearest]) > log(ODDS):
        return ""
    if lead < 0:
        odds = f"{exp(-lead):,.3g}" if lead > -log(TOLD) else f"over {TOLD:,}"
        return f"the odds are {odds} to 1 for {nearest}, wanted {ODDS:g} to 1 against it"
    return f"its odds are {exp(lead):.3g} to 1 over {nearest}, wanted {ODDS:g}"


def _too_few(what: str, hits: float | None) -> str:
    """What is to be said where this was hit too seldom."""
    if hits is None:
        return f"no item shows whether it hits the {what}"
    return f"it hits the {what} in {hits:.3f} of the items, wanted {HITS}" if hits < HITS else ""


def observed_values(experiment: Experiment, observations: Mapping[str, Observation]) -> Sequence[float] | None:
    """The observed values; None where there are none."""
    observation = observations.get(experiment.name)
    return observation.result["values"] if observation is not None and observation.status == "ok" else None


def forecasts(experiment: Experiment, name: str) -> Forecast | None:
    """The distribution over levels that a hypothesis gave each item; None where it made no prediction."""
    expected = next((p.expected for p in experiment.predictions if p.hypothesis == name), None)
    return None if expected is None else forecast(expected, experiment.base)


def differing_items(first: Forecast, second: Forecast) -> NDArray[np.bool_]:
    """The items on which two forecasts differ. Each (item, level) -> (item,)."""
    return np.abs(first - second).sum(axis=1) / 2 > TELLING


def observed_base_rate(
    experiments: Sequence[Experiment], observations: Mapping[str, Observation], readout: str
) -> tuple[float, ...]:
    """The base rate of levels among all observations of a readout."""
    counts = np.zeros(4)
    for experiment in experiments:
        values = observed_values(experiment, observations)
        if values is not None and not experiment.survey and experiment.design["readout"] == readout:
            counts += np.bincount(levels_of(values, experiment.design["readout"]), minlength=4)
    return tuple(round(share, 6) for share in base_rate(counts.tolist()))


def _length(hypothesis: Hypothesis) -> int:
    """How much a hypothesis says, for choosing the shortest of equals."""
    return len(hypothesis.nodes) if hypothesis.rule is None else hypothesis.rule.length()


def _is_of_feature(experiments: Sequence[Experiment]) -> bool:
    """Whether they ask about a feature: only of one are responses measured."""
    return any(e.predictions and e.design["readout"] == "response" for e in experiments)


def cause_odds(
    first: str, second: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> float | None:
    """The log odds of one cause of a feature over another, whatever levels go with them.

    Only new items count of which the two expect different things, as EFFECTIVE of an experiment at most. None where
    there are none.
    """
    met: set[object] = set()
    rows: list[tuple[Sequence[float], list[list[float | None]], NDArray[np.bool_]]] = []
    for experiment in experiments:
        values = observed_values(experiment, observations)
        if values is None or not counts_for_odds(experiment, "feature"):
            continue
        new = np.flatnonzero(_mark_new(experiment, met)).tolist()
        said = {p.hypothesis: p.expected for p in experiment.predictions}
        if first in said and second in said and new:
            fired = levels_of(values, experiment.design["readout"])[new] == STRONG
            rows.append((experiment.base, [[said[name][i] for i in new] for name in (first, second)], fired))
    highest = [max((v or 0.0 for _, both, _ in rows for v in both[side]), default=0.0) for side in (0, 1)]
    terms = []
    for base, both, fired in rows:
        ours, theirs = (fire_odds(*side, base) for side in zip(both, highest, strict=True))
        differ = np.abs(ours - theirs) > TELLING
        if differ.any():
            own, other = (np.where(fired, odds, 1 - odds)[differ] for odds in (ours, theirs))
            terms.append(float(np.log(own / other).sum()) * min(1.0, EFFECTIVE / int(differ.sum())))
    return sum(terms) if terms else None


def _alike(leader: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]) -> tuple[str, ...]:
    """Rivals that predicted along with the leader and never differed from it on anything that bears on the odds."""
    kind = "feature" if _is_of_feature(experiments) else "behaviour"
    differed: dict[str, bool] = {}
    for experiment in experiments:
        mine = forecasts(experiment, leader)
        if mine is None or observed_values(experiment, observations) is None:
            continue
        if not counts_for_odds(experiment, kind):
            continue
        for prediction in experiment.predictions:
            if prediction.hypothesis != leader:
                name, theirs = prediction.hypothesis, forecast(prediction.expected, experiment.base)
                differed[name] = differed.get(name, False) or bool(differing_items(mine, theirs).any())
    return tuple(name for name, apart in differed.items() if not apart)


def _rank(known: Mapping[str, _Tally], hypotheses: Mapping[str, Hypothesis], kind: str) -> tuple[Rival, ...]:
    tallies = {**known, **{name: _Tally(_entry(known)) for name in hypotheses if name not in known}}
    live = {name: tally.log_odds for name, tally in tallies.items() if tally.status == "live"}
    top = max(live.values(), default=0.0)
    total = sum(exp(value - top) for value in live.values())
    rivals = [
        Rival(
            name=name,
            hypothesis=hypotheses[name],
            status=tally.status,
            log_odds=round(tally.log_odds, 6),
            share=exp(tally.log_odds - top) / total if name in live else 0.0,
            resolved=tally.resolved,
            silences=tally.silences,
            hits=tally.hits,
            cause=tally.cause if kind == "feature" else None,
            brier=tally.brier / tally.resolved if tally.resolved else None,
            prior=tally.prior,
            terms=tuple(tally.terms),
        )
        for name, tally in tallies.items()
    ]
    # Among equals a claim that says more than a null stands first, then the shorter, then the older one.
    order = list(hypotheses)

    def place(rival: Rival) -> tuple[bool, float, bool, int, int]:
        hypothesis = rival.hypothesis
        null = hypothesis.kind in NULLS
        return rival.status != "live", -rival.log_odds, null, _length(hypothesis), order.index(rival.name)

    return tuple(sorted(rivals, key=place))
