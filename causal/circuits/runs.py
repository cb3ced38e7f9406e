"""Runs of a task with some of a circuit's possible nodes cut, every set of them once, many sets in one forward.

A cut node puts out, at its positions, what it puts out on the corrupted prompt (`corrupted`: what its row would have
given, resample ablation), its mean over the corrupted prompts' tokens (`mean`), or nothing (`zero`), whatever reaches
it. A circuit alone is the clean prompt with all other nodes cut, so that what its nodes put out follows from the
input and from each other only. The faithfulness of a set of nodes is

    F(C) = (M(C alone) - M(nothing alone)) / (M(clean) - M(nothing alone))

with M the mean of a metric over the pairs: 0 where all nodes are cut and 1 where none is, exactly. Cut to their
corrupted values, all nodes together bring the corrupted prompt's answer, unless the two last tokens differ.

Runs that are not `exact` to the last bit save what they can: a set that differs little from a known one begins at the
first layer in which the two differ (`resume`). What cutting each further node would do is then predicted from one
gradient, by (its value when cut - its value now) . dM/d(value), which ranks nodes and never stands for a result.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..batched import observe
from ..edits import Edit, Operation
from ..gradients import WITH_GRADIENTS, Ends, score_patches, with_leaves
from ..intervene import Materials, Report, RowEdit, apply
from ..measures import EPSILON, Question, metric
from ..prompts import Batch
from ..runs import AT_ONCE, EDITED, gather, in_parts, logits_at, resumable, resume
from .nodes import Node, check_nodes, edits_of
from .tasks import Task

ABLATIONS: Mapping[str, Operation] = {"corrupted": "patch", "mean": "mean", "zero": "zero"}
"""By name, the operation that cuts a node."""

Nodes = frozenset[Node]


class CircuitRuns:
    """A task's runs with nodes cut.

    Attributes: `subject`, `task`, `nodes` (in the order given), `ablation`, `metric`, `sources`, `exact`; `clean` and
    `floor` ((row,) values of the metric with nothing and with everything cut); `forwards` (how many it took so far).
    """

    def __init__(
        self,
        subject: Subject,
        task: Task,
        nodes: Sequence[Node],
        *,
        ablation: str = "corrupted",
        metric_name: str = "logit_difference",
        sources: Mapping[str, Source] | None = None,
        at_once: int = AT_ONCE,
        exact: bool = True,
    ) -> None:
        if ablation not in ABLATIONS:
            raise NeuronautError(f"no ablation {ablation!r}; there are {', '.join(ABLATIONS)}")
        check_nodes(subject, task.pairs.clean, nodes)
        self.subject, self.task, self.nodes, self.ablation, self.metric = (
            subject,
            task,
            tuple(nodes),
            ablation,
            metric_name,
        )
        self.sources: Mapping[str, Source] = {} if sources is None else sources
        self.exact, self._resumes = exact, not exact and resumable(subject) is None
        self._all, self._at_once = frozenset(nodes), at_once
        self._cutting: Operation = ABLATIONS[ablation]
        pairs, edits, references = task.pairs, edits_of(nodes, self._cutting), Materials(sources=self.sources)
        self._materials = gather(
            subject, edits, materials=references, reference=pairs.corrupted, source_run=pairs.corrupted
        )
        with torch.inference_mode():
            plain = torch.cat(in_parts(subject, pairs.clean, lambda rows: logits_at(subject, rows.tokens, rows.last)))
        self.forwards = 2
        self._question = Question(pairs.answers, pairs.wrong, plain)
        self.clean = self._measure(plain, torch.arange(len(task))).cpu()
        self._values: dict[Nodes, Tensor] = {frozenset(): self.clean}
        self.floor = self.cut([self._all])[0]
        self._span = float((self.clean.double() - self.floor.double()).mean())
        if abs(self._span) < EPSILON:
            raise NeuronautError(
                f"cutting all {len(nodes)} nodes moves {metric_name} of {task.name} by {self._span:.2g} on average, "
                f"below {EPSILON:g}: its answer does not come from them; name others"
            )

    def cut(self, sets: Sequence[Nodes], *, base: Nodes | None = None) -> Tensor:
        """The metric on the clean prompts with the nodes of each set cut: (set, row).

        `base` is a set that these differ little from; runs that are not exact begin where they part from it.
        """
        new = [nodes for nodes in dict.fromkeys(sets) if nodes not in self._values]

        def cut_rows(part: slice) -> dict[Nodes, Tensor]:
            return self._cut_rows(new, torch.arange(part.start, part.stop), base=base)

        parts = [*self.subject.batching.batches(len(self.task), self._at_once, cut_rows, work=EDITED)]
        self._values |= {nodes: torch.cat([values[nodes] for values in parts]) for nodes in new}
        return torch.stack([self._values[nodes] for nodes in sets])

    def alone(self, circuits: Sequence[Nodes], *, base: Nodes | None = None) -> Tensor:
        """The metric with all nodes cut but each circuit's, (circuit, row); `base` is a circuit that is like them."""
        return self.cut([self._all - circuit for circuit in circuits], base=None if base is None else self._all - base)

    def faithfulness(self, values: Tensor) -> list[float]:
        """F of each row of (set, row) values of the metric."""
        return ((values.double() - self.floor.double()).mean(1) / self._span).tolist()

    def faithful(self, circuits: Sequence[Nodes], *, base: Nodes | None = None) -> list[float]:
        """F of each circuit alone."""
        return self.faithfulness(self.alone(circuits, base=base))

    def without(self, sets: Sequence[Nodes]) -> list[float]:
        """F of the whole model with the nodes of each set cut."""
        return self.faithfulness(self.cut(sets, base=frozenset()))

    @torch.inference_mode(False)
    @torch.no_grad()
    def predict_losses(self, circuit: Nodes) -> dict[Node, float]:
        """By node of the circuit, to first order: how far F of the circuit alone falls if the node is cut too."""
        members = [node for node in self.nodes if node in circuit]
        edits = [edit for node in members for edit in edits_of([node], "patch")]
        sites = list(dict.fromkeys(edit.site for edit in edits))

        def predict(part: slice) -> Tensor:
            rows, leaves = torch.arange(part.start, part.stop), dict[str, Tensor]()
            with self._cut([self._all - circuit], rows) as batch, torch.enable_grad():
                logits, values = observe(self.subject, batch, sites, with_leaves(leaves, {}))
                moved = self._measure(logits, rows).sum()
                gradients = dict(zip(sites, torch.autograd.grad(moved, [leaves[site] for site in sites]), strict=True))
            self.forwards += 2
            now = {site: value.detach() for site, value in values.items()}
            ends = Ends(now, {site: self._value_when_cut(site, value, rows) for site, value in now.items()})
            scores, _ = score_patches(self.subject, batch, edits, ends, gradients, materials=self._materials)
            return scores.sum(1)

        parts = [*self.subject.batching.batches(len(self.task), self._at_once, predict, work=WITH_GRADIENTS)]
        total = -torch.stack(parts).sum(0)
        return dict(zip(members, (total / len(self.task) / self._span).tolist(), strict=True))

    def _value_when_cut(self, site: str, value: Tensor, rows: Tensor) -> Tensor:
        """What a node at the site puts out when it is cut: (row, position, width)."""
        if self._cutting == "patch":
            return self._materials.source_runs[site][rows]
        mean = self._materials.reference[site].mean(0) if self._cutting == "mean" else torch.zeros(())
        return mean.to(value).expand_as(value)

    def reports(self, nodes: Iterable[Node]) -> tuple[Report, ...]:
        """What the edits that cut these nodes do, from one forward."""
        pairs, edits = self.task.pairs, edits_of(nodes, self._cutting)
        if not edits:
            return ()
        self.forwards += 1
        with (
            torch.inference_mode(),
            apply(self.subject, pairs.clean, edits, materials=self._materials, may_idle=True) as ledger,
        ):
            logits_at(self.subject, pairs.clean.tokens, pairs.clean.last)
        return ledger.reports

    def _cut_rows(self, sets: Sequence[Nodes], rows: Tensor, *, base: Nodes | None) -> dict[Nodes, Tensor]:
        """Each set's values of these rows of the task, as many sets in a forward as have room."""
        first = {nodes: _first_layer(nodes ^ base) if self._resumes and base is not None else 0 for nodes in sets}
        residuals = self._read_residuals(base or frozenset(), rows, {*first.values()})
        room, values = max(1, self._at_once // len(self.task)), dict[Nodes, Tensor]()
        for layer, group in groupby(sorted(sets, key=first.__getitem__), first.__getitem__):
            its = list(group)

            def run(part: slice, its: list[Nodes] = its, layer: int = layer) -> Iterable[tuple[Nodes, Tensor]]:
                values = self._run_rows(its[part], rows, layer=layer, residual=residuals.get(layer))
                return zip(its[part], values, strict=True)

            for part in self.subject.batching.batches(len(its), room * len(rows), run, work=EDITED, per=len(rows)):
                values |= part
        return values

    @contextmanager
    def _cut(self, sets: Sequence[Nodes], rows: Tensor, *, layer: int = 0) -> Generator[Batch]:
        """Within the block, runs of the batch that it gives, these rows once for each set, are cut from a layer on."""
        copies = self.task.pairs.clean.take(rows.repeat(len(sets)))
        source_runs = {site: run[rows.repeat(len(sets))] for site, run in self._materials.source_runs.items()}
        edits = [edit for edit in _row_edits(sets, self._cutting, len(rows)) if (edit.edit.layer or 0) >= layer]
        materials = replace(self._materials, source_runs=source_runs)
        with apply(self.subject, copies, edits, materials=materials, may_idle=True) if edits else nullcontext():
            yield copies

    @torch.inference_mode()
    def _run_rows(
        self, sets: Sequence[Nodes], rows: Tensor, *, layer: int = 0, residual: Tensor | None = None
    ) -> list[Tensor]:
        """Each set's values of these rows of the task, from one forward, which may begin at a layer."""
        known = nullcontext() if residual is None else resume(self.subject, layer, residual.repeat(len(sets), 1, 1))
        with known, self._cut(sets, rows, layer=layer) as copies:
            logits = logits_at(self.subject, copies.tokens, copies.last)
        self.forwards += 1
        return [self._measure(part, rows).cpu() for part in logits.split(len(rows))]

    @torch.inference_mode()
    def _read_residuals(self, base: Nodes, rows: Tensor, layers: set[int]) -> dict[int, Tensor]:
        """By layer after the first, the residual stream before it with `base` cut: (row, position, d_model)."""
        sites = {layer: f"resid_pre.{layer}" for layer in layers if layer}
        if not sites:
            return {}
        with self._cut([base], rows) as batch:
            tensors = observe(self.subject, batch, list(sites.values()))[1]
        self.forwards += 1
        return {layer: tensors[site] for layer, site in sites.items()}

    def _measure(self, logits: Tensor, rows: Tensor) -> Tensor:
        question, plain = self._question, self._question.plain
        assert question.wrong is not None and plain is not None, "pairs have both"
        row_question = Question(question.answers[rows], question.wrong[rows], plain[rows.to(plain.device)])
        return metric(self.metric)(logits, row_question)


def _first_layer(nodes: Nodes) -> int:
    """The first layer in which any of them lies."""
    return min((edit.layer or 0 for edit in edits_of(nodes, "patch")), default=0)


def _row_edits(sets: Sequence[Nodes], operation: Operation, rows: int) -> list[RowEdit]:
    """One edit for the rows of all sets that cut the same nodes at a site: no row meets two at one place.

    So what a set gives does not depend on its company, also where edits of a dictionary's features add up.
    """
    slots: dict[Edit, list[int]] = {}
    for slot, nodes in enumerate(sets):
        for edit in edits_of(nodes, operation):
            slots.setdefault(edit, []).append(slot)
    return [
        RowEdit(edit, tuple(slot * rows + row for slot in its for row in range(rows))) for edit, its in slots.items()
    ]
