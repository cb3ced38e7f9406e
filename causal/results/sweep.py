"""Rows of `sweep`: an edit at every cell of a grid."""

from collections.abc import Sequence

from ...subject.errors import NeuronautError
from ..controls import population
from ..grids import Grid, each_position, sites_of
from ..measures import Effect
from ..prompts import Batch
from ..setup import CausalSetup
from ..sweeps import Shift, Sweep
from .common import Row, ends
from .patch import effect_row

AXES = ("layers", "units", "positions")
"""What an edit may be repeated over."""


def grid_of(setup: CausalSetup, axes: Sequence[str], batch: Batch) -> Grid:
    """The setup's edit at every cell of these AXES; all of its edits one by one where none is named.

    Raises NeuronautError for another axis, for axes with several edits, and for a site without its layer.
    """
    if wrong := [axis for axis in axes if axis not in AXES]:
        raise NeuronautError(
            f"over {','.join(axes)}: there is no axis {wrong[0]!r}; wanted {', '.join(AXES)} with commas between"
        )
    if not axes:
        return Grid.of_edits(setup.edits)
    if len(setup.edits) != 1:
        raise NeuronautError(f"over goes with one edit, and {len(setup.edits)} are given; leave it out, or name one")
    (edit,) = setup.edits
    kind, _, layer = edit.site.partition(".")
    sites = sites_of(setup.subject, kind) if "layers" in axes else (edit.site,)
    if not layer and "layers" not in axes and edit.site not in setup.subject.sites:
        raise NeuronautError(f"edit {edit} names no layer; repeat it over layers, or name one as in {kind}.0")
    somewhere = edit.model_copy(update={"site": sites[0]})
    units = edit.units or range(population(setup.subject, somewhere, sources=setup.dictionaries))
    places, labels = each_position(setup.subject, batch) if "positions" in axes else (None, None)
    return Grid.of(
        edit,
        sites=sites if "layers" in axes else None,
        units=units if "units" in axes else None,
        positions=places,
        labels=labels,
    )


def cell_rows(result: Sweep) -> list[Row]:
    """A row for each cell, with its label on each axis; the largest effect, of pairs in either direction, first."""
    names = [axis.name for axis in result.axes]
    rows: list[Row] = [
        dict(zip(names, cell.labels, strict=True))
        | {
            "edit": str(cell.edit),
            "max_change": dict(cell.max_change),
            "effects": [_cell_effect(effect) for effect in cell.effects],
        }
        for cell in result.cells
    ]
    rows.sort(key=_largest_first)
    return rows


def _largest_first(row: Row) -> float:
    return -max(abs(effect["value"] or 0.0) for effect in row["effects"])


def _cell_effect(effect: Effect | Shift) -> Row:
    """An effect with `value`: the fraction recovered, or the mean change."""
    if isinstance(effect, Effect):
        row = effect_row(effect)
        del row["values"]
        return row | {"value": row.pop("recovered")}
    return {
        "direction": None,
        "metric": effect.metric,
        "formula": effect.formula,
        "value": effect.change.value,
        **ends(effect.change.interval),
        "n": effect.change.n,
    }
