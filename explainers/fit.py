"""How well a learned rule holds on what it was not learned from, beside a table of tokens: is there a pattern at all?

Two things are kept back. The documents that `rule` keeps for checking splits: the correlation of the rule with the
activation on their tokens. And a quarter of the measured windows, by the hash of their tokens: a second rule is
learned without them, and its agreement with them is the balanced accuracy of "above half the peak" on their pivots,
so that a rule that always says the same gets 0.5. The table is the mean of each token over what the rule was learned
from. A rule that needs many words and does little better than the table on either says no more than the table does.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .evaluate import TokenGrid, predict
from .observed import Observed
from .revise import revise
from .rules import Rule
from .sample import Sample
from .tree import Growth

QUARTER = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """What a rule is worth on what it was not learned from. None where a side is constant, or nothing is there."""

    kept: float | None
    """Pearson's r on the kept documents."""
    kept_table: float | None
    """The same of the token table."""
    observed_agreement: float | None
    """Balanced accuracy on the kept quarter of measured windows, by a rule learned without them."""
    observed_table: float | None
    """The same of the token table."""
    wrong: int
    """Measured pivots, of all, that the rule itself puts on the wrong side of half the peak."""
    observed: int
    """Measured pivots."""
    length: int
    """What the rule says, in conditions, tokens and gains."""


def fit(rule: Rule, sample: Sample, growth: Growth, observed: Observed, *, pivot_weight: float, half: float) -> Fit:
    """Hold a rule that was learned from a sample and measured windows against both, with a second learning."""
    natural = slice(0, sample.background.ids.size)
    kept = np.flatnonzero(sample.check[natural] > 0)
    true, codes = sample.activation[natural][kept], sample.background.ids.ravel()[kept]
    back = np.array([zlib.crc32(row.tobytes()) % QUARTER == 0 for row in observed.ids], np.bool_)
    shown, hidden = observed.only(~back), observed.only(back)
    table = _table(sample, shown)
    other = revise(sample, growth, shown, pivot_weight=pivot_weight, half=half)
    rows = np.nonzero(hidden.measured)
    active = hidden.activations[rows] > half
    # Where nothing stands out without them, all that is left to say is silence.
    told = predict(other, TokenGrid(sample.vocabulary, hidden.ids))[rows] > half if other else np.zeros_like(active)
    said = predict(rule, TokenGrid(sample.vocabulary, observed.ids))[observed.measured] > half
    return Fit(
        kept=_correlation(true, predict(rule, sample.background.grid).ravel()[kept]),
        kept_table=_correlation(true, table[codes]),
        observed_agreement=_balanced(active, told),
        observed_table=_balanced(active, table[hidden.ids[rows]] > half),
        wrong=int((said != (observed.activations[observed.measured] > half)).sum()),
        observed=len(observed), length=rule.length(),
    )  # fmt: skip


def _table(sample: Sample, observed: Observed) -> NDArray[np.float64]:
    """Mean activation by token id over what is learned from; the mean of all where a token never stands."""
    ids = np.concatenate([sample.tokens[0], observed.ids[observed.measured]])
    each = float(sample.weight.max())
    weight = np.concatenate([sample.weight, np.full(len(observed), each, np.float32)])
    values = np.concatenate([sample.activation, observed.activations[observed.measured]])
    size = len(sample.vocabulary) + 1
    sums, weights = np.bincount(ids, weight * values, size), np.bincount(ids, weight, size)
    return np.where(weights > 0, sums / np.maximum(weights, 1e-12), sums.sum() / weights.sum())


def _correlation(true: NDArray[np.floating], said: NDArray[np.floating]) -> float | None:
    if len(true) < 2 or not true.std() or not said.std():
        return None
    return round(float(np.corrcoef(true, said)[0, 1]), 4)


def _balanced(active: NDArray[np.bool_], said: NDArray[np.bool_]) -> float | None:
    if active.all() or not active.any():
        return None
    return round(float((said[active].mean() + (~said[~active]).mean()) / 2), 4)
