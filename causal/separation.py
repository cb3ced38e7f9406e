"""How well numbers tell two sets of examples apart: AUROC, its interval, its p value, and many of them at once.

    AUROC     U / (n m), U of Mann and Whitney: the chance that an example of the first set is above one of the second,
              a tie counting half
    p         two-sided: how often a random choice of the first set among all examples has a U as far from n m / 2, the
              ties as they are. Exact, counted choice by choice, where that is cheap (few examples in a set, or few that
              are off the column's most frequent value); else the double saddlepoint approximation of that chance
              (Robinson 1982, Skovgaard 1987), which keeps its relative accuracy far out and in unequal sets, where the
              normal one is wrong by orders of magnitude
    interval  the values A with |AUROC - A| <= z sqrt(V(A)), V of Hanley and McNeil with both set sizes at their mean
              (Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
              method 5): unlike a bootstrap it has a width also where nothing was ever out of order
    q         p adjusted by Benjamini and Hochberg (1995): calling all with q <= 0.05 different is wrong of one in
              twenty of them, on average

An interval of what was chosen among many is too narrow; at the level 1 - 0.05 chosen / tested the intervals of those
chosen miss one in twenty times (Benjamini and Yekutieli 2005): that is `level`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

LEVEL = 0.95
_STEPS = 60
"""Halvings of an interval's end: to the last bit."""
_STATES = 2**20
"""The most additions that a column's choices are counted with: about a millisecond."""
_COLUMNS = 2048
"""Columns whose chances are approximated at a time."""
_NEWTON_STEPS = 60


class Separations(NamedTuple):
    """How well each column tells the first set from the second; all (column,), float64."""

    auroc: Tensor
    p: Tensor


def separate(first: Tensor, second: Tensor) -> Separations:
    """AUROC and p of every column. first: (example, column), second: (other example, column)."""
    ranks = _rank(first, second)
    n, m = len(first), len(second)
    small = ranks[:, :n] if n <= m else ranks[:, n:]
    patterns: dict[bytes, list[int]] = {}
    ordered = ranks.sort(dim=1).values.numpy()
    for column, row in enumerate(ordered):
        patterns.setdefault(row.tobytes(), []).append(column)
    away = ((n + m) * small.sum(1) - min(n, m) * ranks.sum(1)).abs()
    p, left = torch.ones(len(ranks), dtype=torch.float64), list[int]()
    for columns in patterns.values():
        tails = _count_choices(ordered[columns[0]], min(n, m))
        if tails is None:
            left += columns
        else:
            p[columns] = torch.from_numpy(tails.reach(away[columns].numpy()))
    for part in torch.tensor(left, dtype=torch.long).split(_COLUMNS):
        p[part] = _approximate(ranks[part].double() / 2, min(n, m), away[part].double() / (2 * (n + m)))
    return Separations(_wins(ranks, n) / (n * m), p)


def rank_auroc(first: Tensor, second: Tensor) -> Tensor:
    """The AUROC of every column (column,), float64, without p. Shapes as of `separate`."""
    return _wins(_rank(first, second), len(first)) / (len(first) * len(second))


def _rank(first: Tensor, second: Tensor) -> Tensor:
    """Twice the ranks among both sets, those of ties their mean: (column, example), int64, the first set's first."""
    pooled = torch.cat([first, second]).T.contiguous()
    order = pooled.sort(dim=1).values
    below, until = (torch.searchsorted(order, pooled, right=right) for right in (False, True))
    return below + until + 1


def _wins(ranks: Tensor, n: int) -> Tensor:
    return ranks[:, :n].sum(1).double() / 2 - n * (n + 1) / 2


