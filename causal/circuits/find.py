"""Circuits: the few parts of a subject that do a task by themselves, found and put to the test.

A `CircuitSearch` takes a task that the subject does (`baseline`), scores all nodes, prunes them and names their backups
on one half of the pairs, and evaluates what is left on the other half, which the search never saw; with fewer than
HALVES pairs both are done on all of them, and the report says so. How each is done stands in `search`, `runs` and
`evaluate`; where patching and cutting every node is too much work, gradients rank and exact runs verify. It can be
stopped at any time, by an interrupt or by the end of its time (`work`), and then reports what is known.

`find_circuit` is a whole search, and `evaluate_circuit` puts a circuit of one's own to the same test.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source, require_one_site, require_vectorwise
from ..records import Trial, provenance_of
from ..runs import AT_ONCE, blocks_of
from ..work import OutOfTime, Work, cost_of
from .evaluate import Cut, Evaluation, cut_out, evaluations
from .nodes import Node, nodes_of
from .report import CircuitReport, Passes
from .role_values import Roles
from .roles import find_roles
from .runs import ABLATIONS, CircuitRuns
from .search import Backup, Scores, Step, find_backups, prunings, score_nodes
from .tasks import Task, baseline

FAITHFUL = 0.9
"""How faithful a circuit is at least; above 1, it is as near to it."""
HALVES = 16
"""Pairs from which on half of them are kept for the evaluation."""


SEARCHING = 0.5
"""Share of the time, where it is bounded, that the search of a known circuit for a smaller one may take; the rest is
the evaluation's."""
EXACT_WORK = 3e11
"""Floating-point operations up to which every node is patched by itself: some minutes in all on one core."""
FEW = (4, 20)
"""Subsets and random circuits where that is too much, unless others are asked for; MANY where it is not."""
MANY = (10, 100)
VERIFIED = 32
"""Nodes that are patched by themselves where gradients rank them: the first, and as many at random."""


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
    subsets: int | None = None
    """Random parts of the circuit that are cut for completeness and minimality; None: as the work allows."""
    controls: int | None = None
    """Random circuits it is compared with; None: as the work allows."""
    exact: bool | None = None
    """Whether every node is patched and cut by itself, and backups are named; None: as the work allows."""
    patched: int = 256
    """Nodes that are patched exactly, at most; where there are more, gradients choose VERIFIED of them, or these."""
    roles: bool = True
    """Whether the roles of its heads and MLPs are looked for."""
    at_once: int = AT_ONCE
    """Rows of a forward."""
    seed: int = 0
    """Of subsets, random circuits and bootstraps."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise NeuronautError(f"threshold {self.threshold} is no faithfulness to reach; wanted above 0 and below 1")
        if min(self.subsets or 0, self.controls or 0) < 0 or self.patched < 2 or self.at_once < 1:
            raise NeuronautError(f"{self}: wanted 0 or more subsets and controls, at_once 1 or more, patched 2 or more")

    @property
    def tolerance(self) -> float:
        """How far from 1 a faithful circuit may be."""
        return 1 - self.threshold


DEFAULT = CircuitSettings()


class CircuitSearch:
    """A search in hand: `run` does the work part by part, and `report` says at any time what is known."""

    def __init__(
        self,
        subject: Subject,
        task: Task,
        *,
        nodes: Sequence[Node] | None = None,
        settings: CircuitSettings = DEFAULT,
        sources: Mapping[str, Source] | None = None,
        work: Work | None = None,
    ) -> None:
        """`work` is told how far the search is, and ends it when its time is over."""
        self._subject, self._task, self._settings, self._sources = subject, task, settings, sources or {}
        self._nodes = nodes_of(subject) if nodes is None else tuple(nodes)
        for node in self._nodes:
            subject.width(node.site)  # An unknown site is an error that lists them.
        for source in self._sources.values():
            require_vectorwise(source, "a node of a circuit")
            require_one_site(source, "a node of a circuit")
        self._work = work or Work()
        operations = _count_operations(subject, task) * len(self._nodes)
        affordable = len(self._nodes) <= settings.patched and operations <= EXACT_WORK
        self._exact = affordable if settings.exact is None else settings.exact
        subsets, controls = MANY if self._exact else FEW
        self._patched = min(settings.patched, VERIFIED)
        self._subsets = subsets if settings.subsets is None else settings.subsets
        self._controls = controls if settings.controls is None else settings.controls
        self._scores: Scores | None = None
        self._circuit: tuple[Node, ...] = ()
        self._steps: list[Step] = []
        self._backups: tuple[Backup, ...] = ()
        self._evaluation: Evaluation | None = None
        self._roles: Roles | None = None
        self._passes = Passes(baseline=2)
        self._unfinished = ["scores", "search", *(["backups"] if self._exact else []), "evaluation"]
        self._unfinished += ["roles"] if settings.roles else []

    @property
    def known(self) -> bool:
        """Whether there is anything to report."""
        return self._scores is not None

    def run(self, given: Sequence[Node] | None = None) -> None:
        """Find a circuit, or take the given one, and evaluate it; what the time does not allow is left undone."""
        if given is not None:
            self._check_given(given)
        with self._work.counted(self._subject):
            try:
                self._search(given)
            except OutOfTime:
                if not self.known:
                    raise NeuronautError("the time was over before anything was known; give more minutes") from None
            if self._circuit:
                with suppress(OutOfTime):
                    self._evaluate()
                    self._find_roles()

    def report(self) -> CircuitReport:
        """All that is known; a part that is not done to its end is named in `unfinished`."""
        assert self._scores is not None, "asked for where something is known"
        trial = self._build_trial()
        return CircuitReport(
            task=self._task.name,
            circuit=self._circuit,
            nodes=self._nodes,
            threshold=self._settings.threshold,
            ablation=self._settings.ablation,
            pairs=(len(self._runs.task), len(self._test.task)),
            held_out=self._test.task is not self._runs.task,
            baseline=self._baseline,
            scores=tuple(self._scores.exact.values()),
            exact=self._exact,
            agreement=self._scores.agreement,
            sample=self._scores.sample,
            steps=tuple(self._steps),
            backups=self._backups,
            evaluation=self._evaluation,
            roles=self._roles,
            unfinished=tuple(self._unfinished),
            passes=replace(self._passes, evaluation=self._test.forwards),
            controls=self._controls,
            seed=self._settings.seed,
            trial=trial,
            provenance=provenance_of(self._subject, trial, sources=self._sources),
        )

    def _check_given(self, given: Sequence[Node]) -> None:
        if strange := [str(node) for node in given if node not in self._nodes]:
            raise NeuronautError(
                f"{', '.join(strange)} is not among the {len(self._nodes)} nodes; name all there are to cut"
            )
        if not given or len(set(given)) != len(given):
            raise NeuronautError(f"the circuit has {len(given)} nodes, maybe one of them twice; name each of them once")

    def _search(self, given: Sequence[Node] | None) -> None:
        settings, task = self._settings, self._task
        left = self._expect(len(given) if given else len(self._nodes) // 10, scores=True)
        self._work.begin("runs the pairs", left=left)
        self._baseline = baseline(self._subject, task, metric_name=settings.metric, seed=settings.seed)
        self._runs, self._test = (self._open_runs(part) for part in _halves(task))
        how = "patches" if self._exact else "ranks by gradients"
        self._work.begin(f"{how} {len(self._nodes)} nodes", left=left)
        scores = score_nodes(self._runs, most=self._patched, at_once=settings.at_once, seed=settings.seed)
        self._scores, self._passes = scores, replace(self._passes, scores=scores.passes)
        self._unfinished.remove("scores")
        if given is None:
            self._prune(scores)
        self._circuit = self._circuit or tuple(given or reversed(scores.order))
        self._passes = replace(self._passes, search=self._runs.forwards)
        self._unfinished.remove("search")
        if self._exact:
            self._find_backups(scores)

    def _prune(self, scores: Scores) -> None:
        for nodes, step in prunings(self._runs, scores.order, tolerance=self._settings.tolerance):
            self._steps.append(step)
            self._circuit = tuple(node for node in reversed(scores.order) if node in set(nodes))
            self._passes = replace(self._passes, search=self._runs.forwards)
            text = f"prunes, {len(nodes)} nodes left of faithfulness {step.faithfulness:.2f}"
            self._work.begin(text, left=self._expect(len(nodes), search=True), share=SEARCHING)

    def _find_backups(self, scores: Scores) -> None:
        before = self._runs.forwards
        self._work.begin("looks for backups", left=self._expect(len(self._circuit), search=True), share=SEARCHING)
        self._backups = find_backups(
            self._runs, frozenset(self._circuit), scores.ranks, tolerance=self._settings.tolerance
        )
        self._passes = replace(self._passes, backups=self._runs.forwards - before)
        self._unfinished.remove("backups")

    def _evaluate(self) -> None:
        size = len(self._circuit)
        self._work.begin(f"tests the circuit of {size} nodes", left=self._expect(size))
        for evaluation in evaluations(
            self._test, self._circuit, subsets=self._subsets, controls=self._controls, seed=self._settings.seed
        ):
            self._evaluation = evaluation
        self._unfinished.remove("evaluation")

    def _find_roles(self) -> None:
        if not self._settings.roles:
            return
        settings, task = self._settings, self._test.task
        self._roles = find_roles(
            self._subject, task, self._circuit, at_once=settings.at_once, seed=settings.seed, work=self._work
        )
        self._passes = replace(self._passes, roles=self._roles.forwards)
        self._unfinished.remove("roles")

    def _expect(self, size: int, *, scores: bool = False, search: bool = False) -> float:
        """Tokens still to run, roughly, for a circuit of this size, from its scores or its search on."""
        rows = len(self._task) / (2 if len(self._task) >= HALVES else 1)
        if self._exact:
            scoring, searching, testing = len(self._nodes), 2 * size, (self._subsets + 4) * size
        else:
            scoring, searching, testing = 20 + self._patched, 30 + size, 6 * self._subsets + 1.5 * size
        runs = scores * scoring + (scores or search) * searching + testing + self._controls
        return runs * rows * cost_of(self._subject, self._task.pairs.clean.tokens.shape[1], logits=1)

    def _open_runs(self, task: Task) -> CircuitRuns:
        return CircuitRuns(
            self._subject,
            task,
            self._nodes,
            ablation=self._settings.ablation,
            metric_name=self._settings.metric,
            sources=self._sources,
            at_once=self._settings.at_once,
            exact=self._exact,
        )

    def _build_trial(self) -> Trial:
        """The circuit alone on the evaluation's pairs, as a record that can be run; idle edits are errors there."""
        cut = self._test.reports([node for node in self._nodes if node not in self._circuit])
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


