"""Grades of explanations of planted units, by the truth.

natural         balanced accuracy of "above half the unit's scale" on every token of natural windows
counterfactual  the headline: share of edited pivots (pairs.py), half of which flip the truth, predicted rightly
causes, exceptions, second meanings
                recall: on windows written for one of them, the share in which the rule is right both where it
                holds and where one part of it is taken back (for an exception: with and without it)
abstention      whether it abstained exactly where there is nothing to explain

An explanation without a rule is an abstention. Where there was something to explain it counts as counterfactual and
natural accuracy 0.5, which is chance, and as recall 0. Units without an answer have no accuracies.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from ...causal.measures import Mean, mean
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule
from ...scorers.metrics import CONSTANT, agreement
from .pairs import Pair, Target, at_pivots, counterfactuals, pair_accuracy
from .truth import LONGEST, Cause, Unit

CHANCE = 0.5
PROBES = 24
"""Windows written for each cause and each exception."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of one unit's explanation; None where the unit has nothing of the kind, or nothing was claimed."""

    unit: str
    kind: str
    level: int
    abstained: bool
    abstention_right: bool
    natural: float | None = None
    counterfactual: float | None = None
    causes: float | None = None
    exceptions: float | None = None
    second: float | None = None
    promoted: float | None = None
    """Jaccard index of the tokens claimed to be promoted with those that are."""
    suppressed: float | None = None
    upstream: bool | None = None
    """Whether exactly the heads and MLPs that matter were named."""
    pairs: int = 0
    tests: float | None = None
    """Share of unit tests passed, of functions (benchmarks/functions)."""


class Probe(NamedTuple):
    """A window in which the unit is active for one reason, and one in which that reason is taken away."""

    active: tuple[str, ...]
    place: int
    silent: tuple[str, ...]
    silent_place: int


class Grader:
    """Grades explanations of units; the same pairs and windows for every explainer."""

    def __init__(
        self, vocabulary: Sequence[str], windows: Sequence[Sequence[str]], *, each: int = 50, seed: int = 0
    ) -> None:
        """`windows` are natural ones of LONGEST tokens that no explainer saw; `vocabulary` are all of the tokens."""
        self._vocabulary = [token for token in vocabulary if not token.startswith("<")]
        self._windows = [window for window in windows if len(window) == LONGEST]
        self._grid, self._each, self._seed = TokenGrid.of(self._windows), each, seed
        self._pairs: dict[str, list[Pair]] = {}

    def grade(
        self,
        unit: Unit,
        rule: Rule | str | None,
        *,
        promoted: Iterable[str] | None = None,
        suppressed: Iterable[str] | None = None,
        upstream: Iterable[str] | None = None,
    ) -> Grade:
        """Grade a rule (None: an abstention) and whatever else is claimed of a unit.

        Promoted and suppressed are token strings with their spaces; upstream are heads "head.0:2" and MLPs
        "mlp_out.1".
        """
        rule = Rule.parse(rule) if isinstance(rule, str) else rule
        silent = rule is None
        base = Grade(
            unit.address,
            unit.kind,
            unit.level,
            silent,
            silent == unit.abstain,
            promoted=None if promoted is None else jaccard(promoted, unit.promotes),
            suppressed=None if suppressed is None else jaccard(suppressed, unit.suppresses),
            upstream=None if upstream is None else set(upstream) == set(unit.upstream),
        )
        if unit.abstain:
            return base
        natural, counterfactual = (CHANCE, CHANCE) if rule is None else self._accuracies(unit, rule)
        return replace(
            base,
            natural=natural,
            counterfactual=counterfactual,
            pairs=len(self.pairs(unit)),
            causes=self.recall(unit, rule, unit.causes),
            exceptions=self.recall(unit, rule, unit.exceptions),
            second=self.recall(unit, rule, unit.second),
        )

    def _accuracies(self, unit: Unit, rule: Rule) -> tuple[float | None, float | None]:
        truth = np.array([unit.truth(window) for window in self._windows], np.float32)
        measured = agreement(truth, predict(rule, self._grid), threshold=unit.half)
        natural = CHANCE if measured.reason == CONSTANT else measured.value
        pairs = self.pairs(unit)
        return natural, pair_accuracy(pairs, at_pivots(rule, pairs), half=unit.half) if pairs else None

    def pairs(self, unit: Unit) -> list[Pair]:
        """The unit's counterfactual pairs, which depend on the seed, the windows and the unit alone."""
        if unit.name not in self._pairs:
            target = Target.of(unit, self._vocabulary)
            self._pairs[unit.name] = counterfactuals(target, self._windows, each=self._each, seed=self._seed)
        return self._pairs[unit.name]

    def recall(self, unit: Unit, rule: Rule | None, causes: Sequence[Cause]) -> float | None:
        """Mean over causes or exceptions of the share of probes that the rule is right about; None without any."""
        by_cause = [probes for cause in causes if (probes := self.probes(unit, cause))]
        if not by_cause:
            return None
        return float(np.mean([0.0 if rule is None else _share_right(rule, probes, unit.half) for probes in by_cause]))

    def probes(self, unit: Unit, cause: Cause) -> list[Probe]:
        """Windows for one of the unit's causes or exceptions; the unit is active in the first, silent in the second."""
        rng = random.Random(f"{self._seed}:{unit.name}:{cause}")
        make = _without_exception if cause in unit.exceptions else _with_and_without
        tried = (make(unit, cause, list(rng.choice(self._windows)), rng) for _ in range(40 * PROBES))
        return list(islice((probe for probe in tried if probe is not None), PROBES))


