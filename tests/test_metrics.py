"""The metrics against naive loops, their refusals, and intervals that cover a planted truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuronaut.scorers import metrics
from neuronaut.scorers.metrics import (
    CONSTANT,
    Measured,
    agreement,
    auroc,
    correlation,
    difference,
    evaluate,
    explained_variance,
)

NAMES = ("correlation", "explained_variance", "auroc")


def naive_correlation(true: list[float], predicted: list[float]) -> float:
    n = len(true)
    mean_true, mean_predicted = math.fsum(true) / n, math.fsum(predicted) / n
    product = math.fsum((t - mean_true) * (p - mean_predicted) for t, p in zip(true, predicted, strict=True))
    spread_true = math.fsum((t - mean_true) ** 2 for t in true)
    spread_predicted = math.fsum((p - mean_predicted) ** 2 for p in predicted)
    return product / math.sqrt(spread_true * spread_predicted)


def naive_explained_variance(true: list[float], predicted: list[float]) -> float:
    mean = math.fsum(true) / len(true)
    missed = math.fsum((t - p) ** 2 for t, p in zip(true, predicted, strict=True))
    return 1 - missed / math.fsum((t - mean) ** 2 for t in true)


def naive_auroc(true: list[float], predicted: list[float], threshold: float) -> float:
    active = [p for t, p in zip(true, predicted, strict=True) if t > threshold]
    silent = [p for t, p in zip(true, predicted, strict=True) if t <= threshold]
    return sum((a > s) + 0.5 * (a == s) for a in active for s in silent) / (len(active) * len(silent))


def windows(rng: np.random.Generator, count: int = 12, length: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse activations, a noisy prediction rounded so that it ties, and a mask that hides a fifth."""
    true = rng.exponential(size=(count, length)) * (rng.random((count, length)) < 0.4)
    predicted = np.round(true + rng.normal(size=true.shape) * 0.7, 1)
    return true, predicted, rng.random(true.shape) < 0.8


def naive(true: np.ndarray, predicted: np.ndarray, mask: np.ndarray, threshold: float) -> dict[str, float]:
    t, p = true[mask].tolist(), predicted[mask].tolist()
    values = (naive_correlation(t, p), naive_explained_variance(t, p), naive_auroc(t, p, threshold))
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_values_and_draws_equal_naive_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted, mask = windows(rng)
    measured = evaluate(true, predicted, mask, threshold=0.5)
    assert {name: m.value for name, m in measured.items()} == pytest.approx(naive(true, predicted, mask, 0.5))
    draws = metrics._draws(len(true), seed=0)[:5].astype(int)
    resampled = [np.repeat(np.arange(len(true)), counts) for counts in draws]
    loops = [naive(true[rows], predicted[rows], mask[rows], 0.5) for rows in resampled]
    for name, prepare in metrics._metrics(0.5).items():
        statistic = prepare(metrics._Windows.of(true, predicted, mask))
        assert statistic(draws.astype(float)) == pytest.approx([loop[name] for loop in loops])


FEW_VALUES = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1e30, 1e-30, math.nan, math.inf])


@given(
    hnp.arrays(float, st.tuples(st.just(2), st.integers(0, 5), st.integers(1, 4)), elements=FEW_VALUES),
    st.integers(0, 2**20 - 1),
)
def test_every_input_gives_a_value_or_a_reason(sides: np.ndarray, bits: int) -> None:
    true, predicted = sides
    mask = np.array([bits >> i & 1 for i in range(true.size)], bool).reshape(true.shape)
    t, p = true[mask], predicted[mask]
    for name, m in evaluate(true, predicted, mask, threshold=0.5).items():
        assert (m.value is None) != (m.reason is None)
        assert m.n == mask.any(axis=1).sum()
        if not t.size:
            assert m.reason == "no tokens"
        elif np.isnan(t).any():
            assert m.reason == "NaN"
        elif not np.isfinite([t, p]).all():
            assert m.reason in ("NaN", "infinite")
        elif name == "auroc":
            if not ((t > 0.5).any() and (t <= 0.5).any()):
                assert m.reason == ("no negative tokens" if (t > 0.5).any() else "no positive tokens")
            elif len(set(p)) == 1:
                assert m.reason == CONSTANT
            else:
                assert m.value == pytest.approx(naive_auroc(t.tolist(), p.tolist(), 0.5))
        elif len(set(t)) == 1:
            assert m.reason == "constant activations"
        elif name == "correlation" and len(set(p)) == 1:
            assert m.reason == "constant prediction"
        else:
            assert m.value is not None
            assert m.value <= 1
        if m.ci_low is not None and m.ci_high is not None:
            assert m.value is not None
            assert m.ci_low <= m.ci_high
            assert m.n >= 3


