"""An edit's effect among those of its controls: the same run with other units, and with random changes of its norm.

The controls of all sorts are run beside the edit (see `sweeps`), so that they cost a few forwards and meet the very
same prompts, donors and reference.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..subject.model import Subject
from .applying import NOTHING, Materials
from .controls import Standing, matched, standing
from .edits import Edit
from .grids import Grid
from .measures import Direction
from .prompts import Batch, Pairs
from .sweeps import sweep, sweep_prompts

Standings = dict[str, Standing]
"""By sort of controls; see `controls.matched`."""


def among_controls(
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
) -> Standings:
    """Rank how far an edit of prompts without counterparts moves a metric, on average, among `count` of each sort."""
    sorts = matched(subject, edit, sources=materials.sources, count=count, seed=seed)
    swept = sweep_prompts(
        subject, batch, _grid(edit, sorts), answers=answers, metrics=(metric,), materials=materials,
        reference=reference, seed=seed,
    )  # fmt: skip
    return _ranked(swept.values(metric), sorts)


def patch_among_controls(
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
) -> dict[Direction, Standings]:
    """As `among_controls`, of the fraction that an edit of pairs recovers; nothing where the fraction is withheld."""
    sorts = matched(subject, edit, sources=materials.sources, count=count, seed=seed)
    swept = sweep(
        subject, pairs, _grid(edit, sorts), directions=directions, metrics=(metric,), materials=materials,
        reference=reference, seed=seed,
    )  # fmt: skip
    return {direction: _ranked(swept.values(metric, direction), sorts) for direction in directions}


def _grid(edit: Edit, sorts: Mapping[str, Sequence[Edit]]) -> Grid:
    return Grid.listed([edit, *(control for controls in sorts.values() for control in controls)])


def _ranked(values: Sequence[float | None], sorts: Mapping[str, Sequence[Edit]]) -> Standings:
    """The first value among those of each sort, which follow it in order."""
    found: Standings = {}
    real, start = values[0], 1
    for sort, controls in sorts.items():
        known = [value for value in values[start : start + len(controls)] if value is not None]
        start += len(controls)
        if real is not None:
            found[sort] = standing(real, known)
    return found
