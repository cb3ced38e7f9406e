"""Shorten a rule without changing its predictions on the sample by much.

A tree splits causes that belong together: they fall into several clauses where one was found first, exceptions to
a clause only mark that another one was there, and each offset of "one of the last tokens" gets its own clause.
Shorter rules are tried one after another: without a clause or a condition, with two clauses in one, or with a
token looked for at several offsets at once. One is taken where it has no more counterexamples and its squared
error stays within a small tolerance. At last values become the means of the tokens that each clause decides.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .language import Clause, Condition, Rule, Token
from .sample import Sample
from .tree import WITHIN

TOLERANCE = 0.002
"""Relative rise in squared error that all changes together may cost."""
LONGEST = 24
"""Rules of more clauses than this are no candidates for reading and stay as they are."""


class Measure:
    """Measures rules on a sample: squared error on the tokens that weigh, and the pivots that are wrong."""

    def __init__(self, sample: Sample, pivots: NDArray[np.int64], *, text: int, half: float) -> None:
        """`pivots` are indices into the sample, whose first `text` tokens are no experiment's."""
        self._sample, self.half = sample, half
        weight = sample.weight + sample.check
        self._used = np.flatnonzero(weight > 0)
        self._weight, self.activation = weight[self._used].astype(np.float64), sample.activation[self._used]
        self._tokens = sample.tokens[0][self._used]
        self._pivots = np.searchsorted(self._used, pivots)
        self._active = self.activation[self._pivots] > half
        self._text = slice(0, int(np.searchsorted(self._used, text)))
        self._masks: dict[Condition, NDArray[np.bool_]] = {}

    def predict(self, rule: Rule) -> NDArray[np.float32]:
        """The rule's activation at every token that weighs."""
        best = np.full(len(self._used), -np.inf, np.float32)
        for clause in rule.any:
            at = self.matched(clause)
            best[at] = np.maximum(best[at], self._values(clause)[self._tokens[at]])
        best[np.isneginf(best)] = rule.floor
        return best

    def matched(self, clause: Clause) -> NDArray[np.int64]:
        """Where a clause holds."""
        matched = np.ones(len(self._used), np.bool_)
        for condition in clause.when:
            matched &= self._mask(condition)
        for condition in clause.unless:
            matched &= ~self._mask(condition)
        return np.flatnonzero(matched)

    def error(self, predicted: NDArray[np.float32]) -> float:
        """Squared error of predictions for the tokens that weigh."""
        return float((self._weight * (self.activation - predicted) ** 2).sum())

    def cost(self, rule: Rule) -> float:
        """Variance left unexplained in text, and the root of the share of pivots that are wrong."""
        predicted, at = self.predict(rule), self._text
        weight, true = self._weight[at], self.activation[at]
        constant = float((weight * (true - np.average(true, weights=weight)) ** 2).sum())
        unexplained = float((weight * (true - predicted[at]) ** 2).sum())
        return unexplained / max(constant, 1e-30) + float(self.wrong(rule, predicted).mean()) ** 0.5

    def wrong(self, rule: Rule, predicted: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which pivots a rule with these predictions puts on the wrong side of half the peak, (pivot,)."""
        return (predicted[self._pivots] > rule.fires_from(self.half)) != self._active

    def refit(self, rule: Rule) -> Rule:
        """The same conditions, with values that are the means of the tokens that the clause decides."""
        predicted, clauses = self.predict(rule), []
        for clause in rule.any:
            at = self.matched(clause)
            at = at[self._values(clause)[self._tokens[at]] >= predicted[at]]
            value = self._mean(at, clause.value)
            gains = {t: self._mean(at[np.isin(self._tokens[at], self._ids(t))], g) for t, g in clause.gains.items()}
            clauses.append(clause.model_copy(update={"value": value, "gains": gains}))
        return rule.model_copy(update={"any": tuple(clauses)})

    def _mean(self, at: NDArray[np.int64], otherwise: float) -> float:
        total = float(self._weight[at].sum())
        return float(f"{(self._weight[at] * self.activation[at]).sum() / total:.3g}") if total else otherwise

    def _mask(self, condition: Condition) -> NDArray[np.bool_]:
        if condition not in self._masks:
            self._masks[condition] = self._sample.holds(condition, self._used)
        return self._masks[condition]

    def _values(self, clause: Clause) -> NDArray[np.float32]:
        table = np.full(len(self._sample.vocabulary) + 1, clause.value, np.float32)
        for token, gain in clause.gains.items():
            table[self._ids(token)] = gain
        return table

    def _ids(self, token: str) -> list[int]:
        return self._sample.background.ids_of[token]


def shorten_rule(rule: Rule, measure: Measure) -> Rule:
    """Change a rule step by step to shorter ones that are as good as it, for as long as there is one."""
    if len(rule.any) > LONGEST:
        return rule
    predicted = measure.predict(rule)
    allowed = measure.error(predicted) * (1 + TOLERANCE) + 1e-9 * measure.error(np.zeros_like(predicted))
    wrong = int(measure.wrong(rule, predicted).sum())

    def is_good(candidate: Rule) -> bool:
        predicted = measure.predict(candidate)
        return int(measure.wrong(candidate, predicted).sum()) <= wrong and measure.error(predicted) <= allowed

    while (shorter := next(filter(is_good, _shorter_rules(rule)), None)) is not None:
        rule = shorter
    fitted = measure.refit(rule)
    return fitted if is_good(fitted) else rule


def _shorter_rules(rule: Rule) -> Iterator[Rule]:
    """Rules that are one change away, and shorter or of fewer clauses."""
    clauses = rule.any
    for i in range(len(clauses)):
        if len(clauses) > 1:
            yield rule.model_copy(update={"any": (*clauses[:i], *clauses[i + 1 :])})
    for i, clause in enumerate(clauses):
        for shorter in _fewer_conditions(clause):
            yield rule.model_copy(update={"any": (*clauses[:i], shorter, *clauses[i + 1 :])})
    for i, clause in enumerate(clauses):
        for j, other in enumerate(clauses):
            if i != j:
                rest = tuple(c for k, c in enumerate(clauses) if k not in (i, j))
                for joined in _join_clauses(clause, other):
                    candidate = rule.model_copy(update={"any": (joined, *rest)})
                    if candidate.length() <= rule.length():
                        yield candidate


def _fewer_conditions(clause: Clause) -> Iterator[Clause]:
    for condition in clause.unless:
        yield clause.model_copy(update={"unless": tuple(c for c in clause.unless if c is not condition)})
    for condition in clause.when:
        if len(clause.when) > 1:
            named = isinstance(condition, Token) and condition.is_current
            fewer = {"when": tuple(c for c in clause.when if c is not condition)}
            yield clause.model_copy(update=fewer | ({"gains": {}} if named else {}))


def _join_clauses(clause: Clause, other: Clause) -> Iterator[Clause]:
    """The clause with the other's tokens beside its own, or with a token of both at all of their offsets."""
    theirs = [c for c in other.when if isinstance(c, Token)]
    for mine in (c for c in clause.when if isinstance(c, Token)):
        for their in theirs:
            if mine.place == their.place:
                both = mine.model_copy(update={"any": tuple(dict.fromkeys((*mine.any, *their.any)))})
                named = mine.is_current
                gains = _join_gains(clause, other, mine, their) if named else None
                yield from _replace_condition(clause, mine, both, gains=gains)
            elif set(mine.any) == set(their.any) and mine.at < 0 and (their.at < 0 or their.within):
                for reach in WITHIN:
                    yield from _replace_condition(clause, mine, Token(any=mine.any, within=reach), gains=None)


def _replace_condition(clause: Clause, old: Token, new: Token, *, gains: dict[str, float] | None) -> Iterator[Clause]:
    """The clause with one condition replaced, without its exceptions and with them."""
    when = tuple(new if c is old else c for c in clause.when)
    for unless in dict.fromkeys(((), clause.unless)):
        yield clause.model_copy(
            update={"when": when, "unless": unless, "gains": clause.gains if gains is None else gains}
        )


def _join_gains(clause: Clause, other: Clause, mine: Token, their: Token) -> dict[str, float]:
    """Either clause's prediction by token; none where it is about the same for all."""
    gains = {token: other.gains.get(token, other.value) for token in their.any}
    gains |= {token: clause.gains.get(token, clause.value) for token in mine.any}
    return {} if max(gains.values()) - min(gains.values()) < 0.1 * max(map(abs, gains.values())) else gains
