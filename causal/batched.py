"""Many edits, each by itself, in few forwards: what sweeps are made of.

The prompts are run plainly once, which gives the residual stream before every layer that is edited and the values that
patches put in. Then the edits of a layer stand beside each other in the rows of one forward that begins at this layer
(`resume`) and computes logits at the answers' positions only. No forward has more than `at_once` rows, or those that
fit into memory: there are as many edits in it as there is room for copies of the prompts, and more prompts than that
are run in parts. Neither the company in a forward nor where it begins changes a result beyond rounding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .edits import Edit
from .intervene import Materials, Report
from .measures import Question, metric
from .prompts import Batch
from .runs import EDITED, alike, logits_at, read_source_run, resumable, resume, together
from .units import sites_of
from .work import Work, cost_of

DRAWN = ("resample", "noise")
"""Operations that draw for all prompts together."""


class Setting(NamedTuple):
    """Which prompts are edited, and which lend their values to patches; by name."""

    base: str
    source_run: str | None


@dataclass(slots=True)
class Cost:
    """Forward passes and their rows: plain ones and edited ones, not those of proofs, references and fidelity."""

    forwards: int = 0
    rows: int = 0
    equivalents: float = 0.0
    """Forward passes, each counted as the share of the layers that it ran."""
    row_equivalents: float = 0.0
    """Rows, each counted so: what was computed, in whole runs of one prompt."""
    one_by_one: int = 0
    """Forward passes that one for each edit, of all prompts and all layers, would have taken; with as many `rows`."""

    def add(self, rows: int, share: float = 1.0) -> None:
        """Count a forward pass that ran this share of the layers."""
        self.forwards += 1
        self.rows += rows
        self.equivalents += share
        self.row_equivalents += rows * share


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Metrics without and with edits, on the CPU."""

    plain: Mapping[str, Tensor]
    """By name of the prompts: (metric, row)."""
    edited: Mapping[str, Tensor]
    """By setting: (edit, metric, row)."""
    changes: Mapping[str, Tensor]
    """By setting, the largest change of a coordinate at the edit's site: (edit,)."""
    cost: Cost


@torch.inference_mode()
def measure(
    subject: Subject,
    edits: Sequence[Edit],
    prompts: Mapping[str, Batch],
    settings: Mapping[str, Setting],
    question: Question,
    *,
    metrics: Sequence[str],
    materials: Materials,
    at_once: int,
    work: Work | None = None,
) -> Measured:
    """Run every edit by itself in every setting. All prompts have equally many rows; KL is taken to the first of them.

    `work` is told how much there is. Raises NeuronautError where no edit changes anything in any setting.
    """
    _check(subject, edits, prompts, metrics, at_once)
    cost = Cost(one_by_one=len(prompts) + len(edits) * len(settings))
    with alike(subject, edits):
        first = _first_layers(subject, edits, materials)
        if work is not None:
            tokens, rows = next(iter(prompts.values())).tokens.numel(), len(question.answers)
            shares = [1 - layer / subject.n_layers for layer in first]
            runs = len(prompts) + len(settings) * sum(shares)
            logits = rows * (len(prompts) + len(settings) * len(edits))
            work.begin(f"runs {len(edits):,} edits", left=cost_of(subject, tokens * runs, logits=logits))

        def measure_rows(rows: slice) -> Measured:
            part = torch.arange(rows.start, rows.stop)
            return _Part(
                subject=subject,
                edits=edits,
                metrics=metrics,
                materials=_take_materials(materials, part),
                at_once=at_once,
                first=first,
                cost=cost,
            ).measure(
                {name: batch.take(part) for name, batch in prompts.items()}, settings, _take_question(question, part)
            )

        count = len(question.answers)
        # What is drawn for all prompts together would be other draws for parts of them.
        least = count if any(edit.operation in DRAWN for edit in edits) else 1
        parts = [*subject.batching.batches(count, at_once, measure_rows, work=EDITED, least=least)]
    changes = {name: torch.stack([part.changes[name] for part in parts]).amax(0) for name in settings}
    if not any(bool(change.any()) for change in changes.values()):
        raise NeuronautError(
            f"none of the {len(edits)} edits changed anything (the first: {edits[0]}); the prompts may be alike "
            "there, or the units have these values already: choose other positions, units or prompts"
        )
    plain = {name: torch.cat([part.plain[name] for part in parts], -1) for name in prompts}
    edited = {name: torch.cat([part.edited[name] for part in parts], -1) for name in settings}
    return Measured(plain, edited, changes, cost)


