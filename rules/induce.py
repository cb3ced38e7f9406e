"""From a tree's leaves to a short rule.

Leaves that predict next to nothing become the rule's floor; every other leaf becomes a clause. Then
conditions, and whole clauses, are left out one after another for as long as the squared error of
the rule on its sample stays within a small tolerance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from .language import Clause, Condition, Rule, Token
from .sample import Sample
from .tree import Leaf, names_current

QUIET = 0.04
"""A leaf whose value is within this fraction of the value range above the lowest leaf belongs to the floor."""
TOLERANCE = 0.002
"""Relative rise in squared error that all simplifications together may cost."""
SMALL_SET = 8
"""Single members are dropped from sets of up to so many tokens."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A clause under simplification, with its values per token of the sample."""

    when: tuple[Condition, ...]
    unless: tuple[Condition, ...]
    value: float
    gains: dict[str, float]


def induce(sample: Sample, leaves: list[Leaf]) -> Rule | None:
    """The rule of a tree's leaves; None where no leaf stands out from the floor."""
    means = [_mean(sample, leaf) for leaf in leaves]
    lowest, highest = min(means), max(float(leaf.predicted.max()) for leaf in leaves)
    quiet = lowest + QUIET * (highest - lowest)
    loud = [leaf for leaf, mean in zip(leaves, means, strict=True) if mean > quiet and len(leaf.at)]
    if not loud or len(leaves) == 1:
        return None
    rest = [leaf for leaf, mean in zip(leaves, means, strict=True) if mean <= quiet]
    mass = [float(sample.weight[leaf.at].sum()) for leaf in rest]
    floor = float(np.average([_mean(sample, leaf) for leaf in rest], weights=mass)) if sum(mass) else lowest
    drafts = [_draft(sample, leaf, floor, quiet) for leaf in loud]
    simple = _simplify(sample, [draft for draft in drafts if draft is not None], floor)
    clauses = sorted(
        (_clause(draft) for draft in simple), key=lambda clause: -max(clause.value, *clause.gains.values(), -1e30)
    )
    return Rule(any=tuple(clauses), floor=_round(floor)) if clauses else None


def _mean(sample: Sample, leaf: Leaf) -> float:
    weight = sample.weight[leaf.at]
    total = float(weight.sum())
    return float((weight * leaf.predicted).sum() / total) if total else float("inf")


def _draft(sample: Sample, leaf: Leaf, floor: float, quiet: float) -> _Draft | None:
    """A leaf as a clause; named tokens that stay at the floor are left out."""
    value = _mean(sample, leaf)
    if not leaf.named:
        return _Draft(leaf.when, leaf.unless, value, {})
    sets = [set(c.any) for c in leaf.when if isinstance(c, Token) and names_current(c)]
    allowed = set.intersection(*sets)
    ids, first = np.unique(sample.tokens[0][leaf.at], return_index=True)
    gains = {
        sample.vocabulary[i]: float(leaf.predicted[j])
        for i, j in zip(ids.tolist(), first.tolist(), strict=True)
        if sample.vocabulary[i] in allowed and leaf.predicted[j] > quiet
    }
    if not gains:
        return None
    names = tuple(sorted(gains, key=lambda token: -gains[token]))
    others = tuple(c for c in leaf.when if not names_current(c))
    spread = max(gains.values()) - min(gains.values())
    alike = spread < 0.2 * (max(gains.values()) - floor)
    return _Draft((Token(any=names), *others), leaf.unless, value, {} if alike else gains)


