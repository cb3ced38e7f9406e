"""A rule from background, examples, interventions and what experiments measured: induction guided by counterexamples.

1. Measured pivots join the sample. Each counts as much as one of the explainer's own interventions, all of them
   together at most `SHARE` of the sample. They are facts and not a sample of text: a split needs neither several
   windows nor several standard errors where measured pivots ask for it, and none of them is kept from fitting.
2. A tree is grown and a rule induced, as without experiments.
3. The pivots, measured or of the explainer's own edits, that the rule puts on the wrong side of half the peak are
   its counterexamples. Their weight is raised `RAISE`-fold, and 2 and 3 are repeated until there is none, or
   `PATIENCE` rounds brought no fewer.
4. Of all rounds' rules, and the one learned without experiments, that of least cost stands: the share of variance
   that it leaves unexplained in text and the explainer's own edits, plus the square root of the share of pivots
   that are counterexamples. The root makes the last few count, so that one exception among thousands of pivots
   changes the rule; the first term keeps a unit without a short rule from being described by its experiments alone.
   The rule is shortened as far as that costs nothing (`tidy`).

`fit` measures how well a learned rule holds on data that it was not learned from, beside a table of tokens: is
there a pattern at all? A second rule is learned with less, and held against the data that it was denied: some
carriers, that is measured windows that differ in the last tokens up to the pivot only (every fourth, by hash, and
one at least where there are two), and the edits that the explainer itself made of the documents it keeps for
checking splits. Agreement is the balanced accuracy of "above half the peak" on those pivots, so that a rule that
always predicts the same gets 0.5. On the text of the kept documents stands the correlation of the rule itself. The
table is the mean of each token over the data that the second rule was learned from. A rule that does no better than
the table there, or fails on new carriers, has no pattern. One that gets there with hundreds of words (a random sum
over the last two tokens can be spelled out so) is a table of its own: its length shows it, and no agreement does.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .evaluate import TokenGrid, predict
from .induce import induce
from .language import Rule
from .observed import Observed
from .sample import Sample, Windows
from .tidy import Measure, shorten_rule
from .tree import Growth, grow

SHARE = 0.15
"""Most that all measured pivots weigh together, as a share of the rest of the sample."""
RAISE = 4.0
PATIENCE = 5


def revise(sample: Sample, growth: Growth, observed: Observed, *, pivot_weight: float, half: float) -> Rule | None:
    """The rule for a sample and measured windows; None where no condition stands out.

    `pivot_weight` is what a measured pivot counts at first, `half` the activation that parts active from silent.
    """
    joined = join(sample, observed, pivot_weight=pivot_weight)
    pivots = np.concatenate([_find_edits(sample), len(sample.activation) + np.flatnonzero(observed.measured)])
    measure = Measure(joined, pivots, text=len(sample.activation), half=half)
    best = induce(sample, grow(sample, growth))
    least, fewest, since = measure.cost(best) if best is not None else np.inf, len(pivots), 0
    raised = np.ones(len(pivots), np.float32)
    while since < PATIENCE:
        reweighted = _reweight(joined, pivots, raised)
        rule = induce(reweighted, grow(reweighted, growth))
        if rule is None:
            wrong = joined.activation[pivots] > half
        else:
            rule = measure.refit(rule)  # raised weights choose conditions, they do not set values
            wrong, cost = measure.wrong(measure.predict(rule)), measure.cost(rule)
            if cost < least:
                best, least = rule, cost
        since = 0 if wrong.sum() < fewest else since + 1
        fewest = min(fewest, int(wrong.sum()))
        if not fewest:
            break
        raised[wrong] *= RAISE
    return shorten_rule(best, measure) if best is not None else None


def _find_edits(sample: Sample) -> NDArray[np.int64]:
    """Indices of the explainer's own edits in the sample: the tokens that alone of an own row count."""
    split = sample.background.ids.size
    return split + np.flatnonzero(_alone(sample, sample.weight + sample.check))


