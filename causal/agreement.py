"""Grades an approximation: whether it adds up, ranks as the exact result does, and holds where it is highest.

completeness   sum over a cut - what the cut is responsible for; also as a share of M(clean) - M(corrupted)
spearman       correlation of the ranks, ties sharing their mean rank
overlap        share of the k largest by size that both have
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.model import Subject
from .edits import Edit
from .grids import Grid
from .intervene import Materials
from .measures import EPSILON, Direction, Effect
from .prompts import Pairs
from .sweeps import Sweep, sweep

TOLERANCE = 0.2
"""Error, as a share of M(clean) - M(corrupted), above which a result is doubted."""
RANKED = 0.8
"""Rank correlation below which a ranking is doubted."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A site that all of the difference between two runs passes, or that is patched whole."""

    site: str
    total: float
    """Of all scores at the site, mean over pairs, in the metric's unit."""
    wanted: float
    """What they should add up to: M(clean) - M(corrupted), or the exact effect of patching the whole site."""
    relative: float | None
    """(total - wanted) / (M(clean) - M(corrupted)); None where that is too small to divide by."""

    @property
    def error(self) -> float:
        """How far the scores miss what they should add up to, in the metric's unit."""
        return self.total - self.wanted


@dataclass(frozen=True, slots=True)
class Verified:
    """A node whose score was checked by exact patching."""

    labels: tuple[str, ...]
    edit: Edit
    predicted: float
    """The score, mean over pairs, in the metric's unit."""
    exact: float
    """How far patching moved the metric, mean over pairs, in the same sense and unit."""
    effect: Effect


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of predictions with exact patching, on a random sample of nodes."""

    predicted: tuple[float, ...]
    exact: tuple[float, ...]
    spearman: float | None
    """None where one of the two is the same for all nodes, or there are fewer than 3."""
    k: int
    overlap: float
    """Of the k largest in the sample."""


class Graded(NamedTuple):
    """Predictions set beside exact patching."""

    agreement: Agreement
    verified: tuple[Verified, ...]
    sweep: Sweep
    """Of the sampled and the highest-ranked nodes together."""


def grade(
    subject: Subject,
    pairs: Pairs,
    grid: Grid,
    scores: Sequence[float],
    *,
    direction: Direction,
    metric: str,
    materials: Materials,
    sample: int,
    top: int,
    at_once: int,
    seed: int,
) -> Graded:
    """Patch a random sample of the grid's cells and those of the `top` scores exactly, in one sweep."""
    drawn = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))[:sample].tolist()
    best = sorted(range(len(scores)), key=lambda index: -abs(scores[index]))[:top]
    chosen = list(dict.fromkeys([*drawn, *best]))
    exact = sweep(
        subject,
        pairs,
        Grid.of_edits(grid.edits[index] for index in chosen),
        directions=(direction,),
        metrics=(metric,),
        materials=materials,
        at_once=at_once,
        seed=seed,
    )
    effects = {
        index: effect
        for index, cell in zip(chosen, exact.cells, strict=True)
        for effect in cell.effects
        if isinstance(effect, Effect)
    }
    moves = {index: _measure_move(effect) for index, effect in effects.items()}
    compared = agreement([scores[index] for index in drawn], [moves[index] for index in drawn], top=top)
    labels = grid.labels
    verified = tuple(
        Verified(labels[index], grid.edits[index], scores[index], moves[index], effects[index]) for index in best
    )
    return Graded(compared, verified, exact)


def _measure_move(effect: Effect) -> float:
    """How far a patch moved the metric towards the clean run (denoising), or away from it (noising)."""
    ends = (effect.patched, effect.corrupted) if effect.direction == "denoise" else (effect.clean, effect.patched)
    return (sum(ends[0]) - sum(ends[1])) / effect.n


def agreement(predicted: Sequence[float], exact: Sequence[float], *, top: int) -> Agreement:
    """Compare predictions with exact effects, node by node; k is at most half of them."""
    k = max(1, min(top, len(predicted) // 2))
    rank = spearman(torch.tensor(predicted), torch.tensor(exact))
    return Agreement(tuple(predicted), tuple(exact), rank, k, overlap(predicted, exact, k))


def spearman(predicted: Tensor, exact: Tensor) -> float | None:
    """Rank correlation of (n,) and (n,)."""
    if len(predicted) < 3:
        return None
    first, second = (_rank_values(values) for values in (predicted, exact))
    size = first.norm() * second.norm()
    return float(first @ second / size) if size > 0 else None


def _rank_values(values: Tensor) -> Tensor:
    """Centred mean ranks, float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return ((last - (counts - 1) / 2) - (len(values) + 1) / 2)[place]


def overlap(predicted: Sequence[float], exact: Sequence[float], k: int) -> float:
    """Share of the k largest by size that both have."""
    chosen = [
        set(torch.tensor(values).abs().argsort(descending=True, stable=True)[:k].tolist())
        for values in (predicted, exact)
    ]
    return len(chosen[0] & chosen[1]) / k


def find_doubts(
    cuts: Sequence[Cut], agreed: Agreement, verified: Sequence[Verified], difference: float
) -> tuple[str, ...]:
    """Say what does not hold; `difference` is M(clean) - M(corrupted)."""
    if abs(difference) < EPSILON:
        return (f"clean and corrupted differ by {difference:.2g} only, so nothing can be told of their parts",)
    texts = [
        f"the scores at {cut.site} add up to {cut.total:.3g}, wanted {cut.wanted:.3g}: from there on the model "
        "is far from linear between the two runs; try the other direction, a line, or more steps of it"
        for cut in cuts
        if cut.relative is not None and abs(cut.relative) > TOLERANCE
    ]
    count = len(agreed.predicted)
    if agreed.spearman is None:
        texts.append(f"no ranking can be compared: predictions or exact effects of {count} sampled nodes are all alike")
    elif agreed.spearman < RANKED:
        texts.append(
            f"on {count} sampled nodes the ranks agree with exact patching by {agreed.spearman:.2f} only (Spearman)"
        )
    missed = [node for node in verified if abs(node.predicted - node.exact) > TOLERANCE * abs(difference)]
    if missed:
        worst = max(missed, key=lambda node: abs(node.predicted - node.exact))
        texts.append(
            f"{len(missed)} of the {len(verified)} highest scores are far from exact patching, most {worst.edit}: "
            f"predicted {worst.predicted:.3g}, exact {worst.exact:.3g}; take the exact ones"
        )
    return tuple(texts)
