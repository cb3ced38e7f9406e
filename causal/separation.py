"""How well numbers tell two sets of examples apart: AUROC, its interval, its p value, and many of them at once.

    AUROC     U / (n m), U of Mann and Whitney: the chance that an example of the first set is above one of the second,
              a tie counting half
    p         two-sided, by the normal approximation of U with ties and continuity corrected
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

import torch
from torch import Tensor

LEVEL = 0.95
_STEPS = 60
"""Halvings of an interval's end: to the last bit."""


class Separations(NamedTuple):
    """How well each column tells the first set from the second; all (column,), float64."""

    auroc: Tensor
    p: Tensor


def separate(first: Tensor, second: Tensor) -> Separations:
    """AUROC and p of every column. first: (example, column), second: (other example, column)."""
    pooled = torch.cat([first, second]).T.contiguous()
    order = pooled.sort(dim=1).values
    below, until = (torch.searchsorted(order, pooled, right=right) for right in (False, True))
    n, m = len(first), len(second)
    wins = ((below + until + 1).double() / 2)[:, :n].sum(1) - n * (n + 1) / 2
    ties = ((until - below).double().square() - 1).sum(1) / ((n + m) * (n + m - 1))
    deviation = (n * m / 12 * (n + m + 1 - ties)).clamp_min(0).sqrt()
    z = ((wins - n * m / 2).abs() - 0.5).clamp_min(0) / deviation.clamp_min(1e-300)
    return Separations(wins / (n * m), torch.special.erfc(z / math.sqrt(2)))


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
