"""Sweeps: what one edit does at every cell of a grid, each cell by itself.

Patches of clean and corrupted prompts are run in both directions; ablations and other edits may be run on prompts
that have no counterpart, too. The cells share their forwards (see `batched`): over L layers about L forwards take the
place of one for each cell. The rows that are computed are as many as before, but on average pass half of the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .batched import Cost, Measured, Setting, measure
from .edits import Edit
from .grids import Axis, Grid
from .intervene import NOTHING, Materials, edited_dictionaries
from .measures import Direction, Effect, Fidelity, Interval, Mean, Question, effect, fidelity, mean, metric
from .pictures import heat_maps, points
from .prompts import Batch, Pairs
from .records import Provenance, Trial, provenance_of
from .runs import AT_ONCE, gather
from .work import Work

SETTINGS: Mapping[Direction, Setting] = {
    "denoise": Setting("corrupted", "clean"),
    "noise": Setting("clean", "corrupted"),
}


@dataclass(frozen=True, slots=True)
class Shift:
    """How far an edit moved a metric of prompts that have no counterpart."""

    metric: str
    formula: str
    plain: tuple[float, ...]
    """By prompt, as `edited`."""
    edited: tuple[float, ...]
    change: Mean
    """Of edited - plain, in the metric's unit, with its interval over prompts."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One edit of a sweep and what it did."""

    labels: tuple[str, ...]
    """On each axis."""
    edit: Edit
    max_change: Mapping[str, float]
    """By direction (`prompts` without pairs), the largest change of a coordinate at the site; 0: it changed nothing."""
    effects: tuple[Effect | Shift, ...]
    """By direction and metric."""

    def effect(self, metric: str, direction: Direction | None = None) -> Effect | Shift:
        """The effect on a metric; with the direction where there are pairs."""
        for cell_effect in self.effects:
            if (cell_effect.metric, _direction(cell_effect)) == (metric, direction):
                return cell_effect
        choices = ", ".join(f"{each.metric} {_direction(each) or ''}".strip() for each in self.effects)
        raise NeuronautError(f"the sweep has no {metric} {direction or 'without direction'}; it has {choices}")


