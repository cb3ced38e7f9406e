"""The tokens that clauses are chosen on: those of train and of tune, what conditions hold there, and fits to them.

Values are means: of all tokens that a clause matches, or of each current token that it names, drawn towards that mean.
What a value is worth is measured in each document when it is fitted on the others.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .affixes import Family
from .evaluate import predict
from .language import Clause, Condition, Regex, Rule, Token
from .sample import Sample


class Ground:
    """The tokens of train and of tune that weigh, side by side. N tokens, of U distinct ids that have codes."""

    def __init__(
        self,
        train: Sample,
        tune: Sample,
        documents: tuple[NDArray[np.int64], NDArray[np.int64]],
        families: Sequence[Family],
        *,
        prior: float = 4.0,
    ) -> None:
        """`documents` numbers the document of every token of train, and of tune: equal ones are the same document.

        `prior` is the weight with which a token's mean is drawn towards its clause's.
        """
        self.prior = prior
        self._samples = (train, tune)
        weights = [sample.weight + sample.check for sample in self._samples]
        self._used = [np.flatnonzero(weight > 0) for weight in weights]
        self.activation = self._join(*(sample.activation for sample in self._samples)).astype(np.float64)
        self.weight = self._join(*weights).astype(np.float64)
        self.split = len(self._used[0])
        self.train_weight = np.where(np.arange(len(self.weight)) < self.split, self.weight, 0)
        groups = self._join(*documents)
        self.documents = np.unique(groups[self.split :], return_inverse=True)[1]
        self._groups = np.unique(groups, return_inverse=True)[1]
        self._group_count = int(self._groups.max()) + 1
        self.rows = tune.rows[self._used[1]]
        used = np.union1d(train.used, tune.used)
        self.size = len(used) + 1
        self._codes = np.full(len(train.vocabulary) + 1, len(used), np.int32)
        self._codes[used] = np.arange(len(used))
        self.families = [family.only(used) for family in families]
        self._masks: dict[Condition, NDArray[np.bool_]] = {}
        self._tables: dict[tuple[str, ...] | str, NDArray[np.bool_]] = {}
        self._pairs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        mean = np.average(self.activation, weights=self.weight)
        self.variance = float((self.weight * (self.activation - mean) ** 2).sum())

    def _join(self, train: NDArray, tune: NDArray) -> NDArray:
        return np.concatenate([train[self._used[0]], tune[self._used[1]]])

    @cached_property
    def tokens(self) -> dict[int, NDArray[np.int32]]:
        """Codes of tokens by offset, U outside of the window; each (N,)."""
        return {
            offset: self._codes[self._join(*(sample.tokens[offset] for sample in self._samples))]
            for offset in self.offsets
        }

    @property
    def offsets(self) -> tuple[int, ...]:
        """At which tokens may matter, nearest first."""
        return self._samples[0].offsets

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those without a parameter to fit."""
        return self._samples[0].conditions

    def predict_tune(self, rule: Rule) -> NDArray[np.float64]:
        """A rule's prediction for every tune token, (tune token,)."""
        tune = self._samples[1]
        whole = np.concatenate([predict(rule, windows.grid).ravel() for windows in (tune.background, tune.own)])
        return whole[self._used[1]].astype(np.float64)

    def mask(self, condition: Condition) -> NDArray[np.bool_]:
        """Where a condition holds, (N,)."""
        if condition not in self._masks:
            self._masks[condition] = np.concatenate(
                [sample.holds(condition, used) for sample, used in zip(self._samples, self._used, strict=True)]
            )
        return self._masks[condition]

    def matched(self, clause: Clause) -> NDArray[np.int64]:
        """Where a clause holds, as indices."""
        return self.within(clause, np.arange(len(self.activation)))

    def within(self, clause: Clause, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where of these tokens a clause holds."""
        for condition in clause.when:
            at = at[self.holds(condition, at)]
        for condition in clause.unless:
            at = at[~self.holds(condition, at)]
        return at

    def fit(self, clause: Clause, at: NDArray[np.int64], weight: NDArray[np.float64]) -> "Fitted":
        """The clause with means of these tokens as value and, where it names several current tokens, as gains."""
        y, w = self.activation[at], weight[at]
        value = weighted_mean(y, w, clause.value)
        named = named_tokens(clause)
        if len(named) < 2:
            return Fitted(clause.model_copy(update={"value": value, "gains": {}}), np.full(len(at), value))
        slots = self._slots(named)[self.tokens[0][at]]
        mass = np.bincount(slots, w, len(named) + 1)
        sums = np.bincount(slots, w * y, len(named) + 1)
        means = (sums + self.prior * value) / (mass + self.prior)
        gains = {
            token: float(mean) if mass[i] > 0 else clause.gains.get(token, value)
            for i, (token, mean) in enumerate(zip(named, means[:-1], strict=True))
        }
        means[:-1] = [gains[token] for token in named]
        return Fitted(clause.model_copy(update={"value": value, "gains": gains}), means[slots])

    def left_out(self, clause: Clause, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """What a clause predicts for each of these tokens if it is fitted without the token's document, (at,).

        NaN where no other document has the token: without its own one it would not be in the clause.
        """
        w, groups, count = self.weight[at], self._groups[at], self._group_count
        weighted = w * self.activation[at]
        mass, sums = sum_by(groups, w, count), sum_by(groups, weighted, count)
        value = _mean_of_rest(sums, mass)
        named = named_tokens(clause)
        if len(named) < 2:
            return value[groups]
        keys = self._slots(named)[self.tokens[0][at]].astype(np.int64) * count + groups
        size = (len(named) + 1) * count
        mass, sums = (sum_by(keys, part, size).reshape(-1, count) for part in (w, weighted))
        rest = mass.sum(axis=1, keepdims=True) - mass
        drawn = (sums.sum(axis=1, keepdims=True) - sums + self.prior * value) / (rest + self.prior)
        return np.where(rest > 1e-9 * mass.sum(), drawn, np.nan).ravel()[keys]

    def worth(self, offset: int, region: NDArray[np.int64], weighted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared error that each token at an offset removes with a value learned without the document, (U + 1,).

        `weighted` are residuals times weights, (region's token,).
        """
        pairs, codes = self._document_pairs(offset)
        size = len(codes)
        sums, mass = (sum_by(pairs[region], part, size) for part in (weighted, self.weight[region]))
        all_sums, all_mass = (sum_by(codes, part, self.size) for part in (sums, mass))
        value = np.maximum((all_sums[codes] - sums) / (all_mass[codes] - mass + self.prior), 0)
        return sum_by(codes, 2 * value * sums - value**2 * mass, self.size)

    def _document_pairs(self, offset: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pair of code and document of every token (N,), and the code of every pair."""
        if offset not in self._pairs:
            keys = self.tokens[offset].astype(np.int64) * self._group_count + self._groups
            distinct, pairs = np.unique(keys, return_inverse=True)
            self._pairs[offset] = pairs, distinct // self._group_count
        return self._pairs[offset]

    def values(self, clause: Clause, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the clause predicts for tokens that it matches."""
        if not clause.gains:
            return np.full(len(at), clause.value)
        named = tuple(clause.gains)
        return np.array([*clause.gains.values(), clause.value])[self._slots(named)[self.tokens[0][at]]]

    def _slots(self, named: Sequence[str]) -> NDArray[np.int8]:
        """The place of every code among some tokens, their number for any other, (U + 1,)."""
        slots = np.full(self.size, len(named), np.int8)
        for place, token in enumerate(named):
            slots[self.codes_of(token)] = place
        return slots

    def holds(self, condition: Condition, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where of these tokens a condition holds."""
        if isinstance(condition, Token | Regex) and (table := self._table(condition)) is not None:
            return table[self.tokens[condition.at][at]]
        return self.mask(condition)[at]

    def _table(self, condition: Token | Regex) -> NDArray[np.bool_] | None:
        """Of which codes a condition on one token holds, (U + 1,); None where that is not known."""
        if condition.within or condition.after or condition.at not in self.tokens:
            return None
        key = _spelled(condition)
        if key not in self._tables and isinstance(condition, Token):
            table = np.zeros(self.size, np.bool_)
            for token in condition.any:
                table[self.codes_of(token)] = True
            self._tables[key] = table
        return self._tables.get(key)

    def learn_table(self, condition: Token | Regex, table: NDArray[np.bool_]) -> None:
        """Keep of which codes (U + 1,) a condition on one token holds."""
        self._tables[_spelled(condition)] = table

    def codes_of(self, token: str) -> list[int]:
        """The codes of the token ids that spell a string."""
        codes = self._codes[self._samples[0].background.ids_of[token]].tolist()
        return [code for code in codes if code < self.size - 1]


def sum_by(codes: NDArray[np.integer], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Sum of the values of each code, (size,)."""
    return np.bincount(codes, values, size).astype(np.float64, copy=False)


def _mean_of_rest(sums: NDArray[np.float64], mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of all groups but each, from every group's sum and mass (group,); NaN where there is no other."""
    rest = mass.sum() - mass
    return np.where(rest > 1e-9 * mass.sum(), (sums.sum() - sums) / np.maximum(rest, 1e-30), np.nan)


def _spelled(condition: Token | Regex) -> tuple[str, ...] | str:
    """What a condition on one token asks of its string."""
    return condition.any if isinstance(condition, Token) else f"{condition.of}: {condition.pattern}"


def named_tokens(clause: Clause) -> tuple[str, ...]:
    """The current tokens that a clause names."""
    return next((c.any for c in clause.when if isinstance(c, Token) and c.is_current), ())


class Fitted(NamedTuple):
    """A clause with fitted values, and what it predicts for the tokens it was fitted on."""

    clause: Clause
    values: NDArray[np.float64]


def weighted_mean(values: NDArray[np.float64], weight: NDArray[np.float64], otherwise: float) -> float:
    """The mean of values by weight; `otherwise` where there is no weight."""
    total = float(weight.sum())
    return float((weight * values).sum()) / total if total > 0 else otherwise