def _alone(sample: Sample, weight: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a token alone of its own row has a weight (N,), (row, position); a row of one token is text, no edit."""
    counts = weight[sample.background.ids.size :].reshape(sample.own.ids.shape) > 0
    edited = (counts.sum(axis=1) == 1) & ((sample.own.ids >= 0).sum(axis=1) > 1)
    return counts & edited[:, None]


def join(sample: Sample, observed: Observed, *, pivot_weight: float) -> Sample:
    """The sample with the measured windows behind its own ones, each pivot with `pivot_weight`, or less if many."""
    mass = float(sample.weight.sum() + sample.check.sum())
    each = min(pivot_weight, SHARE * mass / max(len(observed), 1))
    measured = observed.measured.ravel()
    weight = measured.astype(np.float32) * np.float32(each)
    return replace(
        sample,
        own=Windows(sample.vocabulary, np.concatenate([sample.own.ids, observed.ids])),
        activation=np.concatenate([sample.activation, np.where(measured, observed.activations.ravel(), 0)]),
        weight=np.concatenate([sample.weight, weight]),
        check=np.concatenate([sample.check, weight]),
        exact=np.concatenate([np.zeros(len(sample.activation), np.bool_), measured]),
    )


def _reweight(sample: Sample, pivots: NDArray[np.int64], raised: NDArray[np.float32]) -> Sample:
    """The sample with the pivots' weights multiplied by `raised`."""
    weight, check = sample.weight.copy(), sample.check.copy()
    weight[pivots] *= raised
    check[pivots] *= raised
    return replace(sample, weight=weight, check=check)


QUARTER = 4
VARIED = 5
"""Tokens up to the pivot, the pivot included, in which the windows of one carrier may differ."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Agreement of a rule with data that it was not learned from; None where a side is constant, or has no data."""

    kept: float | None
    """Pearson's r on the kept documents."""
    kept_table: float | None
    """The same of the token table."""
    edited_agreement: float | None
    """Balanced accuracy of the second rule on the explainer's own edits of kept documents."""
    edited_correlation: float | None
    """Pearson's r of the second rule on the same edits."""
    edited_table: float | None
    """Balanced accuracy of the token table on them."""
    observed_agreement: float | None
    """Balanced accuracy of the second rule on the carriers that it was denied."""
    observed_correlation: float | None
    """Pearson's r of the second rule on the same carriers."""
    observed_table: float | None
    """Balanced accuracy of the token table on them."""
    wrong: int
    """Measured pivots, of all, that the rule itself puts on the wrong side of half the peak."""
    observed: int
    """Measured pivots."""
    length: int
    """The rule's length in conditions, tokens and gains."""


def fit(rule: Rule, sample: Sample, growth: Growth, observed: Observed, *, pivot_weight: float, half: float) -> Fit:
    """Hold a rule that was learned from a sample and measured windows against both, with a second learning."""
    split = sample.background.ids.size
    checked = np.flatnonzero(sample.check[:split] > 0)
    true, codes = sample.activation[checked], sample.tokens[0][checked]
    denied = _choose_denied(observed)
    allowed, hidden = observed.only(~denied), observed.only(denied)
    edits = _checked_edits(sample)
    check = sample.check.copy()
    check[split:][edits.measured.ravel()] = 0
    less = replace(sample, check=check)
    other = revise(less, growth, allowed, pivot_weight=pivot_weight, half=half)
    table = _token_means(less, allowed)
    on_edits, on_hidden = (_predict_pivots(other, part, sample.vocabulary) for part in (edits, hidden))
    return Fit(
        kept=_correlation(true, predict(rule, sample.background.grid).ravel()[checked]),
        kept_table=_correlation(true, table[codes]),
        edited_agreement=_agreement(edits, on_edits, half),
        edited_correlation=_correlation(edits.activations[edits.measured], on_edits),
        edited_table=_agreement(edits, table[edits.ids[edits.measured]], half),
        observed_agreement=_agreement(hidden, on_hidden, half),
        observed_correlation=_correlation(hidden.activations[hidden.measured], on_hidden),
        observed_table=_agreement(hidden, table[hidden.ids[hidden.measured]], half),
        wrong=count_wrong(rule, observed, sample.vocabulary, half=half),
        observed=len(observed),
        length=rule.length(),
    )


def count_wrong(rule: Rule, observed: Observed, vocabulary: tuple[str, ...], *, half: float) -> int:
    """How many measured pivots the rule puts on the wrong side of half the peak."""
    active = _predict_pivots(rule, observed, vocabulary) > half
    return int((active != (observed.activations[observed.measured] > half)).sum())


def _choose_denied(observed: Observed) -> NDArray[np.bool_]:
    """Which rows the second rule is denied: those of every fourth carrier, (row,)."""
    keys = []
    for ids, measured in zip(observed.ids, observed.measured, strict=True):
        last = int(np.flatnonzero(measured)[-1]) if measured.any() else 0
        keys.append(zlib.crc32(ids[: max(last + 1 - VARIED, 0)].tobytes() + bytes([last % 256])))
    carriers = np.unique(np.array(keys, np.int64))
    return np.isin(np.array(keys, np.int64), carriers[1::QUARTER])


def _checked_edits(sample: Sample) -> Observed:
    """The explainer's own edits of kept documents: rows of which a single token is checked."""
    split = sample.background.ids.size
    measured = _alone(sample, sample.check)
    return Observed(sample.own.ids.astype(np.int64), sample.activation[split:].reshape(measured.shape), measured)


def _predict_pivots(rule: Rule | None, observed: Observed, vocabulary: tuple[str, ...]) -> NDArray[np.floating]:
    """A rule's predictions at measured pivots, (pivot,); no rule predicts silence."""
    if rule is None:
        return np.zeros(len(observed))
    return predict(rule, TokenGrid(vocabulary, observed.ids))[observed.measured]


def _token_means(sample: Sample, observed: Observed) -> NDArray[np.float64]:
    """Mean activation by token id over sample and measurements; the mean of all where a token never stands."""
    ids = np.concatenate([sample.tokens[0], observed.ids[observed.measured]])
    each = float(sample.weight.max())
    weight = np.concatenate([sample.weight, np.full(len(observed), each, np.float32)])
    values = np.concatenate([sample.activation, observed.activations[observed.measured]])
    size = len(sample.vocabulary) + 1
    sums, weights = np.bincount(ids, weight * values, size), np.bincount(ids, weight, size)
    return np.where(weights > 0, sums / np.maximum(weights, 1e-12), sums.sum() / weights.sum())


def _correlation(true: NDArray[np.floating], predicted: NDArray[np.floating]) -> float | None:
    # The standard deviation of equal values may be a rounding error above zero.
    if len(true) < 2 or not np.ptp(true) or not np.ptp(predicted):
        return None
    return round(float(np.corrcoef(true, predicted)[0, 1]), 4)


def _agreement(observed: Observed, predicted: NDArray[np.floating], half: float) -> float | None:
    active = observed.activations[observed.measured] > half
    if active.all() or not active.any():
        return None
    return round(float(((predicted > half)[active].mean() + (predicted <= half)[~active].mean()) / 2), 4)
