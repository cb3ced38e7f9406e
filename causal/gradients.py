"""Gradients of a metric by the vectors of sites, at a run or along a straight line between two runs.

The two runs are the ends: the base is the one that patches would be written into, the source run the one they would
come from. Along a line the gradients are averaged by the midpoint rule, over m points (k - 1/2)/m of the way, k = 1..m;
what multiplies them, source run - base, is the caller's. Every prompt is a row, rows do not see each other, and no pass
has more than `at_once` of them.

    point   at the base run itself
    embed   the vectors at `embed` move; all sites are read along the way ("EAP-IG inputs", Hanna et al. 2024)
    site    the vectors at one site move, and all before it stay the base's; each site has its own line

`score_patches` then gives each patch's worth to first order: the change that it makes, times a gradient. At a site the
change is source run - base; a head or neuron is worth its coordinates' share of (source run - base) . gradient. A
feature is worth (its activation in the source run - in the base) . (gradient . what a unit of it adds), which is what
its error-preserving patch does; what all features of a dictionary leave of the vector's worth is that of its error.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.dictionary import Dictionary
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .batched import observe
from .edits import Edit
from .intervene import Materials
from .measures import Question, metric
from .prompts import Batch, where
from .runs import resumable, resume
from .units import GRADIENTS, Along, Coded, units_of, written_site

WITH_GRADIENTS = "rows with gradients"
"""What a subject's batching calls the rows of a pass."""


class Ends(NamedTuple):
    """The two runs' vectors, by site: (row, position, width)."""

    base: Mapping[str, Tensor]
    source_run: Mapping[str, Tensor]


