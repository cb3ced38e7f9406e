"""Matched controls: what edits do that should do nothing in particular, so that a real effect can be told from any.

A control keeps everything of the edit (site, operation, strength, positions) but what it is about: it has other units
of the same site, or a change of the same norm in a random direction. The real effect is then ranked among theirs.

The controls of all sorts are run beside the edit (see `sweeps`), so that they cost a few forwards and meet the very
same prompts, source runs and reference. A control that changes nothing at its site, such as the ablation of a feature
that is silent on these prompts, is no match for an edit that does: it is counted, and the edit is not ranked above it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .edits import Edit
from .grids import Grid
from .intervene import NOTHING, Materials
from .measures import Direction
from .prompts import Batch, Pairs
from .sweeps import Sweep, sweep, sweep_prompts

_TRIES = 50
"""Draws for each control wanted, before there are taken to be no more sets of units."""


def population(subject: Subject, edit: Edit, *, sources: Mapping[str, Source]) -> int:
    """How many units of the edit's sort there are at its site."""
    if edit.dictionary is not None:
        return sources[f"{edit.site}@{edit.dictionary}"].width
    return subject.heads(edit.site) or subject.width(edit.site)


def other_units(edit: Edit, *, population: int, count: int, seed: int = 0) -> tuple[Edit, ...]:
    """The same edit of `count` other sets of as many units, none of them the edit's; fewer where there are no more."""
    real = set(edit.units or ())
    others = torch.tensor([unit for unit in range(population) if unit not in real])
    if not real or len(others) < len(real):
        raise NeuronautError(
            f"edit {edit} has no matched units: {len(real)} of {population} are its own; use random directions instead"
        )
    generator = torch.Generator().manual_seed(seed)
    sets: dict[tuple[int, ...], None] = {}
    for _ in range(_TRIES * count):
        chosen = others[torch.randperm(len(others), generator=generator)[: len(real)]]
        sets.setdefault(tuple(sorted(chosen.tolist())))
        if len(sets) == count:
            break
    return tuple(edit.model_copy(update={"units": units}) for units in sets)


def random_directions(edit: Edit, *, count: int, seed: int = 0) -> tuple[Edit, ...]:
    """`count` edits that make changes of the same norm at the same positions, each in a random direction of its own."""
    if edit.on_pattern:
        raise NeuronautError(
            f"edit {edit} is of attention weights, which have no directions; use other heads as controls"
        )
    seeds = torch.randint(2**31, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(edit.model_copy(update={"control": control_seed}) for control_seed in seeds)


def draw_controls(
    subject: Subject, edit: Edit, *, sources: Mapping[str, Source], count: int, seed: int = 0
) -> dict[str, tuple[Edit, ...]]:
    """At most `count` controls of each sort that the edit has: `other units`, `random directions`."""
    controls: dict[str, tuple[Edit, ...]] = {}
    size = population(subject, edit, sources=sources)
    # A multiple of a quantile means nothing of units that never fire in the reference, as most may not.
    if edit.units is not None and edit.quantile is None and 2 * len(edit.units) <= size:
        controls["other units"] = other_units(edit, population=size, count=count, seed=seed)
    if not edit.on_pattern:
        controls["random directions"] = random_directions(edit, count=count, seed=seed)
    if not controls:
        raise NeuronautError(f"edit {edit} has no controls; name fewer heads, so that there are others")
    return controls


@dataclass(frozen=True, slots=True)
class ControlRank:
    """A real effect among those of its controls, by size."""

    real: float
    controls: tuple[float, ...]
    percentile: float
    """Percent of the controls whose effect is smaller; a tie counts half."""
    p: float
    """(1 + controls at least as large) / (1 + controls): how often a control would do as well."""


def rank_among(real: float, controls: Sequence[float]) -> ControlRank:
    """Rank an effect among those of its controls."""
    if not controls:
        raise NeuronautError("there are no controls to rank the effect among; draw some with other_units()")
    sizes = [abs(control) for control in controls]
    smaller, ties = sum(size < abs(real) for size in sizes), sum(size == abs(real) for size in sizes)
    percentile = 100 * (smaller + ties / 2) / len(sizes)
    return ControlRank(real, tuple(controls), percentile, (1 + len(sizes) - smaller) / (1 + len(sizes)))


@dataclass(frozen=True, slots=True)
class Ranked:
    """An effect among those of one sort of controls."""

    effect: float | None
    """None where it is withheld."""
    rank: ControlRank | None
    """None where the effect is withheld, or every control was silent."""
    silent: int
    """Controls that changed nothing, and are left out of the rank."""


RanksBySort = dict[str, Ranked]
"""By sort of controls; see `draw_controls`."""


def rank_among_controls(
    subject: Subject,
    batch: Batch,
    edit: Edit,
    *,
    answers: Tensor,
    count: int,
    metric: str = "kl",
    materials: Materials = NOTHING,
    reference: Batch | None = None,
    seed: int = 0,
) -> RanksBySort:
    """Rank how far an edit of prompts without counterparts moves a metric, on average, among `count` of each sort."""
    sorts = draw_controls(subject, edit, sources=materials.sources, count=count, seed=seed)
    swept = sweep_prompts(
        subject,
        batch,
        _grid(edit, sorts),
        answers=answers,
        metrics=(metric,),
        materials=materials,
        reference=reference,
        seed=seed,
    )
    return _rank_sorts(swept, swept.values(metric), "prompts", sorts)


def rank_patch_among_controls(
    subject: Subject,
    pairs: Pairs,
    edit: Edit,
    *,
    directions: Sequence[Direction],
    count: int,
    metric: str = "logit_difference",
    materials: Materials = NOTHING,
    reference: Batch | None = None,
    seed: int = 0,
) -> dict[Direction, RanksBySort]:
    """As `rank_among_controls`, of the fraction that an edit of pairs recovers."""
    sorts = draw_controls(subject, edit, sources=materials.sources, count=count, seed=seed)
    swept = sweep(
        subject,
        pairs,
        _grid(edit, sorts),
        directions=directions,
        metrics=(metric,),
        materials=materials,
        reference=reference,
        seed=seed,
    )
    return {
        direction: _rank_sorts(swept, swept.values(metric, direction), direction, sorts) for direction in directions
    }


def _grid(edit: Edit, sorts: Mapping[str, Sequence[Edit]]) -> Grid:
    return Grid.of_edits([edit, *(control for controls in sorts.values() for control in controls)])


def _rank_sorts(
    swept: Sweep, values: Sequence[float | None], run: str, sorts: Mapping[str, Sequence[Edit]]
) -> RanksBySort:
    """The first value among those of each sort, which follow it in order; `run` names the runs they are of."""
    ranks: RanksBySort = {}
    real, start = values[0], 1
    for sort, controls in sorts.items():
        span = range(start, start + len(controls))
        start = span.stop
        active = [at for at in span if swept.cells[at].max_change[run] > 0]
        effects = [value for at in active if (value := values[at]) is not None]
        rank = rank_among(real, effects) if real is not None and effects else None
        ranks[sort] = Ranked(real, rank, len(span) - len(active))
    return ranks
