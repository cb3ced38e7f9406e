"""Attribution patching: what patching would do, for every node at once, by gradients, and how far that is right.

With M the metric, a the values of a node and `base` the run that would be patched (corrupted to denoise, clean to
noise), the first-order prediction of how far patching the node alone moves M sign the clean run, or away from it, is

    score = sum over positions and coordinates of (a_clean - a_corrupted) . dM/da at base             (Nanda 2023)
    score = the same with the mean of dM/da along a line between the runs, by the midpoint rule       (see `gradients`)

in units of M. A node is a cell of a grid of patches: a head, neuron, feature, whole vector, each at its positions; what
a dictionary leaves out is a node too, so that features and error together are worth what the whole vector is.

Nothing is believed unchecked. Three gradings come with every result: completeness (do the scores of a cut, which all
that differs must pass, add up to M(clean) - M(corrupted)?), agreement with exact patching in rank on a random sample
of cells, and exact patching of the highest-ranked ones. What does not hold is said in `doubts`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .agreement import Agreement, Cut, Graded, Verified, find_doubts, grade
from .batched import Cost, observe
from .edits import Edit
from .gradients import WITH_GRADIENTS, Ends, Passes, Slopes, check_patches, score_patches
from .grids import Axis, Grid
from .intervene import NOTHING, Materials
from .measures import EPSILON, Direction, Question
from .measures import metric as metric_of
from .pictures import heat_map, points
from .prompts import Pairs
from .records import Provenance
from .runs import AT_ONCE
from .sweeps import SETTINGS
from .units import GRADIENTS, written_site


class Line(NamedTuple):
    """A line to average gradients along, by the midpoint rule."""

    over: Literal["site", "embed"]
    """Whose vectors move: each node's own site's, or the embeddings; see `gradients`."""
    steps: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its score."""

    labels: tuple[str, ...]
    """On each axis of the grid; of a dictionary's error its name."""
    edit: Edit | None
    """The patch that is predicted; None of a dictionary's error, which no edit patches alone."""
    scores: tuple[float, ...]
    """By pair, in the metric's unit; positive: the clean values there favour the clean answer."""

    @property
    def score(self) -> float:
        """The mean over pairs."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Attribution:
    """Predicted effects of patches, graded."""

    axes: tuple[Axis, ...]
    nodes: tuple[Node, ...]
    """The grid's cells, row by row, then the errors of dictionaries."""
    direction: Direction
    metric: str
    formula: str
    """Which gradient, taken where, by which rule; with the metric's formula id."""
    clean: tuple[float, ...]
    """The metric by pair, as `corrupted`."""
    corrupted: tuple[float, ...]
    cuts: tuple[Cut, ...]
    agreement: Agreement
    verified: tuple[Verified, ...]
    """The nodes of the largest scores, patched exactly; largest first."""
    doubts: tuple[str, ...]
    """What did not hold, in words; empty where all did."""
    passes: Passes
    """Of the gradients and the plain runs; exact patching is in `exact`."""
    exact: Cost
    provenance: Provenance
    seed: int
    """Of the sample, and of the intervals."""

    @property
    def difference(self) -> float:
        """M(clean) - M(corrupted), mean over pairs: what a score is a share of."""
        return (sum(self.clean) - sum(self.corrupted)) / len(self.clean)

    def ranked(self) -> tuple[Node, ...]:
        """The largest scores first, whatever their sign."""
        return tuple(sorted(self.nodes, key=lambda node: -abs(node.score)))

    def to_json(self) -> dict[str, Any]:
        """All of it, as objects, lists, strings and numbers."""
        data = asdict(self) | {"provenance": self.provenance.model_dump()}
        data["nodes"] = [
            asdict(node) | {"edit": node.edit and str(node.edit), "score": node.score} for node in self.nodes
        ]
        data["verified"] = [asdict(node) | {"edit": str(node.edit)} for node in self.verified]
        return data

    def picture(self, path: str | Path, *, title: str = "") -> None:
        """Draw the scores of a grid of two axes as a heat map, of one as points."""
        if len(self.axes) not in (1, 2):
            raise NeuronautError(f"cannot draw {len(self.axes)} axes; wanted 1 or 2")
        *rows, columns = self.axes
        scores = [node.score for node in self.nodes if node.edit is not None]
        unit, width = f"{self.metric}, predicted effect", len(columns.labels)
        if rows:
            values = [scores[start : start + width] for start in range(0, len(scores), width)]
            heat_map(
                values,
                rows=rows[0].labels,
                columns=columns.labels,
                title=title,
                path=path,
                unit=unit,
                x_label=columns.name,
            )
        else:
            points({self.direction: scores}, labels=columns.labels, title=title, path=path, unit=unit)


