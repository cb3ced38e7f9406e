"""Grow a small tree of token conditions that predicts one feature's activation.

Best first: of all leaves' splits, the one that removes most squared error is made, as long as it also
helps on documents kept from fitting. A leaf predicts its mean, or, once it names its current
tokens, the mean of each (drawn towards the leaf's by a few tokens' weight). Candidate splits are sets
of tokens at an offset (chosen by ordering tokens by their mean residual, which is optimal for squared
error), one of the last tokens, ranges of positions, and the rule language's classes and states.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .language import Class, Condition, Position, Token
from .sample import Sample

LONGEST_PERIOD = 8
"""The longest period of "every so-manyth position" splits."""
WITHIN = (4, 8)
"""Reaches, in tokens, of the "one of the last tokens" splits."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Limits of a tree."""

    leaves: int = 14
    set_size: int = 24
    """Tokens in one set."""
    min_gain: float = 0.002
    """A split must remove this fraction of the root's squared error."""
    min_rows: int = 3
    """A split's smaller side must hold in this many windows."""
    prior: float = 4.0
    """Weight with which a token's mean is drawn towards its leaf's."""
    evidence: float = 2.0
    """Standard errors by which a context token's mean residual must differ from zero; half of it for current tokens."""
    positions: bool = True
    """Whether a split may be on the position in the window."""
    brevity: float = 0.004
    """Fraction of its gain that a split loses for each token it names beyond the first, or for not being named."""


@dataclass(slots=True, eq=False)
class Leaf:
    """A region of the sample: all `when` conditions hold, none of `unless`."""

    at: NDArray[np.int64]
    """Indices of its tokens in the sample."""
    predicted: NDArray[np.float32]
    """Its predictions for them, same shape."""
    when: tuple[Condition, ...] = ()
    unless: tuple[Condition, ...] = ()
    named: bool = False
    """Whether its current tokens are named, so that each may have its own value."""
    best: "Split | None" = None


@dataclass(frozen=True, slots=True)
class Split:
    """A condition that parts a leaf."""

    condition: Condition | None
    """None where nothing is worth a split."""
    gain: float
    """Squared error that it removes, less the cost of its length."""