@dataclass(frozen=True, slots=True)
class Sweep:
    """The effects of a grid of edits, each by itself."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    """Row by row of the grid: the last axis changes fastest."""
    cost: Cost
    dictionaries: Mapping[str, Fidelity]
    """By `SITE@NAME`, how far each dictionary that is edited can be trusted on these prompts (of pairs, the clean)."""
    provenance: Provenance
    seed: int
    """Of the intervals."""

    def values(self, metric: str, direction: Direction | None = None) -> list[float | None]:
        """By cell, the fraction recovered, or of prompts without counterparts the mean change; None if withheld."""
        return [_value(cell.effect(metric, direction)) for cell in self.cells]

    def top(self, count: int, *, metric: str, direction: Direction | None = None) -> tuple[Cell, ...]:
        """The cells with the largest values, whatever their sign; withheld ones are left out."""
        values = zip(self.values(metric, direction), self.cells, strict=True)
        measured = [(value, cell) for value, cell in values if value is not None]
        return tuple(cell for _, cell in sorted(measured, key=lambda pair: -abs(pair[0]))[:count])

    def to_json(self) -> dict[str, Any]:
        """All of it, as objects, lists, strings and numbers."""
        data = asdict(self)
        for cell, written in zip(self.cells, data["cells"], strict=True):
            written["edit"] = str(cell.edit)
        return data | {"provenance": self.provenance.model_dump()}

    def picture(self, path: str | Path, *, metric: str | None = None, title: str = "") -> None:
        """Draw a metric (by default the first): two axes as a heat map, one as points; a panel for each direction."""
        name = metric or self.cells[0].effects[0].metric
        directions: list[Direction | None] = [
            _direction(effect) for effect in self.cells[0].effects if effect.metric == name
        ]
        if not directions or len(self.axes) not in (1, 2):
            raise NeuronautError(
                f"cannot draw {name} over {len(self.axes)} axes; wanted a metric that was measured and 1 or 2 axes"
            )
        unit = f"{name}, {'fraction recovered' if directions[0] else 'mean change'}"
        panels: dict[str, list[float | None]] = {side or "edited": self.values(name, side) for side in directions}
        *rows, columns = self.axes
        if rows:
            grids = {panel: _fold_rows(values, len(columns.labels)) for panel, values in panels.items()}
            heat_maps(
                grids,
                rows=rows[0].labels,
                columns=columns.labels,
                title=title,
                path=path,
                unit=unit,
                x_label=columns.name,
            )
        else:
            spans = {
                side or "edited": [_interval(cell.effect(name, side)) for cell in self.cells] for side in directions
            }
            points(panels, labels=columns.labels, title=title, path=path, intervals=spans, unit=unit)


def _direction(effect: Effect | Shift) -> Direction | None:
    return effect.direction if isinstance(effect, Effect) else None


def _value(effect: Effect | Shift) -> float | None:
    return effect.recovered if isinstance(effect, Effect) else effect.change.value


def _interval(effect: Effect | Shift) -> Interval | None:
    return effect.interval if isinstance(effect, Effect) else effect.change.interval


def _fold_rows(values: list[float | None], width: int) -> list[list[float | None]]:
    return [values[start : start + width] for start in range(0, len(values), width)]


def sweep(
    subject: Subject,
    pairs: Pairs,
    grid: Grid,
    *,
    directions: Sequence[Direction] = ("denoise", "noise"),
    metrics: Sequence[str] = ("logit_difference",),
    materials: Materials = NOTHING,
    reference: Batch | None = None,
    at_once: int = AT_ONCE,
    seed: int = 0,
    work: Work | None = None,
) -> Sweep:
    """Every edit by itself, on the corrupted prompts with clean source runs (denoise), and the other way round (noise).

    KL is taken to the clean run. `reference` is the text that means and draws are of; `at_once` bounds the rows of a
    forward and changes nothing beyond rounding; `work` is told how much there is. Raises NeuronautError where no edit
    changes anything.

    >>> pairs = Pairs.of(subject, [("x = [1, 2", "x = (1, 2", "]", ")"), ("y = [3, 4", "y = (3, 4", "]", ")")])
    >>> grid = Grid.of(Edit.parse("resid_post.0=patch"), sites=["resid_post.0", "resid_post.1"])
    >>> len(sweep(subject, pairs, grid, directions=["denoise"]).cells)
    2
    """
    prompts = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    settings = {direction: SETTINGS[direction] for direction in directions}
    question = Question(pairs.answers, pairs.wrong)
    if work is not None:
        work.begin("reads the reference text")
    gathered = gather(subject, grid.edits, materials=materials, reference=reference)
    measured = measure(
        subject,
        grid.edits,
        prompts,
        settings,
        question,
        metrics=metrics,
        materials=gathered,
        at_once=at_once,
        work=work,
    )
    effects = [_build_effects(measured, cell, directions, metrics, seed) for cell in range(len(grid.edits))]
    trial = _describe_trial(
        grid, metrics=metrics, question=question, batch=pairs.clean, source_run=pairs.corrupted, reference=reference
    )
    return _build_sweep(
        subject,
        grid=grid,
        cells=_build_cells(grid, measured, effects),
        cost=measured.cost,
        trial=trial,
        batch=pairs.clean,
        materials=gathered,
        seed=seed,
    )


def sweep_prompts(
    subject: Subject,
    batch: Batch,
    grid: Grid,
    *,
    answers: Tensor,
    wrong: Tensor | None = None,
    metrics: Sequence[str] = ("log_probability",),
    materials: Materials = NOTHING,
    reference: Batch | None = None,
    at_once: int = AT_ONCE,
    seed: int = 0,
    work: Work | None = None,
) -> Sweep:
    """As `sweep`, of ablations and other edits of prompts without counterparts; `answers` and `wrong` are ids, (row,).

    KL is taken to the plain run. Patches take their values from the source runs in `materials`.
    """
    question = Question(answers, wrong)
    if work is not None:
        work.begin("reads the reference text")
    gathered = gather(subject, grid.edits, materials=materials, reference=reference)
    measured = measure(
        subject,
        grid.edits,
        {"plain": batch},
        {"prompts": Setting("plain", None)},
        question,
        metrics=metrics,
        materials=gathered,
        at_once=at_once,
        work=work,
    )
    shifts = [_build_shifts(measured, cell, metrics, seed) for cell in range(len(grid.edits))]
    trial = _describe_trial(grid, metrics=metrics, question=question, batch=batch, source_run=None, reference=reference)
    return _build_sweep(
        subject,
        grid=grid,
        cells=_build_cells(grid, measured, shifts),
        cost=measured.cost,
        trial=trial,
        batch=batch,
        materials=gathered,
        seed=seed,
    )


def _build_effects(
    measured: Measured, cell: int, directions: Sequence[Direction], metrics: Sequence[str], seed: int
) -> tuple[Effect, ...]:
    """What a cell recovers of each metric, in each direction."""
    clean, corrupted = measured.plain["clean"], measured.plain["corrupted"]
    return tuple(
        effect(
            name,
            clean=clean[at],
            corrupted=corrupted[at],
            patched=measured.edited[direction][cell, at],
            direction=direction,
            seed=seed,
        )
        for direction in directions
        for at, name in enumerate(metrics)
    )


def _build_shifts(measured: Measured, cell: int, metrics: Sequence[str], seed: int) -> tuple[Shift, ...]:
    """How far a cell moves each metric."""
    plain, edited = measured.plain["plain"], measured.edited["prompts"][cell]
    return tuple(
        Shift(
            name,
            metric(name).formula,
            tuple(plain[at].tolist()),
            tuple(edited[at].tolist()),
            mean(edited[at] - plain[at], seed=seed),
        )
        for at, name in enumerate(metrics)
    )


def _build_cells(grid: Grid, measured: Measured, effects: Sequence[tuple[Effect | Shift, ...]]) -> tuple[Cell, ...]:
    changes = [
        {name: float(by_edit[cell]) for name, by_edit in measured.changes.items()} for cell in range(len(grid.edits))
    ]
    return tuple(Cell(*parts) for parts in zip(grid.labels, grid.edits, changes, effects, strict=True))


def _describe_trial(
    grid: Grid,
    metrics: Sequence[str],
    question: Question,
    batch: Batch,
    source_run: Batch | None,
    reference: Batch | None,
) -> Trial:
    """The sweep's inputs as provenance takes them."""
    answers, wrong = tuple(question.answers.tolist()), question.wrong
    return Trial(
        prompts=batch.rows(),
        edits=grid.edits,
        metrics=tuple(metrics),
        answers=answers,
        wrong=None if wrong is None else tuple(wrong.tolist()),
        source_runs=None if source_run is None else source_run.rows(),
        reference=None if reference is None else reference.rows(),
    )


def _build_sweep(
    subject: Subject,
    grid: Grid,
    cells: tuple[Cell, ...],
    cost: Cost,
    trial: Trial,
    batch: Batch,
    materials: Materials,
    seed: int,
) -> Sweep:
    used = edited_dictionaries(grid.edits, materials)
    trust = {name: fidelity(subject, dictionary, batch) for name, dictionary in used.items()}
    return Sweep(
        axes=grid.axes,
        cells=cells,
        cost=cost,
        dictionaries=trust,
        provenance=provenance_of(subject, trial, sources=used),
        seed=seed,
    )
