"""Looks for the clause that adds most to those chosen so far, and takes from it what does not hold on tune.

A trial is a clause beside those chosen: a head (the current token, or the one before it, as exact tokens, words,
beginnings, endings or classes), a context that the tree found, or both, and what climbing made of the best of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .affixes import Family
from .ground import Fitted, Ground, sum_by, weighted_mean
from .language import Class, Clause, Condition, Inside, Position, Regex, Rule, Token
from .telling import cut_set
from .tree import names_current

TRIED = 24
"""Clauses that are tried, best first, until one holds on tune."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a clause costs, and what it must earn."""

    word: float = 0.002
    """Fraction of all variance that a word of a clause must explain."""
    sure: float = 1.0
    """Standard errors over documents by which a part must lower the error on tune."""
    members: int = 6
    """Tokens in one set that share a value."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A clause beside those chosen so far."""

    clause: Clause
    at: NDArray[np.int64]
    """Tokens that it matches."""
    gain: float
    """Squared error that it removes in each document when fitted on the others, as a fraction of all variance."""
    score: float
    """The gain less what its words cost."""


@dataclass(slots=True, eq=False)
class State:
    """The clauses chosen so far and what they predict."""

    ground: Ground
    clauses: list[Clause] = field(default_factory=list)
    best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """The highest value of the clauses that match, minus infinity where none does, (N,)."""
    floor: float = 0.0

    def fit(self, clauses: Sequence[Clause], weight: NDArray[np.float64]) -> None:
        """Take these clauses, with the means of the tokens that each decides as values."""
        ground, y = self.ground, self.ground.activation
        at = [ground.matched(clause) for clause in clauses]
        fits = [ground.fit(clause, a, weight) for clause, a in zip(clauses, at, strict=True)]
        for _ in range(3):
            best = _highest(at, [fitted.values for fitted in fits], len(y))
            for i, a in enumerate(at):
                decided = a[best[a] <= fits[i].values]
                refitted = ground.fit(fits[i].clause, decided, weight)
                fits[i] = Fitted(refitted.clause, ground.values(refitted.clause, a))
        self.best = _highest(at, [fitted.values for fitted in fits], len(y))
        self.floor = weighted_mean(y, np.where(np.isneginf(self.best), weight, 0), 0.0)
        self.clauses = [_rounded(fitted.clause) for fitted in fits]

    @property
    def predicted(self) -> NDArray[np.float64]:
        """The rule's prediction for every token, (N,)."""
        return np.where(np.isneginf(self.best), self.floor, self.best)

    @property
    def rule(self) -> Rule:
        """The clauses as a rule."""
        return Rule(any=tuple(self.clauses), floor=_round(self.floor))


def _rounded(clause: Clause) -> Clause:
    gains = {token: _round(gain) for token, gain in clause.gains.items()}
    return clause.model_copy(update={"value": _round(clause.value), "gains": gains})


def _highest(at: Sequence[NDArray[np.int64]], values: Sequence[NDArray[np.float64]], size: int) -> NDArray[np.float64]:
    best = np.full(size, -np.inf)
    for where, value in zip(at, values, strict=True):
        best[where] = np.maximum(best[where], value)
    return best


def _round(value: float) -> float:
    return float(f"{value:.3g}")