def _halves(task: Task) -> tuple[Task, Task]:
    """The pairs that are searched on, and those of the evaluation; few are both."""
    if len(task) < HALVES:
        return task, task
    return task.take(range(0, len(task), 2)), task.take(range(1, len(task), 2))


def _count_operations(subject: Subject, task: Task) -> float:
    """Of one run of the pairs that are searched on, two for each weight of a block and token."""
    weights = sum(weight.numel() for weight in blocks_of(subject).parameters())
    return 2 * weights * task.pairs.clean.tokens.numel() / (2 if len(task) >= HALVES else 1)


def find_circuit(
    subject: Subject,
    task: Task,
    *,
    nodes: Sequence[Node] | None = None,
    settings: CircuitSettings = DEFAULT,
    sources: Mapping[str, Source] | None = None,
) -> CircuitReport:
    """Look for a minimal circuit among the nodes, by default all heads and MLPs; dictionaries go by `SITE@NAME`.

    >>> from neuronaut.causal.circuits.find import CircuitSettings
    >>> task = open_task(subject, "induction", rows=16)
    >>> report = find_circuit(subject, task, settings=CircuitSettings(controls=2, subsets=2))
    >>> 0 < len(report.circuit) <= len(report.nodes)
    True
    """
    search = CircuitSearch(subject, task, nodes=nodes, settings=settings, sources=sources)
    search.run()
    return search.report()


