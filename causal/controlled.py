"""An edit's effect among those of its controls: the same run with other units, and with random changes of its norm.

The controls of all sorts are run beside the edit (see `sweeps`), so that they cost a few forwards and meet the very
same prompts, donors and reference. A control that changes nothing at its site, such as the ablation of a feature that
is silent on these prompts, is no match for an edit that does: it is counted, and the edit is not ranked above it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..subject.model import Subject
from .applying import NOTHING, Materials
from .controls import Standing, matched, standing
from .edits import Edit
from .grids import Grid
from .measures import Direction
from .prompts import Batch, Pairs
from .sweeps import Sweep, sweep, sweep_prompts


@dataclass(frozen=True, slots=True)
class Ranked:
    """An effect among those of one sort of controls."""

    effect: float | None
    """None where it is withheld."""
    standing: Standing | None
    """None where the effect is withheld, or every control was silent."""
    silent: int
    """Controls that changed nothing, and are left out of the standing."""


Standings = dict[str, Ranked]
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
    return _ranked(swept, swept.values(metric), "prompts", sorts)


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
    """As `among_controls`, of the fraction that an edit of pairs recovers."""
    sorts = matched(subject, edit, sources=materials.sources, count=count, seed=seed)
    swept = sweep(
        subject, pairs, _grid(edit, sorts), directions=directions, metrics=(metric,), materials=materials,
        reference=reference, seed=seed,
    )  # fmt: skip
    return {direction: _ranked(swept, swept.values(metric, direction), direction, sorts) for direction in directions}


def _grid(edit: Edit, sorts: Mapping[str, Sequence[Edit]]) -> Grid:
    return Grid.listed([edit, *(control for controls in sorts.values() for control in controls)])


def _ranked(swept: Sweep, values: Sequence[float | None], run: str, sorts: Mapping[str, Sequence[Edit]]) -> Standings:
    """The first value among those of each sort, which follow it in order; `run` names the runs they are of."""
    found: Standings = {}
    real, start = values[0], 1
    for sort, controls in sorts.items():
        span = range(start, start + len(controls))
        start = span.stop
        acting = [at for at in span if swept.cells[at].max_change[run] > 0]
        known = [value for at in acting if (value := values[at]) is not None]
        ranked = standing(real, known) if real is not None and known else None
        found[sort] = Ranked(real, ranked, len(span) - len(acting))
    return found