class Search:
    """Looks for the clause that adds most to those chosen so far."""

    def __init__(self, ground: Ground, state: State, contexts: Sequence[Clause], limits: Limits) -> None:
        self.ground, self.state, self.limits = ground, state, limits
        self._contexts = contexts
        self._pool = _pool(contexts, ground.conditions)
        self._base = state.predicted
        free = np.isneginf(state.best)
        self._free = free
        self._free_weight = np.where(free, ground.weight, 0)
        self._free_sum = self._free_weight * ground.activation
        self._rest = float(self._free_weight.sum()), float(self._free_sum.sum())
        self._loss = ground.weight * (ground.activation - self._base) ** 2
        self._weighted = ground.weight * (ground.activation - self._base)

    def best(self) -> Iterator[Trial]:
        """The clauses that add most for their length, best first."""
        everywhere = np.arange(len(self.ground.activation))
        seeds = self._heads(Clause(value=0.0), everywhere)
        for context in self._contexts:
            region = self.ground.within(context, everywhere)
            if context.when or context.unless:
                seeds += [self.trial(context, region)]
                seeds += self._heads(context, region)
        for condition in self._pool:
            seeds.append(self.trial(Clause(when=(condition,), value=0.0), everywhere[self.ground.mask(condition)]))
        found = {key_of(trial.clause): trial for trial in seeds if trial is not None}
        ranked = sorted(found.values(), key=lambda trial: -trial.score)
        climbed = {key_of(trial.clause): trial for trial in (*map(self._climb, ranked[:2]), *ranked[:TRIED])}
        return iter(sorted(climbed.values(), key=lambda trial: -trial.score))

    def trial(self, clause: Clause, at: NDArray[np.int64]) -> Trial | None:
        """What a clause that matches these tokens adds; None where it predicts no more than the floor, or no firing."""
        fitted = self._decide(clause, at, self.ground.weight)
        if fitted is None:
            return None
        decided, fit = fitted
        weight, y = self.ground.weight[decided], self.ground.activation[decided]
        predicted = self.ground.left_out(fit.clause, decided)
        predicted = np.where(np.isnan(predicted), self._base[decided], predicted)
        gain = float(self._loss[decided].sum() - (weight * (y - predicted) ** 2).sum())
        rest = self._rest[0] - float(self._free_weight[decided].sum())
        if rest > 0:
            mean = (self._rest[1] - float(self._free_sum[decided].sum())) / rest
            gain += rest * (self.state.floor - mean) ** 2
        gain /= self.ground.variance
        return Trial(fit.clause, at, gain, gain - self.limits.word * _cost(clause))

    def _decide(
        self, clause: Clause, at: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], Fitted] | None:
        """Of the tokens that a clause matches, those that it decides, and the clause fitted on them."""
        first = self.ground.fit(clause, at, weight)
        free = self.state.best[at] < first.values
        decided = at[free]
        if not weight[decided].any():
            return None
        fit = first if free.all() else self.ground.fit(first.clause, decided, weight)
        return (decided, fit) if fit.clause.value > max(self.state.floor, 0.0) else None

    def proves(self, clause: Clause, at: NDArray[np.int64], without: Trial | None = None) -> bool:
        """Whether a clause lowers the error on tune beyond noise, against none, or against one that matches others."""
        ground = self.ground
        loss = self._tune_gain(clause, at)
        if loss is None:
            return False
        other = self._tune_gain(without.clause, without.at) if without is not None else None
        gains = loss - other if other is not None else loss
        fired = at[at >= ground.split] - ground.split
        if len(np.unique(ground.rows[fired])) < 2:
            return False
        sums = np.bincount(ground.documents, gains)
        error = float(np.sqrt(((sums - sums.mean()) ** 2).sum() * len(sums) / max(len(sums) - 1, 1)))
        return float(sums.sum()) > self.limits.sure * error

    def _tune_gain(self, clause: Clause, at: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Error removed at each tune token by a clause whose value is fitted on train, (tune token,)."""
        ground = self.ground
        fitted = self._decide(clause, at, ground.train_weight)
        if fitted is None:
            return None
        decided, fit = fitted
        late = decided >= ground.split
        decided, value = decided[late], fit.values[late]
        gains = np.zeros(len(ground.weight) - ground.split)
        y = ground.activation[decided]
        gains[decided - ground.split] = ground.weight[decided] * ((y - self._base[decided]) ** 2 - (y - value) ** 2)
        return gains

    # Heads

    def _heads(self, context: Clause, region: NDArray[np.int64]) -> list[Trial | None]:
        """Trials of the context with the current token named, or the one before it."""
        trials: list[Trial | None] = []
        free = self._weighted * self._free
        for offset in (o for o in self.ground.offsets if abs(o) <= 1) if not context.when else (0,):
            for condition in self._sets(region, offset, free[region], +1):
                trials.append(self._with(context, condition, region))
        return trials

    def _with(self, clause: Clause, condition: Condition, region: NDArray[np.int64]) -> Trial | None:
        longer = clause.model_copy(update={"when": (condition, *clause.when)})
        return self.trial(longer, region[self.ground.holds(condition, region)])

    def _sets(
        self, region: NDArray[np.int64], offset: int, weighted: NDArray[np.float64], sign: int
    ) -> Iterator[Condition]:
        """Sets of each family's members at an offset whose weighted residuals (region's token,) stand out."""
        ids = self.ground.tokens[offset][region]
        sums, masses = (sum_by(ids, part, self.ground.size) for part in (sign * weighted, self.ground.weight[region]))
        masses[-1] = sums[-1] = 0
        worth = np.maximum(self.ground.worth(offset, region, sign * weighted), 0)
        worth[-1] = 0
        for family in self.ground.families:
            if abs(offset) > 1 and family.name != "token":
                continue
            size = len(family.members) + 1
            part, mass, held = (sum_by(family.codes, values, size) for values in (sums, masses, worth))
            part[-1] = mass[-1] = 0
            yield from self._members(family, part, mass, held, offset)

    def _members(
        self,
        family: Family,
        sums: NDArray[np.float64],
        masses: NDArray[np.float64],
        worth: NDArray[np.float64],
        offset: int,
    ) -> Iterator[Condition]:
        """Growing sets of one family, each the last one with the member that adds most; all share one value.

        `worth` is what each member removes in documents other than those it was seen in.
        """
        prior = self.ground.prior
        order = np.argpartition(-worth, min(40, len(worth) - 1))[:40]
        order = order[worth[order] > 0]
        if family.name == "token" and offset == 0:
            yield from self._own_values(family, order, worth)
            return
        chosen: list[int] = []
        part, mass = 0.0, prior
        most = self.limits.members if family.name in ("token", "word") else 3
        while len(order) and len(chosen) < most:
            gains = (part + sums[order]) ** 2 / (mass + masses[order])
            pick = int(np.argmax(gains))
            if gains[pick] <= part**2 / mass + self.limits.word * self.ground.variance / 2:
                break
            member = int(order[pick])
            chosen.append(member)
            part, mass = part + sums[member], mass + masses[member]
            order = np.delete(order, pick)
            if len(chosen) in (1, 2, 4, most):
                condition = family.condition([family.members[i] for i in chosen], at=offset)
                if condition is not None:
                    taken = np.zeros(len(family.members) + 1, np.bool_)
                    taken[chosen] = True
                    self.ground.learn_table(condition, taken[family.codes])
                    yield condition

    def _own_values(self, family: Family, order: NDArray[np.int64], worth: NDArray[np.float64]) -> Iterator[Condition]:
        """Growing sets of current tokens, each of which has its own value."""
        order = order[np.argsort(-worth[order], kind="stable")]
        order = order[worth[order] > self.limits.word * self.ground.variance]
        for count in (1, 2, 3, 4, 5, 6, 8, 10):
            if count > len(order):
                return
            yield Token(any=tuple(family.members[i] for i in order[:count]))

    # Climbing

    def _climb(self, trial: Trial) -> Trial:
        """Add conditions and exceptions, or leave some out, for as long as that is worth its words."""
        for _ in range(4):
            best = max(self._changes(trial), key=lambda changed: changed.score, default=trial)
            if best.score <= trial.score:
                break
            trial = best
        return trial

    def _changes(self, trial: Trial) -> Iterator[Trial]:
        clause, region = trial.clause, trial.at
        residual = self.ground.weight[region] * (self.ground.activation[region] - self.ground.values(clause, region))
        changed: list[Trial | None] = []
        if len(clause.when) < 3:
            for condition in self._promising(clause, region, residual, +1):
                changed.append(self._with(clause, condition, region))
        if len(clause.unless) < 2:
            for condition in self._promising(clause, region, residual, -1):
                longer = clause.model_copy(update={"unless": (*clause.unless, condition)})
                changed.append(self.trial(longer, region[~self.ground.holds(condition, region)]))
        changed += [self.trial(shorter, self.ground.matched(shorter)) for shorter in _shorter(clause)]
        return (one for one in changed if one is not None)

    def _promising(
        self, clause: Clause, region: NDArray[np.int64], residual: NDArray[np.float64], sign: int
    ) -> list[Condition]:
        """Of all conditions, those on which the activation differs most from the clause's prediction."""
        weight, prior = self.ground.weight[region], self.ground.prior
        ranked: list[tuple[float, Condition]] = []
        taken = {*clause.when, *clause.unless}
        for condition in chain(self._pool, self._more(region, residual, sign)):
            if condition not in taken:
                held = self.ground.holds(condition, region)
                part, mass = sign * float(residual[held].sum()), float(weight[held].sum())
                if part > 0:
                    ranked.append(
                        (
                            part**2 / (mass + prior) - _length(condition) * self.limits.word * self.ground.variance,
                            condition,
                        )
                    )
        ranked.sort(key=lambda pair: -pair[0])
        return [condition for _, condition in ranked[:5]]

    def _more(self, region: NDArray[np.int64], residual: NDArray[np.float64], sign: int) -> list[Condition]:
        return [
            condition
            for offset in self.ground.offsets
            if offset or sign < 0
            for condition in self._sets(region, offset, residual, sign)
        ]

    def shortened(self, trial: Trial) -> Trial | None:
        """The best clause with one token of a set, one condition or one exception less that proves itself."""
        fewer = chain(_shorter(trial.clause), _fewer_members(trial.clause))
        trials = (self.trial(clause, self.ground.matched(clause)) for clause in fewer)
        proven = (t for t in trials if t is not None and self.proves(t.clause, t.at))
        return max(proven, key=lambda t: t.score, default=None)

    def prune(self, trial: Trial) -> Trial | None:
        """The clause without the parts that do not prove themselves on tune; None where it itself does not."""
        clause, at = trial.clause, trial.at
        while True:
            fewer = (self.trial(shorter, self.ground.matched(shorter)) for shorter in _shorter(clause))
            needless = [t for t in fewer if t is not None and not self.proves(clause, at, t)]
            if not needless:
                break
            best = max(needless, key=lambda t: t.score)
            clause, at = best.clause, best.at
        return self.trial(clause, at) if self.proves(clause, at) else None


