"""What `show` and `label` say of numbers: how active a feature is, the ends of its histogram, why there is no score."""

import re

import numpy as np
import pytest

from neuronaut.cli.label import _format_line
from neuronaut.cli.show import _format_histogram, _format_statistics
from neuronaut.data.harvest.histogram import BINS, bins, count_above, edges
from neuronaut.data.records import Explanation, Score, Statistics
from neuronaut.labelling.label import Result
from neuronaut.subject.address import Feature

SILU = np.abs(np.random.default_rng(0).standard_t(3, 20_000)).astype(np.float32) * 0.05
"""Activations as a SiLU unit's: hardly ever zero, and rarely far from it."""


def statistics(values: np.ndarray) -> Statistics:
    histogram = np.bincount(bins(values[values > 0]), minlength=BINS)
    share = float((values > 0).mean())
    return Statistics(len(values), share, float(values.mean()), float(values.max()), 0.0, tuple(histogram.tolist()))


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.3, 2.0])
def test_tokens_above_a_threshold_are_counted_to_within_a_bin(threshold: float) -> None:
    counts = np.bincount(bins(SILU), minlength=BINS)
    (low,), (high,) = (edges()[edges() <= threshold][-1:], edges()[edges() > threshold][:1])
    estimated = count_above(counts.tolist(), threshold)
    assert (high <= SILU).sum() <= estimated <= (low <= SILU).sum()
    assert count_above(counts.tolist(), float(low)) == pytest.approx((low <= SILU).sum())


def test_a_unit_that_is_never_at_zero_is_active_where_it_is_strong() -> None:
    stats = statistics(SILU)
    assert stats.density == 1.0 and stats.active is not None
    assert stats.active == pytest.approx(float((stats.peak / 10 < SILU).mean()), rel=0.5)
    assert stats.active < 0.1
    line = _format_statistics({name: getattr(stats, name) for name in (*Statistics.__slots__, "active")}).splitlines()[
        0
    ]
    assert re.match(r"above a tenth of its peak on \d\.\d+%, above zero on 100\.000% of 20,000 tokens", line)
    assert Statistics(10, 0.5, 0.1, 1.0, 0.0, ()).active is None


def test_the_ends_of_a_histogram_are_numbers_one_reads() -> None:
    counts = np.bincount(bins(SILU), minlength=BINS).tolist()
    assert counts[1] or counts[2] or counts[3], "some bins are far below a thousandth of the peak"
    line = re.fullmatch(r"activations (\S+) (.+) (\S+)", _format_histogram(counts, peak=2.34))
    assert line is not None and (line[1], line[3]) == ("0", "2.34") and len(line[2]) < 30
    latent = [0] * BINS
    latent[27:33] = [5, 8, 9, 4, 2, 1]
    assert _format_histogram(latent, peak=0.61).startswith("activations 0.19 ")


def test_a_text_without_a_score_says_why() -> None:
    feature = Feature.parse("demo:mlp.1:3")
    score = Score("simulation", "top_random", "correlation", None, "constant prediction")
    result = Result(feature, Explanation(feature, "fires on ` a`", "rule"), [score])
    assert "(no correlation: constant prediction) fires on" in _format_line(result.to_row(), result)
    dense = Result(feature, Explanation(feature, None, "rule", reason="everywhere", status="dense"), [])
    assert _format_line(dense.to_row(), dense).endswith("everywhere")
