"""Parity of the published formulas with naive ones, written here as plain loops over numbers."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.data.records import Example, Split
from neuronaut.llm.render import quantised
from neuronaut.scorers.published_metrics import (
    Calibration,
    abs_dev_explained,
    ev_correlation,
    expected_values,
    rsquared,
)
from neuronaut.subject.errors import NeuronautError

CLOSE = 1e-6
Sequences = list[list[float]]


def naive_normalised(records: Sequences) -> list[list[int]]:
    highest = max(max(0.0, x) for record in records for x in record)
    return [[0 if highest <= 0 else min(10, int(10 * max(0.0, x) / highest)) for x in record] for record in records]


def naive_ev(probabilities: dict[int, float]) -> float:
    mass = total = 0.0
    for value, probability in probabilities.items():
        mass += probability
        total += value * probability
    return total / mass


def naive_pearson(true: Sequences, predicted: Sequences) -> float:
    pairs = [(t, p) for ts, ps in zip(true, predicted, strict=True) for t, p in zip(ts, ps, strict=True)]
    n = len(pairs)
    mean_t, mean_p = sum(t for t, _ in pairs) / n, sum(p for _, p in pairs) / n
    both = sum((t - mean_t) * (p - mean_p) for t, p in pairs)
    return both / math.sqrt(sum((t - mean_t) ** 2 for t, _ in pairs) * sum((p - mean_p) ** 2 for _, p in pairs))


def naive_rsquared(true: Sequences, predicted: Sequences) -> float:
    pairs = [(t, p) for ts, ps in zip(true, predicted, strict=True) for t, p in zip(ts, ps, strict=True)]
    return 1 - (sum((t - p) ** 2 for t, p in pairs) / len(pairs)) / (sum(t * t for t, _ in pairs) / len(pairs))


def naive_abs_dev(true: Sequences, predicted: Sequences) -> float:
    pairs = [(t, p) for ts, ps in zip(true, predicted, strict=True) for t, p in zip(ts, ps, strict=True)]
    return 1 - (sum(abs(t - p) for t, p in pairs) / len(pairs)) / (sum(abs(t) for t, _ in pairs) / len(pairs))


def naive_line(true: Sequences, predicted: Sequences) -> tuple[float, float]:
    """Least squares by the normal equations of (1, p)."""
    pairs = [(t, p) for ts, ps in zip(true, predicted, strict=True) for t, p in zip(ts, ps, strict=True)]
    n, sp, st_ = len(pairs), sum(p for _, p in pairs), sum(t for t, _ in pairs)
    spp, spt = sum(p * p for _, p in pairs), sum(p * t for t, p in pairs)
    slope = (n * spt - sp * st_) / (n * spp - sp * sp)
    return (st_ - slope * sp) / n, slope


def fixture(seed: int, *, sign: float = 1.0) -> tuple[Sequences, Sequences]:
    """Ragged sequences of raw activations (negative ones too) and of EVs that go with them, or against them."""
    draw = random.Random(seed)
    true = [[draw.gauss(0.2, 1.5) for _ in range(draw.randint(1, 64))] for _ in range(10)]
    return true, [[min(10.0, max(0.0, 4 + sign * 2 * t + draw.gauss(0, 2))) for t in row] for row in true]


def example(activations: list[float], split: Split) -> Example:
    n = len(activations)
    return Example(("x",) * n, np.zeros(n, np.int64), np.array(activations, np.float32), "top", split, "doc", "w")


@pytest.mark.parametrize("seed", range(20))
def test_normalisation(seed: int) -> None:
    true, _ = fixture(seed)
    single = [[float(np.float32(x)) for x in row] for row in true]
    highest = max(x for row in single for x in row)
    found = [quantised(np.array(row, np.float32), highest).tolist() for row in single]
    assert found == naive_normalised(single)
    assert sum(value == 10 for row in found for value in row) == 1


@given(st.dictionaries(st.integers(0, 10), st.floats(1e-9, 1.0), min_size=1))
def test_expected_value(probabilities: dict[int, float]) -> None:
    row = [probabilities.get(value) for value in range(11)]
    assert float(expected_values(np.array(row, float))) == pytest.approx(naive_ev(probabilities), abs=CLOSE)


def test_expected_value_leaves_out_what_is_no_value_and_is_missing_without_any() -> None:
    row = np.array([[0.5] + [np.nan] * 9 + [0.25], [np.nan] * 11, [0.0] * 11])
    found = expected_values(row)
    assert found[0] == pytest.approx(10 * 0.25 / 0.75)
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(20))
def test_scores(seed: int, sign: float) -> None:
    true, expected = fixture(seed, sign=sign)
    intercept, slope = naive_line(true, expected)
    calibrated = [[intercept + slope * p for p in row] for row in expected]
    for found, naive in (
        (ev_correlation(true, expected), naive_pearson(true, expected)),
        (rsquared(true, expected), naive_rsquared(true, expected)),
        (rsquared(true, calibrated), naive_rsquared(true, calibrated)),
        (abs_dev_explained(true, expected), naive_abs_dev(true, expected)),
        (abs_dev_explained(true, calibrated), naive_abs_dev(true, calibrated)),
    ):
        assert found.value == pytest.approx(naive, abs=CLOSE)
        assert found.n == 10


@pytest.mark.parametrize("seed", range(10))
def test_calibration(seed: int) -> None:
    true, expected = fixture(seed)
    single = [[float(np.float32(t)) for t in row] for row in true]
    fitted = Calibration.fit([example(row, "select") for row in single], expected)
    intercept, slope = naive_line(single, expected)
    assert (fitted.intercept, fitted.slope) == pytest.approx((intercept, slope), abs=CLOSE)
    assert fitted.apply([0.0, 7.0]) == pytest.approx([intercept, intercept + 7 * slope], abs=CLOSE)


def test_calibration_is_refused_on_the_holdout() -> None:
    with pytest.raises(NeuronautError, match="1 of 2 examples to calibrate on are from the holdout"):
        Calibration.fit([example([0.0, 1.0], "select"), example([0.0, 1.0], "holdout")], [[0, 1], [0, 1]])


def test_calibration_of_a_constant_prediction_is_the_mean_and_of_nothing_an_error() -> None:
    assert Calibration.fit([example([0.0, 4.0], "select")], [[3.0, 3.0]]).apply(3.0) == pytest.approx(2.0)
    with pytest.raises(NeuronautError, match="no token to calibrate on"):
        Calibration.fit([example([0.0, 4.0], "select")], [[np.nan, np.nan]])


def test_an_anticorrelated_simulation_scores_negative_whatever_calibration_makes_of_it() -> None:
    true, expected = fixture(3, sign=-1.0)
    fitted = Calibration.fit([example(row, "select") for row in true], expected)
    value = ev_correlation(true, expected).value
    assert fitted.slope < 0
    assert value is not None and value < -0.5


def test_missing_tokens_are_left_out_and_undefined_scores_say_why() -> None:
    true, expected = [[0.0, 1.0, 2.0], [5.0]], [[0.0, np.nan, 1.0], [np.nan]]
    assert ev_correlation(true, expected).value == pytest.approx(1.0)
    assert ev_correlation(true, expected).n == 1
    nothing = [[np.nan] * 3, [np.nan]]
    assert [f(true, nothing).reason for f in (ev_correlation, rsquared, abs_dev_explained)] == ["no tokens"] * 3
    assert ev_correlation(true, [[1.0] * 3, [1.0]]).reason == "constant prediction"
    assert ev_correlation([[1.0] * 3, [1.0]], [[0.0, 1.0, 2.0], [3.0]]).reason == "constant activations"
    assert rsquared([[0.0, 0.0]], [[1.0, 2.0]]).reason == "all activations are 0"
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        rsquared([[0.0, 0.0, 1.0]], [[1.0, 2.0]])