def _shorter(clause: Clause) -> Iterator[Clause]:
    """The clause without one of its conditions or exceptions; one condition stays."""
    for condition in clause.unless:
        yield clause.model_copy(update={"unless": tuple(c for c in clause.unless if c is not condition)})
    for condition in clause.when if len(clause.when) > 1 else ():
        yield clause.model_copy(update={"when": tuple(c for c in clause.when if c is not condition)})


def _fewer_members(clause: Clause) -> Iterator[Clause]:
    """The clause with a set of tokens one token shorter."""
    for part in ("when", "unless"):
        conditions: tuple[Condition, ...] = getattr(clause, part)
        for i, condition in enumerate(conditions):
            if isinstance(condition, Token) and len(condition.any) > 1:
                for member in condition.any:
                    less = condition.model_copy(update={"any": tuple(t for t in condition.any if t != member)})
                    yield clause.model_copy(update={part: (*conditions[:i], less, *conditions[i + 1 :])})


def key_of(clause: Clause) -> tuple[tuple[Condition, ...], tuple[Condition, ...]]:
    """What makes a clause the same as another: its conditions and exceptions, whatever the values."""
    return clause.when, clause.unless


def _cost(clause: Clause) -> int:
    """About how many words a clause takes."""
    return sum(_length(condition) for condition in (*clause.when, *clause.unless))