@dataclass(frozen=True, eq=False, slots=True)
class _Task:
    """The inputs that all parts of the prompts share."""

    subject: Subject
    edits: Sequence[Edit]
    direction: Direction
    metric: str
    line: Line | None
    materials: Materials
    at_once: int
    passes: Passes

    @property
    def sites(self) -> list[str]:
        """The sites of the edits."""
        return list(dict.fromkeys(edit.site for edit in self.edits))

    @property
    def written(self) -> list[str]:
        """The sites that the edits change, by which gradients are taken."""
        return list(dict.fromkeys(written_site(edit, self.materials.sources, GRADIENTS) for edit in self.edits))

    @property
    def cuts(self) -> list[str]:
        """The sites that are checked for completeness."""
        if self.line is not None and self.line.over == "site":
            return self.written
        layers = sorted({edit.layer for edit in self.edits if edit.layer is not None})
        return [site for site in ("embed", *(f"resid_post.{layer}" for layer in layers)) if site in self.subject.sites]

    @property
    def recorded(self) -> list[str]:
        """The sites whose vectors are needed of both runs."""
        over = self.line.over if self.line else None
        begins = {"embed": ["embed"], "site": [f"resid_pre.{edit.layer}" for edit in self.edits if edit.layer]}
        return list(dict.fromkeys([*self.sites, *self.written, *self.cuts, *begins.get(over or "", [])]))


class _Part(NamedTuple):
    """Scores of some pairs, in the sense of moving sign the clean run; on the CPU."""

    clean: Tensor
    """(row,), as corrupted."""
    corrupted: Tensor
    scores: Tensor
    """(node, row)."""
    errors: dict[str, Tensor]
    """By name, (row,)."""
    totals: Tensor
    """(cut, row), as wanted."""
    wanted: Tensor


@torch.inference_mode(False)
@torch.no_grad()
def attribution_patching(
    subject: Subject,
    pairs: Pairs,
    grid: Grid,
    *,
    direction: Direction = "denoise",
    metric: str = "logit_difference",
    line: Line | None = None,
    materials: Materials = NOTHING,
    sample: int = 40,
    top: int = 10,
    at_once: int = AT_ONCE,
    seed: int = 0,
) -> Attribution:
    """Predict every patch of the grid, grade the predictions, and patch `top` of them exactly.

    Without a line the gradient is taken at the base run: three forwards and one backward in all. With one it is
    steps as many rows for `embed`, and that for each site for `site`. `at_once` bounds the rows of a pass.

    >>> pairs = Pairs.of(subject, [("x = [1, 2", "x = (1, 2", "]", ")"), ("y = [3, 4", "y = (3, 4", "]", ")")])
    >>> grid = Grid.of(Edit.parse("resid_post.0=patch"), sites=["resid_post.0", "resid_post.1"])
    >>> attribution = attribution_patching(subject, pairs, grid, sample=2, top=1)
    >>> len(attribution.nodes)
    2
    """
    if sample < 1 or top < 1 or at_once < 1 or (line is not None and line.steps < 1):
        raise NeuronautError(
            f"cannot take a sample of {sample}, the top {top}, {at_once} rows at once, and {line}; wanted at least 1"
        )
    task = _Task(
        subject=subject,
        edits=grid.edits,
        direction=direction,
        metric=metric,
        line=line,
        materials=materials,
        at_once=at_once,
        passes=Passes(),
    )
    whole = _score_pairs(task, pairs)
    graded = grade(
        subject,
        pairs,
        grid,
        whole.scores.mean(1).tolist(),
        direction=direction,
        metric=metric,
        materials=materials,
        sample=sample,
        top=top,
        at_once=at_once,
        seed=seed,
    )
    return _build_attribution(task, grid, whole, graded, seed=seed)


class Predicted(NamedTuple):
    """What patches are predicted to do, not graded."""

    scores: Tensor
    """(edit, row), as of nodes."""
    difference: float
    """M(clean) - M(corrupted), mean over pairs."""
    passes: Passes


@torch.inference_mode(False)
@torch.no_grad()
def predict_patches(
    subject: Subject,
    pairs: Pairs,
    edits: Sequence[Edit],
    *,
    direction: Direction,
    metric: str,
    materials: Materials = NOTHING,
    at_once: int = AT_ONCE,
) -> Predicted:
    """Predict every patch from the gradient at the base run, for callers that grade by themselves."""
    task = _Task(
        subject=subject,
        edits=edits,
        direction=direction,
        metric=metric,
        line=None,
        materials=materials,
        at_once=at_once,
        passes=Passes(),
    )
    whole = _score_pairs(task, pairs)
    return Predicted(whole.scores, float((whole.clean - whole.corrupted).mean()), task.passes)


def _score_pairs(task: _Task, pairs: Pairs) -> _Part:
    metric_of(task.metric)  # An unknown one is an error that lists them.
    check_patches(task.subject, task.edits, task.materials)

    def score(part: slice) -> _Part:
        return _score_part(task, pairs.take(torch.arange(part.start, part.stop)))

    return _join_parts([*task.subject.batching.batches(len(pairs), task.at_once, score, work=WITH_GRADIENTS)])