def jaccard(claimed: Iterable[str], true: Iterable[str]) -> float:
    """The Jaccard index of two sets; 1 where both are empty."""
    first, second = set(claimed), set(true)
    return len(first & second) / len(first | second) if first | second else 1.0


def _with_and_without(unit: Unit, cause: Cause, tokens: list[str], rng: random.Random) -> Probe | None:
    """The cause alone written into a window, and one of the tokens that this took put back."""
    place = rng.choice(cause.places) if cause.places else rng.randrange(LONGEST)
    written, rest = list(tokens), [other for other in unit.causes if other != cause]
    if not cause.write(written, place, rng) or unit.at(written, place) <= unit.half or _holds_any(rest, written, place):
        return None
    undone, there = list(written), place
    changed = [at for at in range(LONGEST) if written[at] != tokens[at]]
    if changed:
        back = rng.choice(changed)
        undone[back] = tokens[back]
    else:
        there = rng.randrange(LONGEST)
    return None if unit.at(undone, there) > 0 else Probe(tuple(written), place, tuple(undone), there)


def _without_exception(unit: Unit, exception: Cause, tokens: list[str], rng: random.Random) -> Probe | None:
    """A window with a cause, and the same with the exception written into it."""
    place, cause = rng.randrange(LONGEST), rng.choice(unit.causes)
    if not cause.write(tokens, place, rng) or unit.at(tokens, place) <= unit.half:
        return None
    silenced = list(tokens)
    if not exception.write(silenced, place, rng) or unit.at(silenced, place) > 0:
        return None
    if not _holds_any([cause], silenced, place):
        return None
    return Probe(tuple(tokens), place, tuple(silenced), place)


def _holds_any(causes: Sequence[Cause], tokens: Sequence[str], place: int) -> bool:
    words = [token.strip() for token in tokens]
    return any(cause.holds(words, place) for cause in causes)


def _share_right(rule: Rule, probes: Sequence[Probe], half: float) -> float:
    """The share of probes whose two windows are both predicted rightly."""
    rows = np.arange(len(probes))
    active = predict(rule, TokenGrid.of([probe.active for probe in probes]))[rows, [probe.place for probe in probes]]
    silent = predict(rule, TokenGrid.of([probe.silent for probe in probes]))
    silent = silent[rows, [probe.silent_place for probe in probes]]
    return float(((active > half) & (silent <= half)).mean())


METRICS: Mapping[str, Callable[[Grade], float | None]] = {
    "tests": lambda grade: grade.tests,
    "counterfactual": lambda grade: grade.counterfactual,
    "natural": lambda grade: grade.natural,
    "causes": lambda grade: grade.causes,
    "exceptions": lambda grade: grade.exceptions,
    "second": lambda grade: grade.second,
    "promoted": lambda grade: grade.promoted,
    "suppressed": lambda grade: grade.suppressed,
    "upstream": lambda grade: grade.upstream,
}
_IN_TABLE = ("counterfactual", "natural", "causes", "exceptions", "second")


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over units with 95% bootstrap intervals, and counts of abstentions."""

    units: int
    """Units with an answer."""
    means: dict[str, Mean]
    """By metric, over the units that have it."""
    abstained_rightly: int
    abstain: int
    """Units without an answer, of which so many were abstained on."""
    abstained_wrongly: int


def summary(grades: Sequence[Grade], *, seed: int = 0) -> Summary:
    """Summarise the grades, all together."""
    answered = [grade for grade in grades if grade.abstention_right != grade.abstained]
    means: dict[str, Mean] = {}
    for metric, value_of in METRICS.items():
        values = [float(value) for grade in grades if (value := value_of(grade)) is not None]
        if values:
            means[metric] = mean(values, seed=seed)
    return Summary(
        len(answered),
        means,
        sum(grade.abstained and grade.abstention_right for grade in grades),
        len(grades) - len(answered),
        sum(grade.abstained and not grade.abstention_right for grade in grades),
    )


def table(grades: Sequence[Grade]) -> str:
    """A Markdown table, a line a level."""
    lines = [
        "| level | units | counterfactual | natural | causes | exceptions | second meanings | abstained rightly "
        "| wrongly |",
        "|--:|" + "--:|" * 8,
    ]
    for level in sorted({grade.level for grade in grades}):
        at_level = summary([grade for grade in grades if grade.level == level])
        cells = [_cell(at_level.means.get(metric)) for metric in _IN_TABLE]
        lines.append(
            f"| {level} | {at_level.units} | {' | '.join(cells)} "
            f"| {at_level.abstained_rightly} of {at_level.abstain} | {at_level.abstained_wrongly} |"
        )
    return "\n".join(lines)


def _cell(value: Mean | None) -> str:
    if value is None:
        return "–"
    interval = f" ({value.interval.low:.3f}–{value.interval.high:.3f})" if value.interval else ""
    return f"{value.value:.3f}{interval}"
