"""Computes the scores of simulation as published: Bills et al. 2023, "Language models can explain neurons in language
models", after the released code (openai/automated-interpretability).

A simulator gives a distribution over 0..10 at every token; its expected value (EV) is the prediction. Scores
are taken over the tokens of all sequences at once, never as a mean of per-sequence values. The truth is raw: neither
normalised nor rectified. The preferred score, the correlation, takes EVs as they are, so its sign is
honest; the other two need EVs in activation units, from a calibration that never saw the sequences it is used on.
The scale of 0..10, on which prompts write activations, is `llm.render.quantised`.
Predictions that are NaN are missing and left out; a score that is undefined is None with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.records import Example
from ..subject.errors import NeuronautError
from . import metrics
from .metrics import Measured

Floats = NDArray[np.float64]


def expected_values(probabilities: ArrayLike) -> Floats:
    """`Σ v·p(v) / Σ p(v)` over the values whose probability is known, shape (...,); NaN where none is.

    `probabilities` are those of the values 0, 1, 2, ..., shape (..., value), NaN or None where unknown. They need not
    sum to 1: the share of tokens that are no values is left out.
    """
    weights = np.nan_to_num(np.asarray(probabilities, np.float64), nan=0.0)
    mass = weights.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return weights @ np.arange(weights.shape[-1], dtype=np.float64) / np.where(mass > 0, mass, np.nan)


def ev_correlation(true: Sequence[ArrayLike], expected: Sequence[ArrayLike]) -> Measured:
    """The preferred score: Pearson's r of activations and EVs over all tokens of all sequences."""
    t, p, n = _pool(true, expected)
    return replace(metrics.correlation(t[None], p[None]), n=n)


def rsquared(true: Sequence[ArrayLike], calibrated: Sequence[ArrayLike]) -> Measured:
    """`1 - mean((t - p)²) / mean(t²)`: uncentred, so 0 is as good as predicting 0 everywhere. Activation units."""
    t, p, n = _pool(true, calibrated)
    return _explained_share((t - p) ** 2, t**2, n)


def abs_dev_explained(true: Sequence[ArrayLike], calibrated: Sequence[ArrayLike]) -> Measured:
    """`1 - mean|t - p| / mean|t|`. Activation units."""
    t, p, n = _pool(true, calibrated)
    return _explained_share(np.abs(t - p), np.abs(t), n)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line from EVs to activation units: `intercept + slope·EV`."""

    intercept: float
    slope: float
    """Negative where the simulator predicts the opposite: a correlation of calibrated values would hide that."""

    @classmethod
    def fit(cls, examples: Sequence[Example], expected: Sequence[ArrayLike]) -> Self:
        """Fit least squares over all tokens of examples that no score is reported on; the holdout is refused."""
        if held := sum(example.split == "holdout" for example in examples):
            raise NeuronautError(
                f"{held} of {len(examples)} examples to calibrate on are from the holdout, where scores are reported; "
                "calibrate on the split select"
            )
        t, p, _ = _pool([example.activations for example in examples], expected)
        if not len(t):
            raise NeuronautError("no token to calibrate on has a prediction; simulate some examples of select first")
        centred = p - p.mean()
        power = float(centred @ centred)
        slope = float(centred @ t) / power if power > 0 else 0.0
        return cls(float(t.mean() - slope * p.mean()), slope)

    def apply(self, expected: ArrayLike) -> Floats:
        """Map EVs to activation units."""
        return self.intercept + self.slope * np.asarray(expected, np.float64)


def _explained_share(left: Floats, whole: Floats, n: int) -> Measured:
    if not len(whole):
        return Measured(None, "no tokens", n=n)
    if not whole.any():
        return Measured(None, "all activations are 0", n=n)
    return Measured(float(1 - left.mean() / whole.mean()), n=n)


def _pool(true: Sequence[ArrayLike], predicted: Sequence[ArrayLike]) -> tuple[Floats, Floats, int]:
    """Concatenate all tokens that have a prediction: (true, predicted, number of sequences that have one)."""
    pairs = [(np.asarray(t, np.float64), np.asarray(p, np.float64)) for t, p in zip(true, predicted, strict=True)]
    if wrong := next(((t.shape, p.shape) for t, p in pairs if t.shape != p.shape), None):
        raise ValueError(f"a sequence has activations {wrong[0]} and predictions {wrong[1]}; wanted one shape")
    scored = [(t[~np.isnan(p)], p[~np.isnan(p)]) for t, p in pairs]
    t, p = (np.concatenate([np.empty(0), *(pair[side] for pair in scored)]) for side in (0, 1))
    return t, p, sum(len(part) > 0 for part, _ in scored)
