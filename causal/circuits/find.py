"""Circuits: the few parts of a subject that do a task by themselves, found and put to the test.

`find_circuit` takes a task that the subject does (`baseline`), scores all nodes, prunes them and names their backups
on one half of the pairs, and evaluates what is left on the other half, which the search never saw; with fewer than
HALVES pairs both are done on all of them, and the report says so. `evaluate_circuit` puts a circuit of one's own to
the same test. How each is done stands in `search`, `runs` and `evaluate`. A `CircuitReport` has all that was measured,
as data and as text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from statistics import median
from typing import Any

from pydantic import BaseModel

from ...subject.dictionary import Dictionary
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ..agreement import Agreement
from ..measures import Direction, Effect
from ..records import Provenance, Trial, provenance_of
from ..runs import AT_ONCE
from .evaluate import CONTROLS, SUBSETS, Evaluation, evaluate
from .nodes import Node, join_nodes, nodes_of
from .runs import ABLATIONS, CircuitRuns
from .search import Backup, NodeScore, Step, find_backups, prune, score_nodes
from .tasks import Baseline, Task, baseline


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward passes, by what they were for."""

    baseline: int
    scores: int
    search: int
    backups: int
    evaluation: int

    @property
    def total(self) -> int:
        """All passes."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitReport:
    """A circuit with all that was measured of it."""

    task: str
    circuit: tuple[Node, ...]
    """The strongest first, or as it was given."""
    nodes: tuple[Node, ...]
    """All there were to choose from."""
    threshold: float
    """The faithfulness that the search kept to."""
    ablation: str
    pairs: tuple[int, int]
    """How many pairs it was looked for on, and how many it is evaluated on."""
    held_out: bool
    """Whether these are different pairs."""
    baseline: Baseline
    scores: tuple[NodeScore, ...]
    """Of the nodes that were patched by themselves, on the search's pairs."""
    agreement: Mapping[Direction, Agreement]
    """Where gradients chose these, how far their predictions agree with patching."""
    steps: tuple[Step, ...]
    """How the pruning went, from all nodes on; none for a circuit that was given."""
    backups: tuple[Backup, ...]
    evaluation: Evaluation
    passes: Passes
    seed: int
    trial: Trial
    """The circuit alone, as a record that `records.run` takes."""
    provenance: Provenance

    def score(self, node: Node) -> NodeScore | None:
        """A node's own score; None where it was not patched by itself."""
        return next((score for score in self.scores if score.node == node), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and objects."""
        data = _to_plain(self)
        for score, written in zip(self.scores, data["scores"], strict=True):
            written["role"] = score.role
        data["evaluation"]["mean_gap"] = self.evaluation.mean_gap
        return data

    def table(self) -> str:
        """The circuit node by node, and the verdicts on it, as text."""
        backed = {backup.node: join_nodes(backup.nodes) for backup in self.backups}
        rows = [["node", "noise", "denoise", "by itself", "adds", "backed up by"]]
        for added in self.evaluation.minimality:
            score = self.score(added.node)
            alone = ["-", "-", "-"]
            if score is not None:
                alone = [_format_number(score.noise.recovered), _format_number(score.denoise.recovered), score.role]
            rows.append([str(added.node), *alone, _format_number(added.value), backed.get(added.node, "")])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(node.kind for node in self.circuit).items())
        head = f"circuit of {self.task} in {self.provenance.model}: {len(self.circuit)} of {len(self.nodes)} nodes"
        return "\n".join([f"{head} ({kinds}), cut: {self.ablation}", *lines, *self._summarise()])

    def _summarise(self) -> list[str]:
        evaluation = self.evaluation
        worst, least = evaluation.gaps[0], min(evaluation.minimality, key=lambda added: abs(added.value))
        pairs = "pairs that the search did not see" if self.held_out else "pairs, the search's own"
        control = "no other circuit of this make-up"
        if evaluation.control is not None:
            values = evaluation.control.faithfulness
            control = (
                f"{len(values)} random circuits of this make-up: median {median(values):.2f}, highest "
                f"{max(values):.2f}; percentile {evaluation.control.percentile:.0f}, p = {evaluation.control.p:.2g}"
            )
        ranks = ", ".join(
            f"{_format_number(ranked.spearman)} {direction}" for direction, ranked in self.agreement.items()
        )
        by = ", ".join(f"{count} {purpose}" for purpose, count in asdict(self.passes).items())
        return [
            f"faithfulness  {_format_fraction(evaluation.faithfulness)} on {self.pairs[1]} {pairs}",
            f"completeness  model without the circuit {_format_fraction(evaluation.ablated)}; parts cut in both: mean "
            f"gap {evaluation.mean_gap:.2f}, largest {worst.size:.2f} ({join_nodes(worst.cut)})",
            f"minimality    least {least.value:.2f} ({least.node})",
            f"control       {control}",
            *([f"attribution   chose {len(self.scores)} nodes to patch; rank agreement {ranks}"] if ranks else []),
            f"passes        {self.passes.total}: {by}",
        ]


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_fraction(effect: Effect) -> str:
    spread = "" if effect.interval is None else f" [{effect.interval.low:.2f}, {effect.interval.high:.2f}]"
    return _format_number(effect.recovered) + spread


def _to_plain(value: object) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, Node):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


FAITHFUL = 0.9
"""How faithful a circuit is at least; above 1, it is as near to it."""
HALVES = 16
"""Pairs from which on half of them are kept for the evaluation."""


@dataclass(frozen=True, kw_only=True)
class CircuitSettings:
    """How a circuit is looked for and tested.

    >>> CircuitSettings(threshold=0.8, controls=20).metric
    'logit_difference'
    """

    threshold: float = FAITHFUL
    ablation: str = "corrupted"
    """What a cut node puts out; see `runs`."""
    metric: str = "logit_difference"
    subsets: int = SUBSETS
    """Random parts of the circuit that are cut for completeness and minimality."""
    controls: int = CONTROLS
    """Random circuits it is compared with."""
    patched: int = 256
    """Nodes that are patched exactly, at most; where there are more, attribution patching chooses them."""
    at_once: int = AT_ONCE
    """Rows of a forward."""
    seed: int = 0
    """Of subsets, random circuits and bootstraps."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise NeuronautError(f"threshold {self.threshold} is no faithfulness to reach; wanted above 0 and below 1")
        if self.subsets < 0 or min(self.controls, self.patched, self.at_once) < 1:
            raise NeuronautError(f"{self}: wanted 0 or more subsets, and 1 or more of controls, patched and at_once")

    @property
    def tolerance(self) -> float:
        """How far from 1 a faithful circuit may be."""
        return 1 - self.threshold


DEFAULT = CircuitSettings()


def find_circuit(
    subject: Subject,
    task: Task,
    *,
    nodes: Sequence[Node] | None = None,
    settings: CircuitSettings = DEFAULT,
    sources: Mapping[str, Dictionary] | None = None,
) -> CircuitReport:
    """Look for a minimal circuit among the nodes, by default all heads and MLPs; dictionaries go by `SITE@NAME`.

    >>> from neuronaut.causal.circuits.find import CircuitSettings
    >>> task = open_task(subject, "induction", rows=16)
    >>> report = find_circuit(subject, task, settings=CircuitSettings(controls=2, subsets=2))
    >>> 0 < len(report.circuit) <= len(report.nodes)
    True
    """
    search = _Search(subject, task, nodes_of(subject) if nodes is None else nodes, settings, sources or {})
    circuit, steps = prune(search.search_runs, search.scores.order, tolerance=settings.tolerance)
    return search.report([node for node in reversed(search.scores.order) if node in circuit], steps)


def evaluate_circuit(
    subject: Subject,
    task: Task,
    circuit: Sequence[Node],
    *,
    nodes: Sequence[Node] | None = None,
    settings: CircuitSettings = DEFAULT,
    sources: Mapping[str, Dictionary] | None = None,
) -> CircuitReport:
    """Put a circuit of these nodes, out of all of `nodes`, to the test that a found one is put to."""
    universe = nodes_of(subject) if nodes is None else nodes
    if strange := [str(node) for node in circuit if node not in universe]:
        raise NeuronautError(f"{', '.join(strange)} is not among the {len(universe)} nodes; name all there are to cut")
    if not circuit or len(set(circuit)) != len(circuit):
        raise NeuronautError(f"the circuit has {len(circuit)} nodes, maybe one of them twice; name each of them once")
    return _Search(subject, task, universe, settings, sources or {}).report(list(circuit), ())


class _Search:
    """What finding and evaluating share: the baseline, the scores, the two halves of the pairs."""

    def __init__(
        self,
        subject: Subject,
        task: Task,
        nodes: Sequence[Node],
        settings: CircuitSettings,
        sources: Mapping[str, Dictionary],
    ) -> None:
        self._subject, self._settings, self._task, self._sources = subject, settings, task, sources
        self._baseline = baseline(subject, task, metric_name=settings.metric, seed=settings.seed)
        halves = [range(0, len(task), 2), range(1, len(task), 2)]
        parts = [task.take(half) for half in halves] if len(task) >= HALVES else [task, task]
        self.search_runs, self._test = (self._runs(part, nodes) for part in parts)
        self.scores = score_nodes(self.search_runs, most=settings.patched, at_once=settings.at_once, seed=settings.seed)

    def _runs(self, task: Task, nodes: Sequence[Node]) -> CircuitRuns:
        return CircuitRuns(
            self._subject,
            task,
            nodes,
            ablation=self._settings.ablation,
            metric_name=self._settings.metric,
            sources=self._sources,
            at_once=self._settings.at_once,
        )

    def report(self, circuit: Sequence[Node], steps: Sequence[Step]) -> CircuitReport:
        settings, pruning = self._settings, self.search_runs.forwards
        replacements = find_backups(
            self.search_runs, frozenset(circuit), self.scores.ranks, tolerance=settings.tolerance
        )
        backing = self.search_runs.forwards - pruning
        evaluation = evaluate(
            self._test, circuit, subsets=settings.subsets, controls=settings.controls, seed=settings.seed
        )
        trial = self._build_trial(circuit)
        return CircuitReport(
            task=self._task.name,
            circuit=tuple(circuit),
            nodes=self.search_runs.nodes,
            threshold=settings.threshold,
            ablation=settings.ablation,
            pairs=(len(self.search_runs.task), len(self._test.task)),
            held_out=self._test.task is not self.search_runs.task,
            baseline=self._baseline,
            scores=tuple(self.scores.exact.values()),
            agreement=self.scores.agreement,
            steps=tuple(steps),
            backups=replacements,
            evaluation=evaluation,
            passes=Passes(2, self.scores.passes, pruning, backing, self._test.forwards),
            seed=settings.seed,
            trial=trial,
            provenance=provenance_of(self._subject, trial, sources=self._sources),
        )

    def _build_trial(self, circuit: Sequence[Node]) -> Trial:
        """The circuit alone on the evaluation's pairs, as a record that can be run; idle edits are errors there."""
        cut = self._test.reports([node for node in self._test.nodes if node not in circuit])
        pairs, operation = self._test.task.pairs, ABLATIONS[self._settings.ablation]
        corrupted = pairs.corrupted.rows()
        return Trial(
            prompts=pairs.clean.rows(),
            edits=tuple(report.edit for report in cut if report.max_change > 0),
            metrics=(self._settings.metric,),
            answers=tuple(pairs.answers.tolist()),
            wrong=tuple(pairs.wrong.tolist()),
            source_runs=corrupted if operation == "patch" else None,
            reference=corrupted if operation == "mean" else None,
        )
