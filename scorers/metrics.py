"""Measures how well predicted activations match the true ones: one number and its interval, or why there is none.

Tokens are pooled: a metric is taken over all scored tokens of all windows at once, never as the mean of
per-window values. Every metric is a function of how often each window counts. With every window counted
once it gives the value; with the counts of a bootstrap draw (windows resampled with replacement) it gives
that draw. So a metric is prepared once, as a few sums per window, and a thousand draws are one matrix
product. AUROC needs the pairs of windows as well: `wins[u, v]` is how many pairs of an active token in u
and a silent token in v are ranked rightly, ties as a half; a draw's share of right pairs is then the
quadratic form counts·wins·counts.

The draws depend on the seed and the number of windows alone: an explanation and its baselines, measured on
the same windows, share their draws, which is what makes the interval of their difference a paired one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
FEWEST_WINDOWS = 3
"""Below this many windows there is no interval: resampling one or two says nothing."""

CONSTANT = "every answer is the same"
"""The reason of a metric of answers that tell nothing apart, which has no value."""

CONSTANT_PREDICTION = "constant prediction"
"""The reason of a correlation with what is predicted to be the same everywhere."""

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""From counts (draw, window) to one value a draw, NaN where the draw leaves the metric undefined."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric with its 95% interval, or None with the reason."""

    value: float | None
    reason: str | None = None
    """Why there is no value, for example "constant prediction"; None where there is one."""
    ci_low: float | None = None
    ci_high: float | None = None
    """Ends of the 95% percentile bootstrap interval over windows; None with fewer than three windows, or
    where most draws leave the metric undefined."""
    n: int = 0
    """Windows with at least one scored token."""


def correlation(true: ArrayLike, predicted: ArrayLike, mask: ArrayLike | None = None, *, seed: int = 0) -> Measured:
    """Pearson's r over all tokens at once: signed, blind to scale and offset. Arrays are (window, position)."""
    return _measure(_correlation, _Windows.of(true, predicted, mask), seed)


def explained_variance(
    true: ArrayLike, predicted: ArrayLike, mask: ArrayLike | None = None, *, seed: int = 0
) -> Measured:
    """`1 - Σ(t - p)² / Σ(t - mean t)²` over all tokens at once. Arrays are (window, position).

    Both sides are in activation units: nothing is calibrated here, so a prediction on another scale (0 to 10)
    must be mapped to activations beforehand, with a map that was fixed without these windows. 1 is perfect, 0 is
    as good as the mean activation, and there is no lower bound.
    """
    return _measure(_explained_variance, _Windows.of(true, predicted, mask), seed)


def auroc(
    true: ArrayLike, predicted: ArrayLike, mask: ArrayLike | None = None, *, threshold: float, seed: int = 0
) -> Measured:
    """The share of pairs with the active token predicted above the silent one, ties as a half.

    Arrays are (window, position). None where all predictions are equal.

    A token is active where its true activation is above `threshold`, in activation units; half of the feature's
    peak is customary. Holds (active tokens x windows) numbers in memory while it works.
    """
    return _measure(partial(_auroc, threshold=threshold), _Windows.of(true, predicted, mask), seed)


def evaluate(
    true: ArrayLike, predicted: ArrayLike, mask: ArrayLike | None = None, *, threshold: float, seed: int = 0
) -> dict[str, Measured]:
    """All three metrics, by name. Arrays are (window, position); `mask` is true at the tokens to be scored."""
    windows = _Windows.of(true, predicted, mask)
    return {name: _measure(prepare, windows, seed) for name, prepare in _metrics(threshold).items()}


def agreement(
    true: ArrayLike,
    predicted: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    threshold: float,
    fires_from: float | None = None,
    seed: int = 0,
) -> Measured:
    """Balanced accuracy of "above the threshold": the mean of the hit rates on active and on silent tokens.

    Arrays are (window, position), the threshold is in activation units; `fires_from` is that of predictions, where it
    is another one. 0.5 is chance, whatever the mix. None where all predictions are on one side of theirs.
    """
    prepare = partial(_agreement, threshold=threshold, fires_from=fires_from)
    return _measure(prepare, _Windows.of(true, predicted, mask), seed)