@dataclass(slots=True)
class Passes:
    """What gradients have cost so far."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Slopes:
    """Takes gradients between two runs; prompts must fit into one pass."""

    subject: Subject
    batch: Batch
    """The base prompts."""
    ends: Ends
    question: Question
    metric: str
    at_once: int
    passes: Passes = field(default_factory=Passes)

    def at_base(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """By site, (row, position, width)."""
        return self._gradients(1, sites, {})[1]

    def along_embed(self, sites: Sequence[str], *, steps: int) -> dict[str, Tensor]:
        """By site, the mean over the line."""
        return self._average("embed", steps, sites)

    def along_site(self, site: str, *, steps: int) -> tuple[Tensor, Tensor]:
        """The mean over the site's line, (row, position, width), and the metric at its end, (row,)."""
        number = site.partition(".")[2]
        layer = 0 if not number or resumable(self.subject) else int(number)
        mean = self._average(site, steps, [site], layer=layer)[site]
        return mean, self._gradients(1, [], {site: self.ends.source_run[site]}, layer=layer)[0]

    def _average(self, moved: str, steps: int, sites: Sequence[str], *, layer: int = 0) -> dict[str, Tensor]:
        """By site, the mean gradient over the line of a moved one, as many points in a pass as have room."""
        start, stop, rows = self.ends.base[moved], self.ends.source_run[moved], len(self.batch)
        ways = ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).to(start.device, start.dtype)

        def sum_part(part: slice) -> dict[str, Tensor]:
            points = start + ways[part, None, None, None] * (stop - start)
            _, gradients = self._gradients(len(points), sites, {moved: points.flatten(0, 1)}, layer=layer)
            return {site: gradients[site].unflatten(0, points.shape[:2]).double().sum(0) for site in sites}

        summed: dict[str, Tensor] = {}
        most = max(1, self.at_once // rows) * rows
        for part in self.subject.batching.batches(steps, most, sum_part, work=WITH_GRADIENTS, per=rows):
            summed = {site: summed.get(site, 0) + gradient for site, gradient in part.items()}
        return {site: (total / steps).to(self.ends.base[site].dtype) for site, total in summed.items()}

    def _gradients(
        self, count: int, sites: Sequence[str], moved: Mapping[str, Tensor], *, layer: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The metric, (count x row,), and its gradients, of `count` copies of the prompts with some vectors `moved`."""
        leaves: dict[str, Tensor] = {}
        batch, question = (
            self.batch.take(torch.arange(len(self.batch)).repeat(count)),
            _repeat_question(self.question, count),
        )
        begin = resume(self.subject, layer, self._residual(layer, count)) if layer else nullcontext()
        with torch.enable_grad(), begin:
            logits, _ = observe(self.subject, batch, list({*sites, *moved}), with_leaves(leaves, moved))
            values = metric(self.metric)(logits, question)
            if not values.requires_grad:
                raise NeuronautError(f"metric {self.metric} has no gradient; choose one that changes smoothly")
            gradients = torch.autograd.grad(values.sum(), [leaves[site] for site in sites]) if sites else ()
        self.passes.forwards += 1
        self.passes.backwards += bool(sites)
        return values.detach(), dict(zip(sites, gradients, strict=True))

    def _residual(self, layer: int, count: int) -> Tensor:
        return self.ends.base[f"resid_pre.{layer}"].repeat(count, 1, 1)


def with_leaves(leaves: dict[str, Tensor], moved: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """Makes every site's tensor one that a gradient can be taken by: the moved one, or itself plus nothing."""

    def make_leaf(site: str, tensor: Tensor) -> Tensor:
        leaves[site] = moved[site].detach().clone() if site in moved else torch.zeros_like(tensor)
        leaves[site].requires_grad_()
        return leaves[site] if site in moved else tensor + leaves[site]

    return make_leaf


def _repeat_question(question: Question, count: int) -> Question:
    wrong, plain = question.wrong, question.plain
    return replace(
        question,
        answers=question.answers.repeat(count),
        wrong=None if wrong is None else wrong.repeat(count),
        plain=None if plain is None else plain.repeat(count, 1),
    )


_Kind = tuple[str, str | None, str | tuple[float, ...] | None]


def check_patches(subject: Subject, edits: Sequence[Edit], materials: Materials) -> None:
    """Raise NeuronautError for an edit that is no patch of a vector's units."""
    for edit in edits:
        if edit.operation != "patch" or edit.on_pattern or edit.control is not None:
            raise NeuronautError(
                f"edit {edit} is not predicted by gradients; wanted patches of vectors, such as head.1:3=patch"
            )
        units_of(subject, edit, sources=materials.sources, directions=materials.directions)


def score_patches(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    ends: Ends,
    gradients: Mapping[str, Tensor],
    *,
    materials: Materials,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Score each patch to first order, (edit, row), and by name what each dictionary leaves out, (row,).

    What a dictionary leaves out is taken at its features' positions. A feature's negative tail has the feature's own
    score: a patch puts the same vector there.
    """
    scores = torch.zeros(len(edits), len(batch), dtype=torch.float64)
    errors: dict[str, Tensor] = {}
    kinds: dict[_Kind, list[int]] = {}
    for index, edit in enumerate(edits):
        kinds.setdefault((edit.site, edit.dictionary, edit.direction), []).append(index)
    for (site, dictionary, _), members in kinds.items():
        writes = written_site(edits[members[0]], materials.sources, GRADIENTS)
        table = _score_units(
            subject,
            edit=edits[members[0]],
            base=ends.base[site],
            source_run=ends.source_run[site],
            gradient=gradients[writes],
            materials=materials,
        )
        summed: dict[str, Tensor] = {}
        for index in members:
            edit = edits[index]
            if edit.positions not in summed:
                summed[edit.positions] = _sum_positions(subject, batch, edit.positions, table)
            chosen = summed[edit.positions]
            if edit.units is not None:
                chosen = chosen[:, list(edit.units)]
            scores[index] = chosen.sum(-1)
        if dictionary is not None:
            whole = ((ends.source_run[writes] - ends.base[writes]) * gradients[writes]).sum(-1, keepdim=True)
            for rule, features in summed.items():
                left = _sum_positions(subject, batch, rule, whole)[:, 0] - features.sum(-1)
                errors[f"{site}@{dictionary} error" + ("" if rule == "all" else f"@{rule}")] = left
    return scores, errors


def _sum_positions(subject: Subject, batch: Batch, rule: str, table: Tensor) -> Tensor:
    """Summed over the positions of a rule: (row, position, unit) -> (row, unit), float64 on the CPU."""
    mask = where(subject, batch, rule).to(table.device)
    return torch.where(mask[..., None], table, 0).double().sum(1).cpu()


def _score_units(
    subject: Subject, edit: Edit, base: Tensor, source_run: Tensor, gradient: Tensor, materials: Materials
) -> Tensor:
    """(row, position, unit): of heads, coordinates, features, or of the one direction."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    if isinstance(units, Along):
        flat, other = base.flatten(0, 1), source_run.flatten(0, 1)
        moved = (units.put(flat, units.get(other)) - flat).view_as(base)
        return (moved * gradient).sum(-1, keepdim=True)
    if isinstance(units, Coded):
        return _score_features(units, base, source_run, gradient)
    product = (source_run - base) * gradient
    heads = subject.heads(edit.site)
    return product.unflatten(-1, (heads, -1)).sum(-1) if heads else product


def _score_features(units: Coded, base: Tensor, source_run: Tensor, gradient: Tensor) -> Tensor:
    """Of all features of the source."""
    source, flat = units.source, base.flatten(0, 1)
    change = source.encode(source_run.flatten(0, 1)) - source.encode(flat)
    written = gradient.flatten(0, 1).float() @ source.directions(torch.arange(source.width, device=base.device)).T
    scale = source.scale(flat) if isinstance(source, Dictionary) else 1.0
    return (change * written * scale).unflatten(0, base.shape[:2])