def cut_circuit(
    subject: Subject,
    task: Task,
    circuit: Sequence[Node],
    cut: Sequence[Node],
    *,
    nodes: Sequence[Node] | None = None,
    settings: CircuitSettings = DEFAULT,
    sources: Mapping[str, Source] | None = None,
) -> Cut:
    """Cut nodes out of a circuit and out of the model, on the pairs that a search's evaluation has.

    `alone` is the faithfulness that `evaluate_circuit` finds of the circuit without them, `model` what it finds
    `ablated` of a circuit of just these.
    """
    universe = nodes_of(subject) if nodes is None else tuple(nodes)
    if strange := [str(node) for node in (*circuit, *cut) if node not in universe]:
        raise NeuronautError(f"{', '.join(strange)} is not among the {len(universe)} nodes; name all there are to cut")
    runs = CircuitRuns(
        subject,
        _halves(task)[1],
        universe,
        ablation=settings.ablation,
        metric_name=settings.metric,
        sources=sources,
        at_once=settings.at_once,
    )
    return cut_out(runs, circuit, cut, seed=settings.seed)


def evaluate_circuit(
    subject: Subject,
    task: Task,
    circuit: Sequence[Node],
    *,
    nodes: Sequence[Node] | None = None,
    settings: CircuitSettings = DEFAULT,
    sources: Mapping[str, Source] | None = None,
) -> CircuitReport:
    """Put a circuit of these nodes, out of all of `nodes`, to the test that a found one is put to."""
    search = CircuitSearch(subject, task, nodes=nodes, settings=settings, sources=sources)
    search.run(circuit)
    return search.report()
