"""Runs of a task with some of a circuit's possible nodes cut, every set of them once, many sets in one forward.

A cut node puts out, at its positions, what it puts out on the corrupted prompt (`corrupted`: what its row would have
given, resample ablation), its mean over the corrupted prompts' tokens (`mean`), or nothing (`zero`), whatever reaches
it. A circuit alone is the clean prompt with all other nodes cut, so that what its nodes put out follows from the
input and from each other only. The faithfulness of a set of nodes is

    F(C) = (M(C alone) - M(nothing alone)) / (M(clean) - M(nothing alone))

with M the mean of a metric over the pairs: 0 where all nodes are cut and 1 where none is, exactly. Cut to their
corrupted values, all nodes together bring the corrupted prompt's answer, unless the two last tokens differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..edits import Edit, Operation
from ..intervene import Materials, Report, RowEdit, apply
from ..measures import EPSILON, Question, metric
from ..runs import AT_ONCE, gather, logits_at
from .nodes import Node, check_nodes, edits_of
from .tasks import Task

ABLATIONS: Mapping[str, Operation] = {"corrupted": "patch", "mean": "mean", "zero": "zero"}
"""By name, the operation that cuts a node."""

Nodes = frozenset[Node]


class CircuitRuns:
    """A task's runs with nodes cut.

    Attributes: `subject`, `task`, `nodes` (in the order given), `ablation`, `metric`, `sources`; `clean` and `floor`
    ((row,) values of the metric with nothing and with everything cut); `forwards` (how many it took so far).
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
        self._all, self._at_once = frozenset(nodes), at_once
        self._cutting: Operation = ABLATIONS[ablation]
        pairs, edits, references = task.pairs, edits_of(nodes, self._cutting), Materials(sources=self.sources)
        self._materials = gather(
            subject, edits, materials=references, reference=pairs.corrupted, source_run=pairs.corrupted
        )
        with torch.inference_mode():
            plain = logits_at(subject, pairs.clean.tokens, pairs.clean.last)
        self.forwards = 2
        self._question = Question(pairs.answers, pairs.wrong, plain)
        self.clean = self._measure(plain, torch.arange(len(task)))
        self._values: dict[Nodes, Tensor] = {frozenset(): self.clean}
        self.floor = self.cut([self._all])[0]
        self._span = float((self.clean.double() - self.floor.double()).mean())
        if abs(self._span) < EPSILON:
            raise NeuronautError(
                f"cutting all {len(nodes)} nodes moves {metric_name} of {task.name} by {self._span:.2g} on average, "
                f"below {EPSILON:g}: its answer does not come from them; name others"
            )

    def cut(self, sets: Sequence[Nodes]) -> Tensor:
        """The metric on the clean prompts with the nodes of each set cut: (set, row)."""
        new = [nodes for nodes in dict.fromkeys(sets) if nodes not in self._values]
        room = max(1, self._at_once // len(self.task))
        for start in range(0, len(new), room):
            part = new[start : start + room]
            self._values |= zip(part, self._run_sets(part), strict=True)
        return torch.stack([self._values[nodes] for nodes in sets])

    def alone(self, circuits: Sequence[Nodes]) -> Tensor:
        """The metric with all nodes cut but each circuit's: (circuit, row)."""
        return self.cut([self._all - circuit for circuit in circuits])

    def faithfulness(self, values: Tensor) -> list[float]:
        """F of each row of (set, row) values of the metric."""
        return ((values.double() - self.floor.double()).mean(1) / self._span).tolist()

    def faithful(self, circuits: Sequence[Nodes]) -> list[float]:
        """F of each circuit alone."""
        return self.faithfulness(self.alone(circuits))

    def without(self, sets: Sequence[Nodes]) -> list[float]:
        """F of the whole model with the nodes of each set cut."""
        return self.faithfulness(self.cut(sets))

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

    def _run_sets(self, sets: Sequence[Nodes]) -> list[Tensor]:
        parts = [self._run_rows(sets, rows) for rows in torch.arange(len(self.task)).split(self._at_once)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _run_rows(self, sets: Sequence[Nodes], rows: Tensor) -> list[Tensor]:
        """Each set's values of these rows of the task, from one forward."""
        copies = self.task.pairs.clean.take(rows.repeat(len(sets)))
        source_runs = {site: run[rows.repeat(len(sets))] for site, run in self._materials.source_runs.items()}
        materials = replace(self._materials, source_runs=source_runs)
        edits = _row_edits(sets, self._cutting, len(rows))
        with apply(self.subject, copies, edits, materials=materials, may_idle=True) as ledger:
            logits = logits_at(self.subject, copies.tokens, copies.last)
        self.forwards += ledger.forwards
        return [self._measure(part, rows) for part in logits.split(len(rows))]

    def _measure(self, logits: Tensor, rows: Tensor) -> Tensor:
        question, plain = self._question, self._question.plain
        assert question.wrong is not None and plain is not None, "pairs have both"
        row_question = Question(question.answers[rows], question.wrong[rows], plain[rows.to(plain.device)])
        return metric(self.metric)(logits, row_question).cpu()


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