def _build_attribution(task: _Task, grid: Grid, whole: _Part, graded: Graded, *, seed: int) -> Attribution:
    difference = float((whole.clean - whole.corrupted).mean())
    cuts = tuple(
        _check_cut(site, total, wanted, difference)
        for site, total, wanted in zip(task.cuts, whole.totals.mean(1), whole.wanted.mean(1), strict=True)
    )
    return Attribution(
        axes=grid.axes,
        nodes=_build_nodes(grid, whole),
        direction=task.direction,
        metric=task.metric,
        formula=_describe_formula(task),
        clean=tuple(whole.clean.tolist()),
        corrupted=tuple(whole.corrupted.tolist()),
        cuts=cuts,
        agreement=graded.agreement,
        verified=graded.verified,
        doubts=find_doubts(cuts, graded.agreement, graded.verified, difference),
        passes=task.passes,
        exact=graded.sweep.cost,
        provenance=graded.sweep.provenance,
        seed=seed,
    )


def _join_parts(parts: Sequence[_Part]) -> _Part:
    """The parts as one, with the rows of all of them."""
    return _Part(
        clean=torch.cat([part.clean for part in parts]),
        corrupted=torch.cat([part.corrupted for part in parts]),
        scores=torch.cat([part.scores for part in parts], 1),
        errors={name: torch.cat([part.errors[name] for part in parts]) for name in parts[0].errors},
        totals=torch.cat([part.totals for part in parts], 1),
        wanted=torch.cat([part.wanted for part in parts], 1),
    )


def _build_nodes(grid: Grid, whole: _Part) -> tuple[Node, ...]:
    """The grid's cells, row by row, then the errors of dictionaries."""
    cells = [
        Node(labels, edit, tuple(row.tolist()))
        for labels, edit, row in zip(grid.labels, grid.edits, whole.scores, strict=True)
    ]
    errors = [Node((name,), None, tuple(row.tolist())) for name, row in whole.errors.items()]
    return (*cells, *errors)


def _score_part(task: _Task, pairs: Pairs) -> _Part:
    setting, prompts = SETTINGS[task.direction], {"clean": pairs.clean, "corrupted": pairs.corrupted}
    assert setting.source_run is not None, "patches have source runs"
    runs = {name: observe(task.subject, batch, task.recorded) for name, batch in prompts.items()}
    task.passes.forwards += 2
    question = Question(pairs.answers, pairs.wrong, runs["clean"][0])
    values = {name: metric_of(task.metric)(logits, question).double() for name, (logits, _) in runs.items()}
    batch, ends = prompts[setting.base], Ends(runs[setting.base][1], runs[setting.source_run][1])
    slopes = Slopes(
        subject=task.subject,
        batch=batch,
        ends=ends,
        question=question,
        metric=task.metric,
        at_once=task.at_once,
        passes=task.passes,
    )
    sign = 1.0 if task.direction == "denoise" else -1.0
    gradients, wanted = _take_gradients(task, slopes, values["clean"] - values["corrupted"], values[setting.base], sign)
    scores, errors = score_patches(task.subject, batch, task.edits, ends, gradients, materials=task.materials)
    totals = [((ends.source_run[cut] - ends.base[cut]) * gradients[cut]).double().sum((1, 2)) for cut in task.cuts]
    return _Part(
        clean=values["clean"].cpu(),
        corrupted=values["corrupted"].cpu(),
        scores=sign * scores,
        errors={name: sign * error for name, error in errors.items()},
        totals=sign * torch.stack(totals).cpu(),
        wanted=wanted.cpu(),
    )


def _take_gradients(
    task: _Task, slopes: Slopes, difference: Tensor, base: Tensor, sign: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients by site, and what the scores of each cut should add up to, (cut, row)."""
    sites = list(dict.fromkeys([*task.written, *task.cuts]))
    if task.line is not None and task.line.over == "site":
        along = {site: slopes.along_site(site, steps=task.line.steps) for site in sites}
        ends = [sign * (along[cut][1].double() - base) for cut in task.cuts]
        return {site: gradient for site, (gradient, _) in along.items()}, torch.stack(ends)
    whole = difference.expand(len(task.cuts), -1)
    if task.line is not None:
        return slopes.along_embed(sites, steps=task.line.steps), whole
    return slopes.at_base(sites), whole


def _check_cut(site: str, total: Tensor, wanted: Tensor, difference: float) -> Cut:
    error = float(total - wanted)
    return Cut(site, float(total), float(wanted), error / difference if abs(difference) >= EPSILON else None)


def _describe_formula(task: _Task) -> str:
    base = SETTINGS[task.direction].base
    text = {
        "point": f"at the {base} run",
        "embed": "mean over {} midpoints from corrupted to clean embeddings",
        "site": "mean over {} midpoints from corrupted to clean vectors of the site, the " + base + " run before it",
    }[task.line.over if task.line else "point"]
    at = text.format(task.line.steps if task.line else 0)
    return f"sum (clean - corrupted) . dM/d(node) {at}, M = {metric_of(task.metric).formula}/1"