class _Fit:
    """Squared error of drafts on the sample; a change of one draft is costed on the tokens that it matches alone."""

    def __init__(self, sample: Sample, drafts: list[_Draft], floor: float) -> None:
        self._sample, self._floor = sample, np.float32(floor)
        weight = sample.weight + sample.check
        self._used = np.flatnonzero(weight > 0)
        self._weight, self._activation = weight[self._used], sample.activation[self._used]
        self._tokens = sample.tokens[0][self._used]
        self._masks: dict[Condition, NDArray[np.bool_]] = {}
        self.drafts = drafts
        self._predictions = [self._predict(draft) for draft in drafts]

    def without(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """The prediction of all drafts but one, its loss per token, and the sum of that."""
        others = self._predictions[:i] + self._predictions[i + 1 :]
        best = np.full(len(self._used), -np.inf, np.float32)
        for prediction in others:
            np.maximum(best, prediction, out=best)
        loss = self._loss(slice(None), best)
        return best, loss, float(loss.sum(dtype=np.float64))

    def error(self, draft: _Draft, others: tuple[NDArray[np.float32], NDArray[np.float32], float]) -> float:
        """Squared error of the others and this draft together."""
        best, loss, total = others
        matched, values = self._matches(draft)
        joined = self._loss(matched, np.maximum(best[matched], values))
        return total + float((joined - loss[matched]).sum(dtype=np.float64))

    def replace(self, i: int, draft: _Draft) -> None:
        """Put another draft in the place of one."""
        self.drafts[i], self._predictions[i] = draft, self._predict(draft)

    def remove(self, i: int) -> None:
        """Leave one draft out."""
        del self.drafts[i], self._predictions[i]

    def _loss(self, at: slice | NDArray[np.int64], predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        filled = np.where(np.isneginf(predicted), self._floor, predicted)
        return self._weight[at] * (self._activation[at] - filled) ** 2

    def _predict(self, draft: _Draft) -> NDArray[np.float32]:
        predicted = np.full(len(self._used), -np.inf, np.float32)
        matched, values = self._matches(draft)
        predicted[matched] = values
        return predicted

    def _matches(self, draft: _Draft) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens that a draft matches, and its prediction for them."""
        matched = np.ones(len(self._used), bool)
        for condition in draft.when:
            matched &= self._mask(condition)
        for condition in draft.unless:
            matched &= ~self._mask(condition)
        at = np.flatnonzero(matched)
        table = np.full(len(self._sample.vocabulary) + 1, draft.value, np.float32)
        for token, gain in draft.gains.items():
            table[self._sample.background.ids_of[token]] = gain
        return at, table[self._tokens[at]]

    def _mask(self, condition: Condition) -> NDArray[np.bool_]:
        if condition not in self._masks:
            self._masks[condition] = self._sample.holds(condition, self._used)
        return self._masks[condition]


def _simplify(sample: Sample, drafts: list[_Draft], floor: float) -> list[_Draft]:
    """Leave out clauses, conditions and members of sets, weakest clause first, within the tolerated error."""
    fit = _Fit(sample, sorted(drafts, key=lambda draft: draft.value), floor)
    if not drafts:
        return drafts
    allowed = fit.error(fit.drafts[0], fit.without(0)) * (1 + TOLERANCE)
    i = 0
    while i < len(fit.drafts):
        others = fit.without(i)
        if len(fit.drafts) > 1 and others[2] <= allowed:
            fit.remove(i)
            i = 0  # conditions that this clause made necessary elsewhere may be gone, too
            continue
        draft = fit.drafts[i]
        for shorten in (*_drop_conditions(draft), *_drop_members(draft)):
            shorter = shorten(draft)
            if shorter is not None and fit.error(shorter, others) <= allowed:
                draft = shorter
        if draft is not fit.drafts[i]:
            fit.replace(i, draft)
        i += 1
    return fit.drafts


_Shorten = Callable[[_Draft], _Draft | None]
"""From a draft to a shorter one; None where there is nothing left to drop."""


def _drop_conditions(draft: _Draft) -> Iterator[_Shorten]:
    """Ways to leave out a condition, exceptions first."""
    for exception in draft.unless:
        yield partial(_drop_exception, exception=exception)
    for condition in draft.when:
        yield partial(_drop_condition, condition=condition)


def _drop_exception(draft: _Draft, exception: Condition) -> _Draft | None:
    return replace(draft, unless=tuple(c for c in draft.unless if c != exception)) if draft.when else None


def _drop_condition(draft: _Draft, condition: Condition) -> _Draft | None:
    when = tuple(c for c in draft.when if c != condition)
    gains = {} if names_current(condition) else draft.gains
    return replace(draft, when=when, gains=gains) if when else None


def _drop_members(draft: _Draft) -> Iterator[_Shorten]:
    """Ways to leave single tokens out of small sets: a set of causes may hold one that only comes along with them."""
    for exception, member in _members(draft.unless):
        yield partial(_drop_exception_member, exception=exception, member=member)
    for condition, member in _members(draft.when):
        yield partial(_drop_condition_member, condition=condition, member=member)


def _members(conditions: Iterable[Condition]) -> Iterator[tuple[Token, str]]:
    """The small sets of tokens, each with each of its tokens."""
    for condition in conditions:
        if isinstance(condition, Token) and 1 < len(condition.any) <= SMALL_SET:
            for member in condition.any:
                yield condition, member


def _drop_exception_member(draft: _Draft, exception: Token, member: str) -> _Draft | None:
    unless = _without_member(draft.unless, exception, member)
    return None if unless is None else replace(draft, unless=unless)


def _drop_condition_member(draft: _Draft, condition: Token, member: str) -> _Draft | None:
    when = _without_member(draft.when, condition, member)
    if when is None:
        return None
    gains = {t: g for t, g in draft.gains.items() if t != member or not names_current(condition)}
    return replace(draft, when=when, gains=gains)


def _without_member(conditions: Sequence[Condition], whole: Token, member: str) -> tuple[Condition, ...] | None:
    """The conditions with a token left out of what remains of a set; None where no other token would remain."""
    remaining = next((c for c in conditions if _is_part(c, whole)), None)
    if remaining is None or len(remaining.any) == 1:
        return None
    fewer = remaining.model_copy(update={"any": tuple(token for token in remaining.any if token != member)})
    return tuple(fewer if c is remaining else c for c in conditions)


def _is_part(condition: Condition, whole: Token) -> TypeGuard[Token]:
    """Whether a condition is what remains of a set of tokens."""
    return isinstance(condition, Token) and condition.place == whole.place and set(condition.any) <= set(whole.any)


def _clause(draft: _Draft) -> Clause:
    gains = {token: _round(gain) for token, gain in draft.gains.items()}
    return Clause(when=draft.when, unless=draft.unless, value=_round(draft.value), gains=gains)


def _round(value: float) -> float:
    """Three significant digits: more would be noise in a rule that a person reads."""
    return float(f"{value:.3g}")