def _length(condition: Condition) -> int:
    match condition:
        case Token():
            return len(condition.any) + (0 if condition.is_current else 2)
        case Regex():
            return 2 + condition.pattern.count("|") + (0 if condition.is_current else 2)
        case Class():
            return 1 + (0 if condition.is_current else 2)
        case Inside():
            return 2
        case _:
            return 5


def _pool(contexts: Iterable[Clause], plain: Iterable[Condition]) -> tuple[Condition, ...]:
    """Conditions that clauses are tried with: those of the contexts, and those without a parameter to fit."""
    learned = (c for clause in contexts for c in (*clause.when, *clause.unless))
    return tuple(dict.fromkeys((*learned, *plain)))


def find_contexts(long: Rule | None) -> list[Clause]:
    """What the clauses of a long rule require around the current token, with exceptions and without, each once."""
    found: dict[tuple[tuple[Condition, ...], tuple[Condition, ...]], None] = {}
    for clause in long.any if long is not None else ():
        around = tuple(cut_set(c) for c in clause.when if not names_current(c) and not _is_nearly_everywhere(c))
        unless = tuple(cut_set(c) for c in clause.unless)[:2]
        for key in ((around, unless), (around, ()), (around[:1], ())):
            if key[0] or key[1]:
                found[key] = None
    return [Clause(when=when, unless=unless, value=0.0) for when, unless in found]


def _is_nearly_everywhere(condition: Condition) -> bool:
    """Whether it only leaves out the first few tokens of a window."""
    if not isinstance(condition, Position) or condition.every > 1:
        return False
    first, last = condition.span
    return last is None and first <= 4