def difference(
    true: ArrayLike,
    predicted: ArrayLike,
    baseline: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    threshold: float,
    fires_from: tuple[float | None, float | None] = (None, None),
    seed: int = 0,
) -> dict[str, Measured]:
    """Every metric of the prediction minus that of the baseline, with the paired interval. Arguments as `evaluate`.

    The metrics of `evaluate`, and the agreement, with `fires_from` of both (see `agreement`).
    """
    ours, theirs = _Windows.of(true, predicted, mask), _Windows.of(true, baseline, mask)
    metrics = {name: (prepare, prepare) for name, prepare in _metrics(threshold).items()}
    own, other = (partial(_agreement, threshold=threshold, fires_from=value) for value in fires_from)
    metrics["agreement"] = (own, other)
    return {name: _measure(partial(_minus, own, other, theirs), ours, seed) for name, (own, other) in metrics.items()}


class _UndefinedError(Exception):
    """The reason for which a metric has no value."""


class _Windows(NamedTuple):
    """Windows with a scored token, checked for shape; what the mask hides reads as 0."""

    true: Floats
    predicted: Floats
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, true: ArrayLike, predicted: ArrayLike, mask: ArrayLike | None) -> Self:
        t, p = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
        m = np.ones(t.shape, bool) if mask is None else np.asarray(mask, bool)
        if t.ndim != 2 or not t.shape == p.shape == m.shape:
            raise ValueError(
                f"true {t.shape}, predicted {p.shape}, mask {m.shape}; wanted one shape (window, position)"
            )
        scored = m.any(axis=1)
        t, p, m = t[scored], p[scored], m[scored]
        return cls(np.where(m, t, 0.0), np.where(m, p, 0.0), m)

    def check(self) -> None:
        if not self.mask.any():
            raise _UndefinedError("no tokens")
        for side in (self.true, self.predicted):
            if not np.isfinite(side).all():
                raise _UndefinedError("NaN" if np.isnan(side).any() else "infinite")


Prepare = Callable[[_Windows], Statistic]


def _metrics(threshold: float) -> dict[str, Prepare]:
    return {
        "correlation": _correlation,
        "explained_variance": _explained_variance,
        "auroc": partial(_auroc, threshold=threshold),
    }


def _measure(prepare: Prepare, windows: _Windows, seed: int) -> Measured:
    n = len(windows.mask)
    try:
        windows.check()
        statistic = prepare(windows)
    except _UndefinedError as undefined:
        return Measured(None, str(undefined), n=n)
    value = float(statistic(np.ones((1, n)))[0])
    if not np.isfinite(value):
        return Measured(None, "out of floating-point range", n=n)
    if n < FEWEST_WINDOWS:
        return Measured(value, n=n)
    draws = statistic(_draws(n, seed))
    draws = draws[np.isfinite(draws)]
    if len(draws) < DRAWS / 2:
        return Measured(value, n=n)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Measured(value, None, float(low), float(high), n)


@lru_cache(maxsize=8)
def _draws(windows: int, seed: int) -> Floats:
    """How often each draw holds each window, (draw, window); every row sums to the number of windows."""
    picks = np.random.default_rng(seed).integers(windows, size=(DRAWS, windows))
    cells = (picks + windows * np.arange(DRAWS)[:, None]).ravel()
    counts = np.bincount(cells, minlength=DRAWS * windows).reshape(DRAWS, windows).astype(np.float64)
    counts.flags.writeable = False  # the cache hands the same array to every caller
    return counts


def _minus(own: Prepare, other: Prepare, baseline: _Windows, windows: _Windows) -> Statistic:
    ours = own(windows)
    try:
        baseline.check()
        theirs = other(baseline)
    except _UndefinedError as undefined:
        raise _UndefinedError(f"baseline: {undefined}") from undefined
    return lambda counts: ours(counts) - theirs(counts)


def _correlation(windows: _Windows) -> Statistic:
    mask = windows.mask
    t = _standard(windows.true, mask, "constant activations")
    p = _standard(windows.predicted, mask, CONSTANT_PREDICTION)
    per_window = np.stack([x.sum(axis=1) for x in (mask, t, p, t * t, p * p, t * p)], axis=1)

    def statistic(counts: Floats) -> Floats:
        n, t, p, tt, pp, tp = (counts @ per_window).T
        spread = np.sqrt(_variance(n, t, tt) * _variance(n, p, pp))
        return np.clip((tp / n - t / n * p / n) / spread, -1.0, 1.0)

    return statistic