def test_a_constant_prediction_ranks_nothing_and_explains_nothing() -> None:
    true, _, _ = windows(np.random.default_rng(0))
    measured = evaluate(true, np.full_like(true, true.mean()), threshold=0.5)
    assert measured["correlation"] == Measured(None, "constant prediction", n=12)
    assert measured["auroc"] == Measured(None, CONSTANT, n=12)
    assert measured["explained_variance"].value == pytest.approx(0)


@pytest.mark.parametrize("answers", [np.full((12, 1), 0.9), np.linspace(0.6, 0.9, 12)[:, None], np.zeros((12, 1))])
def test_a_judge_that_answers_all_alike_has_judged_nothing(answers: np.ndarray) -> None:
    true = np.arange(12)[:, None] % 2
    assert agreement(true, answers, threshold=0.5) == Measured(None, CONSTANT, n=12)
    one_differs = np.where(np.arange(12)[:, None] == 3, 1 - answers.round(), answers)
    assert agreement(true, one_differs, threshold=0.5).value == pytest.approx(
        0.5 + (1 if answers[0] < 0.5 else -1) / 12
    )


def test_what_is_not_scored_makes_no_answers_differ() -> None:
    true, answers = np.arange(12)[:, None] % 2, np.ones((12, 1))
    answers[:2] = 0
    mask = np.arange(12)[:, None] > 1
    assert agreement(true, answers, mask, threshold=0.5).reason == CONSTANT
    assert auroc(true, answers, mask, threshold=0.5).reason == CONSTANT


def test_predictions_may_have_a_threshold_of_their_own() -> None:
    """A rule of means is right about where the unit fires, though it never says how strongly that is at best."""
    true, means = np.tile([[0.0], [1.0]], (6, 1)), np.tile([[0.0], [0.3]], (6, 1))
    assert agreement(true, means, threshold=0.5).reason == CONSTANT
    assert agreement(true, means, threshold=0.5, fires_from=0.15).value == 1.0
    ahead = difference(true, means, true, threshold=0.5, fires_from=(0.15, None))["agreement"]
    assert ahead.value == 0.0, "both are right"


def test_pearson_is_pooled_signed_and_blind_to_scale() -> None:
    true = np.array([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]])
    within_only = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    pooled = correlation(true, within_only).value
    assert pooled == pytest.approx(naive_correlation(true.ravel().tolist(), within_only.ravel().tolist()))
    assert pooled is not None
    assert pooled < 0.1, "the mean of per-window correlations would be 1"
    assert correlation(true, 1e-25 * true + 1e-20).value == pytest.approx(1)
    assert correlation(true, -true).value == pytest.approx(-1)
    assert explained_variance(true, 10 * true).value == pytest.approx(naive_explained_variance(*_flat(true, 10 * true)))


def _flat(*sides: np.ndarray) -> list[list[float]]:
    return [side.ravel().tolist() for side in sides]


def test_sums_do_not_cancel_far_from_zero() -> None:
    true, predicted, _ = windows(np.random.default_rng(3))
    near, far = correlation(true, predicted), correlation(true + 2.0**20, predicted - 2.0**22)
    assert far.value == pytest.approx(near.value, abs=1e-7)
    assert far.ci_low == pytest.approx(near.ci_low, abs=1e-7)


