"""AUROC of many columns, p and q values, and intervals: against pairs, permutations, and how often they are right."""

from itertools import combinations
from math import comb

import pytest
import torch
from torch import Tensor

from neuronaut.causal.separation import adjust, auroc_interval, level_of_chosen, separate, share_interval


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(first: Tensor, second: Tensor) -> float:
    pairs = [float(a > b) + float(a == b) / 2 for a in first for b in second]
    return sum(pairs) / len(pairs)


def test_auroc_is_the_share_of_pairs_ties_as_a_half() -> None:
    first, second = (draw(9, 6).round(), draw(7, 6, seed=1).round())
    found = separate(first, second).auroc
    assert found.tolist() == pytest.approx([naive(a, b) for a, b in zip(first.T, second.T, strict=True)])


def enumerate_p(values: Tensor, n: int) -> float:
    """Of all ways of choosing n examples, the share whose pairs are as far from half as those of the first n."""
    wins = (values[:, None] > values).double() + (values[:, None] == values).double() / 2
    away = []
    for rows in combinations(range(len(values)), n):
        chosen = torch.zeros(len(values), dtype=torch.bool)
        chosen[list(rows)] = True
        away.append(abs(float(wins[chosen][:, ~chosen].mean()) - 0.5))
    return sum(one >= away[0] - 1e-9 for one in away) / len(away)


@pytest.mark.parametrize(("n", "m"), [(5, 6), (4, 8), (8, 4), (1, 9)])
def test_p_is_that_of_all_choices_whatever_the_ties(n: int, m: int) -> None:
    drawn = draw(n + m, 3)
    pooled = torch.cat([drawn, drawn.round(), drawn.clamp_min(0.6), drawn.clamp_max(-0.3).round(decimals=1)], dim=1)
    pooled[:n] += torch.linspace(0, 3, pooled.shape[1])
    found = separate(pooled[:n], pooled[n:]).p
    assert found.tolist() == pytest.approx([enumerate_p(column, n) for column in pooled.T], rel=1e-9)


def test_p_of_sets_that_never_overlap_and_of_one_that_fires_once() -> None:
    apart = separate(torch.arange(8.0)[:, None] + 8, torch.arange(8.0)[:, None])
    assert float(apart.p) == pytest.approx(2 / comb(16, 8))
    once = separate(torch.eye(5, 1), torch.zeros(100, 1))
    assert float(once.p) == pytest.approx(5 / 105)


@pytest.mark.parametrize(("n", "m", "firing", "within"), [(30, 30, 1, 0.02), (5, 150, 1, 0.1), (20, 60, 0.4, 0.35)])
def test_where_choices_are_too_many_p_is_near_what_counting_them_gives(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, firing: float, within: float
) -> None:
    fires = torch.rand(n + m, 12, generator=torch.Generator().manual_seed(1)) < firing
    values = draw(n + m, 12) * fires
    values[:n] += torch.linspace(0, 3, 12) * (values[:n] != 0)
    monkeypatch.setattr("neuronaut.causal.separation._STATES", 2**26)
    exact = separate(values[:n], values[n:]).p
    monkeypatch.setattr("neuronaut.causal.separation._STATES", 0)
    found = separate(values[:n], values[n:]).p
    assert float(exact.min()) < 1e-4 < 0.1 < float(exact.max())
    assert float((found / exact).log().abs().max()) < within
    assert torch.allclose(separate(values[n:], values[:n]).p, found) and torch.allclose(
        separate(-values[:n], -values[n:]).p, found
    )


def test_what_fires_seldom_is_not_called_different_in_unequal_sets() -> None:
    """4,000 features on 0.5% to 5.5% of texts, without signal: the normal approximation calls dozens."""
    generator = torch.Generator().manual_seed(0)
    rates = 0.005 + 0.05 * torch.rand(4000, generator=generator)
    values = torch.rand(105, 4000, generator=generator)
    values *= torch.rand(105, 4000, generator=generator) < rates
    values = values[:, (values != values[0]).any(0)]
    p = separate(values[:5], values[5:]).p
    assert int((adjust(p) <= 0.05).sum()) == 0
    assert all(float((p <= level).double().mean()) < 1.3 * level for level in (0.05, 0.01))


def test_what_is_the_same_everywhere_tells_nothing() -> None:
    found = separate(torch.ones(6, 1), torch.ones(8, 1))
    assert found.auroc.tolist() == [0.5] and found.p.tolist() == [1.0]


def test_q_is_benjamini_and_hochbergs() -> None:
    p = torch.tensor([0.01, 0.8, 0.03, 0.02, 0.5]).double()
    naive_q = [
        min(other * 5 / (1 + sum(bool(x < other) for x in p)) for other in p.tolist() if other >= own)
        for own in p.tolist()
    ]
    assert adjust(p).tolist() == pytest.approx(naive_q)


def test_of_what_q_calls_different_few_are_not() -> None:
    wrong = []
    for seed in range(40):
        first, second = draw(30, 200, seed=seed), draw(30, 200, seed=1000 + seed)
        first[:, :20] += 1.2
        called = adjust(separate(first, second).p) <= 0.05
        assert int(called[:20].sum()) > 10
        wrong.append(float(called[20:].sum() / called.sum()))
    assert sum(wrong) / len(wrong) < 0.07


def test_intervals_cover_as_often_as_they_say() -> None:
    """Normal sets a distance apart: AUROC = Phi(distance / sqrt 2)."""
    for distance, seed in ((0.0, 0), (1.0, 1), (2.5, 2)):
        truth = float(torch.special.ndtr(torch.tensor(distance / 2**0.5)))
        found = separate(draw(15, 2000, seed=seed) + distance, draw(25, 2000, seed=seed + 10)).auroc
        low, high = auroc_interval(found, 15, 25)
        covered = float(((low <= truth) & (truth <= high)).double().mean())
        assert 0.93 < covered < 0.99
        assert bool(((low <= found) & (found <= high)).all())


def test_intervals_have_a_width_where_nothing_went_wrong() -> None:
    low, high = auroc_interval(torch.tensor([1.0, 0.0]).double(), 12, 12)
    assert 0.7 < float(low[0]) < 0.95 and float(high[0]) == 1
    assert float(low[1]) == 0 and float(high[1]) == pytest.approx(1 - float(low[0]))
    wider = auroc_interval(torch.tensor([1.0]).double(), 12, 12, level=level_of_chosen(10, 1000))
    assert float(wider[0]) < float(low[0])
    assert share_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)  # Wilson 1927
    assert share_interval(0.3, 10) == pytest.approx((0.1078, 0.6032), abs=1e-3)