def observe(
    subject: Subject, batch: Batch, sites: Sequence[str], change: Callable[[str, Tensor], Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """One run's logits at the rows' last positions, (row, token), and its tensors at sites, (row, position, width).

    `change`, where given, makes of a site and its tensor the one that flows on, and is seen, instead.
    """
    tensors: dict[str, Tensor] = {}

    def make_recorder(site: str) -> Callable[[Tensor], Tensor]:
        def record(tensor: Tensor) -> Tensor:
            tensors[site] = tensor if change is None else change(site, tensor)
            return tensors[site]

        return record

    with subject.editing({site: make_recorder(site) for site in sites}):
        logits = logits_at(subject, batch.tokens, batch.last)
    return logits, tensors


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """Measures edits on prompts that fit into one forward."""

    subject: Subject
    edits: Sequence[Edit]
    metrics: Sequence[str]
    materials: Materials
    at_once: int
    first: Sequence[int]
    """By edit, the layer at which its forward begins."""
    cost: Cost

    def measure(self, prompts: Mapping[str, Batch], settings: Mapping[str, Setting], question: Question) -> Measured:
        logits: dict[str, Tensor] = {}
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, batch in prompts.items():
            logits[name], tensors[name] = self._run_plain(batch, self._sites_to_keep(name, settings.values()))
        question = replace(question, plain=logits[next(iter(prompts))])
        edited: dict[str, Tensor] = {}
        changes: dict[str, Tensor] = {}
        for name, setting in settings.items():
            patch_values = tensors[setting.source_run] if setting.source_run else self.materials.source_runs
            edited[name], changes[name] = self._run_edited(
                prompts[setting.base], tensors[setting.base], patch_values, question
            )
        plain = {name: self._measure_logits(prompt_logits, question).cpu() for name, prompt_logits in logits.items()}
        return Measured(plain, edited, changes, self.cost)

    def _sites_to_keep(self, name: str, settings: Iterable[Setting]) -> list[str]:
        """What to keep of these prompts' plain run."""
        sites: set[str] = set()
        for setting in settings:
            if setting.base == name:
                sites |= {f"resid_pre.{layer}" for layer in self.first if layer}
            if setting.source_run == name:
                patches = (edit for edit in self.edits if edit.needs_source_run)
                sites |= {site for edit in patches for site in sites_of(edit, self.materials.sources).reads}
        return sorted(sites)

    def _run_plain(self, batch: Batch, sites: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        weights = [site for site in sites if site.startswith(("pattern.", "score."))]
        logits, tensors = observe(self.subject, batch, [site for site in sites if site not in weights])
        self.cost.add(len(batch))
        if weights:
            tensors |= read_source_run(self.subject, batch, weights)
            self.cost.add(len(batch) * len({site.partition(".")[0] for site in weights}))
        return logits, tensors

    def _run_edited(
        self, batch: Batch, residuals: Mapping[str, Tensor], patch_values: Mapping[str, Tensor], question: Question
    ) -> tuple[Tensor, Tensor]:
        """(edit, metric, row) and (edit,)."""
        most, layers = max(1, self.at_once // len(batch)) * len(batch), self.subject.n_layers
        values: dict[int, Tensor] = {}
        changes = torch.zeros(len(self.edits))
        for layer, group in groupby(sorted(range(len(self.edits)), key=self.first.__getitem__), self.first.__getitem__):
            its = [*group]

            def run_part(part: slice, its: list[int] = its, layer: int = layer) -> None:
                chosen = [self.edits[index] for index in its[part]]
                sites = {site for edit in chosen for site in sites_of(edit, self.materials.sources).reads}
                chosen_materials = replace(
                    self.materials, source_runs={site: patch_values[site] for site in sites & patch_values.keys()}
                )
                measured, reports = self._run_together(
                    batch, edits=chosen, layer=layer, residuals=residuals, materials=chosen_materials, question=question
                )
                values.update(zip(its[part], measured, strict=True))
                changes[its[part]] = torch.tensor([report.max_change for report in reports])
                self.cost.add(len(batch) * len(chosen), (layers - layer) / layers)

            for _ in self.subject.batching.batches(len(its), most, run_part, work=EDITED, per=len(batch)):
                pass
        return torch.stack([values[index] for index in range(len(self.edits))]).cpu(), changes

    def _run_together(
        self,
        batch: Batch,
        edits: Sequence[Edit],
        layer: int,
        residuals: Mapping[str, Tensor],
        materials: Materials,
        question: Question,
    ) -> tuple[Tensor, tuple[Report, ...]]:
        """Edits beside each other from a layer on: (edit, metric, row)."""
        residual = residuals[f"resid_pre.{layer}"].repeat(len(edits), 1, 1) if layer else None
        with nullcontext() if residual is None else resume(self.subject, layer, residual):
            return together(
                self.subject, batch, edits, lambda logits: self._measure_logits(logits, question), materials=materials
            )

    def _measure_logits(self, logits: Tensor, question: Question) -> Tensor:
        """(metric, row)."""
        return torch.stack([metric(name)(logits, question) for name in self.metrics])


def _first_layers(subject: Subject, edits: Sequence[Edit], materials: Materials) -> list[int]:
    """Where each edit's forward may begin: at its own layer, or at the first where no run can begin in the middle.

    A crosscoder's is the first that it reads or changes.
    """
    if all(not edit.layer for edit in edits) or resumable(subject):
        return [0] * len(edits)
    return [_first_layer(edit, materials) for edit in edits]


def _first_layer(edit: Edit, materials: Materials) -> int:
    if edit.on_pattern:
        return edit.layer or 0
    sites = sites_of(edit, materials.sources)
    return min(int(site.partition(".")[2] or 0) for site in (*sites.reads, *sites.writes))


def _take_materials(materials: Materials, rows: Tensor) -> Materials:
    """The materials for these rows of the prompts: a source run has a row for each prompt."""
    return replace(materials, source_runs={site: run[rows] for site, run in materials.source_runs.items()})


def _take_question(question: Question, rows: Tensor) -> Question:
    return Question(question.answers[rows], None if question.wrong is None else question.wrong[rows])


def _check(
    subject: Subject, edits: Sequence[Edit], prompts: Mapping[str, Batch], metrics: Sequence[str], at_once: int
) -> None:
    if not edits or not metrics or at_once < 1:
        raise NeuronautError(
            f"cannot run {len(edits)} edits, measure {len(metrics)} metrics, {at_once} rows at once; wanted at least "
            "one of each"
        )
    for edit in edits:
        # An unknown or refused site is an error that says so.
        subject.width(f"head.{edit.layer}" if edit.on_pattern else edit.site)
    drawn = next((edit for edit in edits if edit.operation in DRAWN), None)
    longest = max(map(len, prompts.values()))
    if drawn is not None and longest > at_once:
        raise NeuronautError(
            f"edit {drawn} draws for all {longest} prompts together, and {at_once} rows run at once; "
            "raise at_once, or give fewer prompts"
        )