def test_fewer_than_three_windows_have_no_interval() -> None:
    true, predicted, _ = windows(np.random.default_rng(1))
    assert correlation(true[:2], predicted[:2]).ci_low is None
    assert correlation(true[:3], predicted[:3]).ci_low is not None
    two_left = np.arange(len(true))[:, None] < np.full(true.shape, 2)
    assert correlation(true, predicted, two_left) == correlation(true[:2], predicted[:2])


def test_draws_without_an_active_token_are_left_out() -> None:
    true = np.zeros((6, 5))
    true[:2, 3] = 1.0
    measured = auroc(true, true, threshold=0.5)
    assert (measured.value, measured.ci_low, measured.ci_high) == (1, 1, 1)
    only_one_in_a_hundred = np.zeros((100, 5))
    only_one_in_a_hundred[0, 0] = 1.0
    assert auroc(only_one_in_a_hundred, only_one_in_a_hundred, threshold=0.5).ci_low is not None
    three = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert correlation(three, three).ci_low == pytest.approx(1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    true, predicted, mask = windows(np.random.default_rng(2))
    first = evaluate(true, predicted, mask, threshold=0.5)
    metrics._draws.cache_clear()
    assert evaluate(true, predicted, mask, threshold=0.5) == first
    assert evaluate(true, predicted, mask, threshold=0.5, seed=1)["auroc"].ci_low != first["auroc"].ci_low
    alone = (
        correlation(true, predicted, mask),
        explained_variance(true, predicted, mask),
        auroc(true, predicted, mask, threshold=0.5),
    )
    assert dict(zip(NAMES, alone, strict=True)) == first


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(4)
    true, predicted, mask = windows(rng, count=60)
    worse = predicted + rng.normal(size=true.shape) * 0.3
    ours, theirs = (
        {**evaluate(true, p, mask, threshold=0.5), "agreement": agreement(true, p, mask, threshold=0.5)}
        for p in (predicted, worse)
    )
    for name, gain in difference(true, predicted, worse, mask, threshold=0.5).items():
        assert gain.value == pytest.approx(_value(ours[name]) - _value(theirs[name]))
        assert _width(gain) < _width(ours[name]) + _width(theirs[name])
    for gain in difference(true, predicted, predicted, mask, threshold=0.5).values():
        assert (gain.value, gain.ci_low, gain.ci_high) == (0, 0, 0)
    silent = difference(true, predicted, np.zeros_like(true), mask, threshold=0.5)
    assert silent["correlation"].reason == "baseline: constant prediction"


def _value(measured: Measured) -> float:
    assert measured.value is not None, measured.reason
    return measured.value


def _width(measured: Measured) -> float:
    assert measured.ci_low is not None
    assert measured.ci_high is not None
    return measured.ci_high - measured.ci_low


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="wanted one shape"):
        correlation(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="wanted one shape"):
        correlation(np.zeros(3), np.zeros(3))


def _planted_correlation(rng: np.random.Generator) -> Measured:
    """Pearson's r is 0.6 whatever the window effects, which both sides have."""
    true, other = (rng.normal(size=(60, 1)) + rng.normal(size=(60, 16)) for _ in range(2))
    return correlation(true, 0.6 * true + 0.8 * other)


def _planted_auroc(rng: np.random.Generator) -> Measured:
    """Predictions are N(active, 1) plus a window effect N(0, 1/2); AUROC is Φ(1 / √3)."""
    active = (rng.random((60, 16)) < 0.3).astype(float)
    return auroc(active, active + rng.normal(size=active.shape) + rng.normal(size=(60, 1)) / 2**0.5, threshold=0.5)


@pytest.mark.parametrize(
    ("planted", "truth"), [(_planted_correlation, 0.6), (_planted_auroc, 0.5 + 0.5 * math.erf(1 / 6**0.5))]
)
def test_the_interval_covers_the_truth_95_times_in_100(
    planted: Callable[[np.random.Generator], Measured], truth: float
) -> None:
    rng = np.random.default_rng(5)
    intervals = [planted(rng) for _ in range(400)]
    covered = sum(m.ci_low <= truth <= m.ci_high for m in intervals if m.ci_low is not None and m.ci_high is not None)
    assert 0.92 <= covered / 400 <= 0.98