def _explained_variance(windows: _Windows) -> Statistic:
    mask = windows.mask
    t = _standard(windows.true, mask, "constant activations")
    unit = np.abs(windows.true - windows.true[mask].mean())[mask].max()
    with np.errstate(over="ignore"):
        missed = ((windows.true - windows.predicted) / unit) ** 2
    per_window = np.stack([x.sum(axis=1) for x in (mask, t, t * t, missed)], axis=1)

    def statistic(counts: Floats) -> Floats:
        n, t, tt, missed = (counts @ per_window).T
        return 1.0 - missed / n / _variance(n, t, tt)

    return statistic


def _standard(values: Floats, mask: NDArray[np.bool_], if_constant: str) -> Floats:
    """Shift to mean 0 and scale to a largest size of 1, so that sums of squares neither cancel nor overflow."""
    scored = values[mask]
    if scored.min() == scored.max():
        raise _UndefinedError(if_constant)
    centred = values - scored.mean()
    return np.where(mask, centred / np.abs(centred[mask]).max(), 0.0)


def _variance(n: Floats, total: Floats, squares: Floats) -> Floats:
    """Variance from sums; NaN where rounding is all there is, that is, in a draw of equal values."""
    square = squares / n
    variance = square - (total / n) ** 2
    return np.where(variance > 1e-12 * square, variance, np.nan)


def _active_and_silent(windows: _Windows, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which scored tokens are truly active and which are not, both (window, position) and neither empty."""
    active = windows.mask & (windows.true > threshold)
    silent = windows.mask & ~active
    if not active.any():
        raise _UndefinedError("no positive tokens")
    if not silent.any():
        raise _UndefinedError("no negative tokens")
    return active, silent


def _check_answers(answers: NDArray[np.generic], mask: NDArray[np.bool_]) -> None:
    """Refuse answers that are all the same: whoever says yes to everything has not judged."""
    scored = answers[mask]
    if (scored == scored[0]).all():
        raise _UndefinedError(CONSTANT)


def _auroc(windows: _Windows, *, threshold: float) -> Statistic:
    active, silent = _active_and_silent(windows, threshold)
    _check_answers(windows.predicted, windows.mask)
    wins = _wins(windows.predicted, active, silent)
    per_window = np.stack([active.sum(axis=1), silent.sum(axis=1)], axis=1, dtype=np.float64)

    def statistic(counts: Floats) -> Floats:
        actives, silents = (counts @ per_window).T
        pairs = actives * silents
        right = np.einsum("dw,dw->d", counts @ wins, counts)
        return np.where(pairs > 0, right, np.nan) / np.maximum(pairs, 1.0)

    return statistic


def _agreement(windows: _Windows, *, threshold: float, fires_from: float | None = None) -> Statistic:
    active, silent = _active_and_silent(windows, threshold)
    predicted_active = windows.predicted > (threshold if fires_from is None else fires_from)
    _check_answers(predicted_active, windows.mask)
    parts = (active & predicted_active, active, silent & ~predicted_active, silent)
    per_window = np.stack([part.sum(axis=1) for part in parts], axis=1).astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        hits, actives, rejections, silents = (counts @ per_window).T
        defined = (actives > 0) & (silents > 0)
        rates = hits / np.maximum(actives, 1.0) + rejections / np.maximum(silents, 1.0)
        return np.where(defined, rates / 2, np.nan)

    return statistic


def _wins(predicted: Floats, active: NDArray[np.bool_], silent: NDArray[np.bool_]) -> Floats:
    """Count rightly ranked pairs of an active token in window u and a silent one in window v, (u, v), ties as a half.

    A silent token is below a level from the first level above it, and below or level with it from the first that
    is not below it: half a win is entered at each of the two, and summed over the levels.
    """
    windows = len(predicted)
    levels, level = np.unique(predicted[active], return_inverse=True)
    home = np.nonzero(silent)[0]
    cells = [np.searchsorted(levels, predicted[silent], side) * windows + home for side in ("left", "right")]
    entered = np.bincount(np.concatenate(cells), minlength=(len(levels) + 1) * windows)
    below = np.cumsum(entered.reshape(-1, windows), axis=0) / 2
    wins = np.zeros((windows, windows))
    with_active, start = np.unique(np.nonzero(active)[0], return_index=True)
    wins[with_active] = np.add.reduceat(below[level], start, axis=0)
    return wins