class _View:
    """One leaf's tokens, residuals and weights, gathered once for all candidate splits."""

    def __init__(self, sample: Sample, leaf: Leaf, growth: Growth) -> None:
        self.sample, self.leaf, self.growth = sample, leaf, growth
        self.weight = sample.weight[leaf.at].astype(np.float64)
        self.weighted = self.weight * (sample.activation[leaf.at].astype(np.float64) - leaf.predicted)
        self.mass, self.total = float(self.weight.sum()), float(self.weighted.sum())
        self.spread = self.weighted**2  # what is known exactly adds no uncertainty to a sum
        if sample.exact is not None:
            self.spread[sample.exact[leaf.at]] = 0

    def candidates(self) -> Iterator[Split]:
        """All splits of the leaf that are tried."""
        for offset in self.sample.offsets:
            yield from self._token_sets(offset)
        yield from self._conditions()
        if self.growth.positions:
            yield from self._positions()
            if not self.leaf.when and not self.leaf.unless:  # in a part of the text a period is soon found by chance
                yield from self._periods()
        if self.leaf.named:
            for ahead in (False, True) if self.sample.both_sides else (False,):
                for reach in WITHIN:
                    yield from self._recent(reach, ahead=ahead)
                yield from self._earlier(ahead=ahead)

    def _token_sets(self, offset: int) -> Iterator[Split]:
        if offset == 0 and self.leaf.named:
            return
        size = len(self.sample.used) + 1
        ids = self.sample.codes[offset][self.leaf.at]
        weights: NDArray[np.float64] = np.bincount(ids, self.weight, size).astype(np.float64)
        sums: NDArray[np.float64] = np.bincount(ids, self.weighted, size).astype(np.float64)
        errors = np.sqrt(np.bincount(ids, self.spread, size))
        sums[np.abs(sums) < self.growth.evidence * (1.0 if offset else 0.5) * errors] = 0
        weights[-1] = 0  # "before the window" is no token
        for sign in (1, -1) if offset else (1,):
            chosen = _best_set(weights, sign * sums, self.growth, own_values=offset == 0)
            if len(chosen):
                inside, part = float(weights[chosen].sum()), float(sums[chosen].sum())
                gain = float(self._gain(inside, part))
                if offset == 0:  # each token will have its own value
                    prior = self.growth.prior
                    gain += float((sums[chosen] ** 2 / (weights[chosen] + prior)).sum()) - part**2 / (inside + prior)
                yield self._split(Token(any=self._names(chosen), at=offset), gain)

    def _recent(self, reach: int, *, ahead: bool) -> Iterator[Split]:
        """One of the tokens at offsets -1 to -reach, or 1 to reach: the best one, then up to three that add to it."""
        size = len(self.sample.used) + 1
        offsets = range(1, reach + 1) if ahead else range(-1, -reach - 1, -1)
        columns = np.stack([self.sample.neighbours(self.leaf.at, offset) for offset in offsets])
        sums = np.bincount(columns.ravel(), np.tile(self.weighted, reach), size)
        masses = np.bincount(columns.ravel(), np.tile(self.weight, reach), size)
        errors = np.sqrt(np.bincount(columns.ravel(), np.tile(self.spread, reach), size))
        masses[(np.abs(sums) < self.growth.evidence * errors)] = 0
        masses[-1] = 0
        for sign in (1, -1):
            worth = np.where((sign * sums > 0) & (masses > 0), sums**2 / (masses + self.growth.prior), 0)
            tokens = [int(i) for i in np.argsort(-worth)[:8] if worth[i] > 0]
            names: list[int] = []
            mask, best = np.zeros(len(self.leaf.at), bool), 0.0
            while tokens and len(names) < 4:
                grown = {token: mask | (columns == token).any(axis=0) for token in tokens}
                gains = {t: float(self._gain(self.weight[m].sum(), self.weighted[m].sum())) for t, m in grown.items()}
                token = max(gains, key=lambda t: gains[t])
                if gains[token] <= 1.05 * best:
                    break
                names, mask, best = [*names, token], grown[token], gains[token]
                tokens.remove(token)
            if names:
                found = self._names(names)
                yield self._split(Token(any=found, after=reach) if ahead else Token(any=found, within=reach), best)

    def _earlier(self, *, ahead: bool) -> Iterator[Split]:
        """A token that stands anywhere earlier, or later: of all, the one that removes most in either direction."""
        size, width = len(self.sample.used) + 1, self.sample.own.ids.shape[1]
        rows, places = np.unique(self.sample.rows[self.leaf.at], return_inverse=True)
        own = places * width + self.sample.positions[self.leaf.at]
        once = (self.sample.lasts if ahead else self.sample.firsts).reshape(-1, width)[rows]
        ids = self.sample.codes[0].reshape(-1, width)[rows][once]
        sums, masses, spread = (
            np.bincount(ids, _beyond(values, own, once.shape, ahead=ahead)[once], size).astype(np.float64, copy=False)
            for values in (self.weighted, self.weight, self.spread)
        )
        gains = self._gain(masses, sums)
        gains[np.abs(sums) < self.growth.evidence * np.sqrt(np.maximum(spread, 0))] = 0
        gains[-1] = 0
        for sign in (1, -1):
            signed = np.where(sign * sums > 0, gains, 0)
            token = int(np.argmax(signed))
            if signed[token] > 0:
                names = self._names([token])
                condition = Token(any=names, after="any") if ahead else Token(any=names, within="any")
                yield self._split(condition, float(signed[token]))

    def _conditions(self) -> Iterator[Split]:
        own = {*self.leaf.when, *self.leaf.unless}
        values = np.stack([self.weight, self.weighted], axis=1).astype(np.float32)
        inside, part = self.sample.boolean_sums(self.leaf.at, values).astype(np.float64).T
        for condition, gain in zip(self.sample.conditions, self._gain(inside, part).tolist(), strict=True):
            named = self.leaf.named and isinstance(condition, Class) and condition.is_current
            if condition not in own and not named:
                yield self._split(condition, gain)

    def _positions(self) -> Iterator[Split]:
        positions = self.sample.positions[self.leaf.at]
        weights, sums = (
            np.concatenate([[0], np.bincount(positions, values).cumsum()]) for values in (self.weight, self.weighted)
        )
        gains = np.triu(self._gain(weights[None, :] - weights[:, None], sums[None, :] - sums[:, None]), 1)
        first, end = (int(i) for i in np.unravel_index(np.argmax(gains), gains.shape))
        if first < end and (first, end) != (0, len(weights) - 1):
            last = None if end == len(weights) - 1 else end - 1
            yield self._split(Position(span=(first, last)), float(gains[first, end]))

    def _periods(self) -> Iterator[Split]:
        """Every so-manyth position, of each period the phase that removes most."""
        positions = self.sample.positions[self.leaf.at]
        for every in range(2, min(LONGEST_PERIOD, (int(positions.max(initial=0)) + 1) // 3) + 1):
            mass, part = (
                np.bincount(positions % every, values).astype(np.float64) for values in (self.weight, self.weighted)
            )
            gains = self._gain(mass, part)
            first = int(np.argmax(gains))
            yield self._split(Position(span=(first, None), every=every), float(gains[first]))

    def _gain(self, inside: float | NDArray[np.float64], part: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared error removed by giving a part of the leaf and the rest their own means.

        The part has the weight `inside` and the weighted residual `part`. Works on arrays; 0 where a side is empty.
        """
        prior = self.growth.prior
        outside = self.mass - inside
        gain = part**2 / (np.maximum(inside, 0) + prior) + (self.total - part) ** 2 / (np.maximum(outside, 0) + prior)
        return np.where((inside > 0) & (outside > 1e-6 * self.mass), gain - self.total**2 / (self.mass + prior), 0.0)

    def _names(self, ids: NDArray[np.int64] | list[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.sample.vocabulary[self.sample.used[i]] for i in ids))

    def _split(self, condition: Condition, gain: float) -> Split:
        length = len(condition.any) - 1 if isinstance(condition, Token) else 1  # a token says more than its class
        return Split(condition, gain * (1 - self.growth.brevity * length))


def _beyond(
    values: NDArray[np.float64], at: NDArray[np.int64], shape: tuple[int, ...], *, ahead: bool
) -> NDArray[np.float64]:
    """For every token the sum of the values of those to which it stands earlier, or with `ahead` later, in its window.

    values (n,) at flat places -> (window, token).
    """
    windows = np.zeros(shape)
    windows.ravel()[at] = values
    so_far = windows.cumsum(axis=1)
    return so_far - windows if ahead else windows.sum(axis=1, keepdims=True) - so_far


def _best_set(
    weights: NDArray[np.float64], sums: NDArray[np.float64], growth: Growth, *, own_values: bool
) -> NDArray[np.int64]:
    """The tokens whose separation from the rest removes most squared error, strongest first.

    With `own_values` each token will have its own mean, so tokens are taken by what each removes;
    otherwise they share one, so they are taken by mean, and the best prefix of that order is kept.
    """
    worth = np.where((sums > 0) & (weights > 0), sums**2 / (weights + growth.prior), 0)
    order = np.argsort(-worth)[: growth.set_size]
    order = order[worth[order] > 0.01 * worth.sum()] if own_values else order[worth[order] > 0.02 * worth[order[0]]]
    if len(order) == 0:
        return order
    order = order[np.argsort(-sums[order] / (weights[order] + growth.prior), kind="stable")]
    if own_values:
        return order
    inside_weight, inside = weights[order].cumsum() + growth.prior, sums[order].cumsum()
    outside_weight, outside = weights.sum() + 2 * growth.prior - inside_weight, sums.sum() - inside
    return order[: int(np.argmax(inside**2 / inside_weight + outside**2 / outside_weight)) + 1]


def grow(sample: Sample, growth: Growth) -> list[Leaf]:
    """Grow the tree; the leaves cover the sample and share no token."""
    used = np.flatnonzero((sample.weight > 0) | (sample.check > 0))
    root = Leaf(used, _fit(sample, used, named=False, growth=growth))
    least = growth.min_gain * _error(sample, root, sample.weight)
    leaves = [root]
    while len(leaves) < growth.leaves:
        for leaf in leaves:
            if leaf.best is None:
                leaf.best = _best_split(sample, leaf, growth, least)
        chosen = max(leaves, key=lambda leaf: leaf.best.gain if leaf.best else 0.0)
        if chosen.best is None or chosen.best.condition is None:
            break
        leaves.remove(chosen)
        leaves += _children(sample, chosen, chosen.best.condition, growth)
    return leaves


def _best_split(sample: Sample, leaf: Leaf, growth: Growth, least: float) -> Split:
    """The split of most gain that holds in enough windows and helps on the documents kept back."""
    candidates = [split for split in _View(sample, leaf, growth).candidates() if split.gain > least]
    for split in sorted(candidates, key=lambda split: -split.gain)[:4]:
        assert split.condition is not None
        children = _children(sample, leaf, split.condition, growth)
        smaller = min(children, key=lambda child: len(child.at))
        if not _witnessed(sample, smaller, growth):
            continue
        if sum(_error(sample, child, sample.check) for child in children) <= _error(sample, leaf, sample.check):
            return split
    return Split(None, 0.0)


def _witnessed(sample: Sample, leaf: Leaf, growth: Growth) -> bool:
    """Whether a leaf stands in enough windows, or an experiment was made for one of its tokens."""
    if sample.exact is not None and sample.exact[leaf.at].any():
        return True
    return len(np.unique(sample.rows[leaf.at])) >= growth.min_rows


def _children(sample: Sample, leaf: Leaf, condition: Condition, growth: Growth) -> tuple[Leaf, Leaf]:
    mask = sample.holds(condition, leaf.at)
    named = leaf.named or names_current(condition)
    inside, outside = leaf.at[mask], leaf.at[~mask]
    return (
        Leaf(inside, _fit(sample, inside, named=named, growth=growth), (*leaf.when, condition), leaf.unless, named),
        Leaf(
            outside,
            _fit(sample, outside, named=leaf.named, growth=growth),
            leaf.when,
            (*leaf.unless, condition),
            leaf.named,
        ),
    )


def names_current(condition: Condition) -> bool:
    """Whether a condition names the current token."""
    return isinstance(condition, Token) and condition.is_current


def _fit(sample: Sample, at: NDArray[np.int64], *, named: bool, growth: Growth) -> NDArray[np.float32]:
    """The leaf's prediction for each of its tokens."""
    weight, activation = sample.weight[at].astype(np.float64), sample.activation[at]
    total = weight.sum()
    mean = float((weight * activation).sum() / total) if total else 0.0
    if not named:
        return np.full(len(at), mean, np.float32)
    ids = sample.codes[0][at]
    size = len(sample.used) + 1
    sums, weights = np.bincount(ids, weight * activation, size), np.bincount(ids, weight, size)
    return ((sums + growth.prior * mean) / (weights + growth.prior))[ids].astype(np.float32)


def _error(sample: Sample, leaf: Leaf, weight: NDArray[np.float32]) -> float:
    return float((weight[leaf.at] * (sample.activation[leaf.at] - leaf.predicted) ** 2).sum(dtype=np.float64))