class _Tails(NamedTuple):
    """The chances that the choice of a set is at least so far from the middle."""

    away: NDArray[np.int64]
    """(distance,), rising: |N sum - n total| of twice the ranks."""
    chance: NDArray[np.float64]
    """(distance,)."""

    def reach(self, away: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.minimum(self.chance[self.away.searchsorted(away)], 1.0)


def _count_choices(ranks: NDArray[np.int64], n: int) -> _Tails | None:
    """All choices of n of these ranks (example,), sorted; None where counting them is not cheap.

    Ranks count from the most frequent one, so that of its examples the number chosen is all that matters; the others
    are taken in one by one.
    """
    values, counts = np.unique(ranks, return_counts=True)
    common = values[counts.argmax()]
    rare = ranks[ranks != common] - common
    unit = int(np.gcd.reduce(rare)) if len(rare) else 1
    steps, most = rare // unit, min(len(rare), n)
    low, high = (int(part.sum()) for part in (steps[:most].clip(max=0), steps[len(steps) - most :].clip(min=0)))
    if len(rare) * (most + 1) * (high - low + 1) > _STATES:
        return None
    ways = np.zeros((most + 1, high - low + 1))
    ways[0, -low] = 1
    for step in steps.tolist():
        if step > 0:
            ways[1:, step:] += ways[:-1, :-step]
        else:
            ways[1:, :step] += ways[:-1, -step:]
    rest = len(ranks) - len(rare)
    chosen = np.array([_log_choices(rest, n - taken) for taken in range(most + 1)])
    chance = np.exp(chosen - _log_choices(len(ranks), n)) @ ways
    sums = unit * np.arange(low, high + 1) + n * common
    away, place = np.unique(np.abs(len(ranks) * sums - n * ranks.sum()), return_inverse=True)
    return _Tails(away, np.bincount(place, chance)[::-1].cumsum()[::-1])


def _log_choices(count: int, chosen: int) -> float:
    """Log of count over chosen; -inf where there is no such choice."""
    if not 0 <= chosen <= count:
        return -math.inf
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _approximate(ranks: Tensor, n: int, away: Tensor) -> Tensor:
    """The chance that n of the ranks (column, example) sum to `away` (column,) or more from their mean sum."""
    centred = ranks - ranks.mean(1, keepdim=True)
    scale = centred.square().mean(1).sqrt()
    least = (away - 0.5).clamp_min(0.5)
    tails = sum(_tail(sign * centred / scale[:, None], n, least / scale, 1 / scale) for sign in (1, -1))
    return torch.where(away < 1, 1.0, torch.as_tensor(tails).clamp(0, 1))


def _tail(ranks: Tensor, n: int, least: Tensor, unit: Tensor) -> Tensor:
    """The chance that n of the ranks, of mean 0 and variance 1 and `unit` apart, sum to `least` or more."""
    inside = least < ranks.sort(dim=1, descending=True).values[:, :n].sum(1)
    count, share = ranks.shape[1], n / ranks.shape[1]
    tilt, distance, spread = _tilt(ranks, n, torch.where(inside, least, 0.0))
    root = (2 * distance).sqrt()
    slope = 2 / unit * torch.sinh(tilt * unit / 2) * (spread / (count * share * (1 - share))).sqrt()
    density = (-distance).exp() / math.sqrt(2 * math.pi)
    tail = torch.special.ndtr(-root) + density * (1 / slope - 1 / root)
    return torch.where(inside, tail.clamp_min(0), 0.0)


def _tilt(ranks: Tensor, n: int, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The b with which taking each rank with the chance sigmoid(a + b rank) takes n, summing to `wanted`, on average.

    With it by how much that lowers sum log(1 + exp(a + b rank)) - a n - b wanted, of which it is the minimum, from
    b = 0, and the determinant of its second derivatives. By Newton's method, a step that does not go down cut short.
    """

    def height(a: Tensor, b: Tensor) -> Tensor:
        return softplus(a[:, None] + b[:, None] * ranks).sum(1) - a * n - b * wanted

    def bend(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        taken = torch.sigmoid(a[:, None] + b[:, None] * ranks)
        spread = taken * (1 - taken)
        aa, ab, bb = spread.sum(1), (spread * ranks).sum(1), (spread * ranks.square()).sum(1)
        more, further = n - taken.sum(1), wanted - (taken * ranks).sum(1)
        size = (aa * bb - ab * ab).clamp_min(1e-300)
        return size, more, further, (bb * more - ab * further) / size, (aa * further - ab * more) / size

    share = n / ranks.shape[1]
    a, b = torch.full_like(wanted, math.log(share / (1 - share))), torch.zeros_like(wanted)
    first, step = height(a, b), torch.ones_like(a)
    lowest = first
    for _ in range(_NEWTON_STEPS):
        size, more, further, up, turn = bend(a, b)
        if bool((torch.maximum(more.abs(), further.abs()) < 1e-9 * size.sqrt()).all()):
            break
        found = height(a + step * up, b + step * turn)
        lower = found <= lowest + 1e-12
        a, b = torch.where(lower, a + step * up, a), torch.where(lower, b + step * turn, b)
        lowest, step = torch.where(lower, found, lowest), torch.where(lower, (2 * step).clamp_max(1), step / 4)
    return b, (first - lowest).clamp_min(1e-300), bend(a, b)[0]


def auroc_interval(auroc: Tensor, first: int, second: int, *, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """The lower and upper ends for AUROCs (column,) of sets of these sizes."""
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    others = (first + second) / 2 - 1

    def inside(value: Tensor) -> Tensor:
        variance = value * (1 - value) * (1 + others * ((1 - value) / (2 - value) + value / (1 + value)))
        return (auroc - value).abs() <= z * (variance / (first * second)).sqrt()

    ends: list[Tensor] = []
    for bound in (0.0, 1.0):
        within, outside = auroc.double(), torch.full_like(auroc, bound, dtype=torch.float64)
        for _ in range(_STEPS):
            middle = (within + outside) / 2
            holds = inside(middle)
            within, outside = torch.where(holds, middle, within), torch.where(holds, outside, middle)
        ends.append(within)
    return ends[0], ends[1]


def share_interval(share: float, count: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The ends of Wilson's interval (1927) of a share of `count` examples."""
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    middle, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def adjust(p: Tensor) -> Tensor:
    """The q values of Benjamini and Hochberg for p values (test,)."""
    ordered, order = p.sort()
    scaled = ordered * len(p) / torch.arange(1, len(p) + 1, dtype=p.dtype)
    q = scaled.flip(0).cummin(0).values.flip(0).clamp_max(1)
    return torch.empty_like(p).scatter_(0, order, q)


def level_of_chosen(chosen: int, tested: int) -> float:
    """The level at which intervals of `chosen` of `tested` columns miss as rarely as LEVEL says, on average."""
    return 1 - (1 - LEVEL) * min(1.0, max(1, chosen) / tested)
