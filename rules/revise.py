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
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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


def revise(
    sample: Sample,
    growth: Growth,
    observed: Observed,
    *,
    windows: Windows,
    start: Rule | None,
    pivot_weight: float,
    half: float,
) -> Rule | None:
    """The rule for a sample and measured windows; None where no condition stands out.

    `windows` are the rows of `observed`, `start` is the rule of the sample alone, `pivot_weight` is what a measured
    pivot counts at first, `half` the activation that parts active from silent.
    """
    joined = join(sample, observed, windows, pivot_weight=pivot_weight)
    pivots = np.concatenate([_find_edits(sample), len(sample.activation) + np.flatnonzero(observed.measured)])
    measure = Measure(joined, pivots, text=len(sample.activation), half=half)
    best = start
    least, fewest, since = measure.cost(best) if best is not None else np.inf, len(pivots), 0
    raised = np.ones(len(pivots), np.float32)
    while since < PATIENCE:
        reweighted = _reweight(joined, pivots, raised)
        rule = induce(reweighted, grow(reweighted, growth))
        if rule is None:
            wrong = joined.activation[pivots] > half
        else:
            rule = measure.refit(rule)  # raised weights choose conditions, they do not set values
            wrong, cost = measure.wrong(rule, measure.predict(rule)), measure.cost(rule)
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


def join(sample: Sample, observed: Observed, windows: Windows, *, pivot_weight: float) -> Sample:
    """The sample with the measured windows behind its own ones, each pivot with `pivot_weight`, or less if many."""
    mass = float(sample.weight.sum() + sample.check.sum())
    each = min(pivot_weight, SHARE * mass / max(len(observed), 1))
    measured = observed.measured.ravel()
    weight = measured.astype(np.float32) * np.float32(each)
    return replace(
        sample,
        own=sample.own + windows,
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
    return sample.reweighted(weight, check)
