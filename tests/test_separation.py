"""AUROC of many columns, p and q values, and intervals: against pairs, permutations, and how often they are right."""

from itertools import combinations

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


@pytest.mark.parametrize("rounded", [False, True])
def test_p_is_that_of_all_permutations(rounded: bool) -> None:
    """Exact over the 3,003 ways of choosing 5 of 15, with and without ties."""
    pooled = torch.cat([draw(5, 4) + torch.tensor([0.0, 0.5, 1, 2]), draw(10, 4, seed=1)])
    pooled = pooled.round() if rounded else pooled
    found = separate(pooled[:5], pooled[5:])
    for column in range(4):
        values = pooled[:, column]
        own = abs(naive(values[:5], values[5:]) - 0.5)
        chosen = [torch.tensor(rows) for rows in combinations(range(15), 5)]
        every = separate(
            torch.stack([values[rows] for rows in chosen], dim=1),
            torch.stack([values[~torch.isin(torch.arange(15), rows)] for rows in chosen], dim=1),
        ).auroc
        exact = float(((every - 0.5).abs() >= own - 1e-9).double().mean())
        assert float(found.p[column]) == pytest.approx(exact, abs=0.03)


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
