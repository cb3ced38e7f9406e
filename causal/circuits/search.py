"""The search for a circuit: nodes are scored, pruned while the rest stays faithful, and then their backups are named.

Scores rank the nodes, each patched by itself in both directions. Noising writes a node's corrupted value into the clean
run and shows whether the model needs the node; a part of an OR, which another node backs up, is not needed. Denoising
writes its clean value into the corrupted run and shows whether the node is enough; a part of an AND, which works only
together with another, is not. The larger of the two counts. All nodes are patched exactly where they are few. Where
they are many, attribution patching ranks them first, by gradients and in both directions too, and those with the
largest predictions are patched; the others rank below them.

Pruning starts from all nodes and keeps a set whose faithfulness is within the tolerance of the target. It removes as
many of the lowest-ranked nodes as can go together (by bisection), ranks the rest again by what removing each of them
would do now, and so on until none of them can go by itself. The order is greedy, so the circuit is minimal, not least.

A node whose loss costs the circuit more than the whole model, beyond the tolerance, has backups: with it cut in both,
a minimal set of other nodes that brings the rest of the circuit as far as the model comes (or as far behind it as the
whole circuit is). Then those are cut too, for a backup may be backed up itself, until the model loses as much as the
circuit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..agreement import Agreement
from ..attribution_patching import Attribution, attribution_patching
from ..grids import Grid
from ..intervene import Materials
from ..measures import Direction, Effect
from ..sweeps import sweep
from .nodes import Node, edits_of
from .runs import CircuitRuns, Nodes


@dataclass(frozen=True, slots=True)
class Step:
    """A set that the pruning came to."""

    nodes: int
    faithfulness: float


@dataclass(frozen=True, slots=True)
class Backup:
    """Nodes that take over where one of the circuit's is cut."""

    node: Node
    nodes: tuple[Node, ...]
    circuit: float
    """Faithfulness of the circuit without the node."""
    model: float
    """Faithfulness of the whole model with the node cut."""
    both: float
    """Faithfulness of the whole model with the node and its backups cut."""


def prune(
    runs: CircuitRuns, candidates: Sequence[Node], *, tolerance: float, target: float = 1.0, fixed: Nodes = frozenset()
) -> tuple[Nodes, tuple[Step, ...]]:
    """A minimal set of candidates that with the `fixed` nodes is as faithful as the target, and the way there.

    `candidates` are removed from the front where nothing else tells them apart. All of them together must be faithful.
    """
    order, steps, reranked = list(candidates), list[Step](), False
    while True:
        dropped = _count_droppable(runs, order, tolerance=tolerance, target=target, fixed=fixed)
        order = order[dropped:]
        circuit = fixed.union(order)
        if dropped:
            steps.append(Step(len(circuit), runs.faithful([circuit])[0]))
        if not order or (reranked and not dropped):
            return frozenset(order), tuple(steps)
        values = runs.faithful([circuit - {node} for node in order])
        harm = {node: abs(target - value) for node, value in zip(order, values, strict=True)}
        order, reranked = sorted(order, key=harm.__getitem__), True


def _count_droppable(runs: CircuitRuns, order: Sequence[Node], *, tolerance: float, target: float, fixed: Nodes) -> int:
    """How many from the front can go together, found by bisection: one more could not, or not in this order."""
    low, high = 0, len(order) + 1
    while high - low > 1:
        middle = (low + high) // 2
        value = runs.faithful([fixed.union(order[middle:])])[0]
        if abs(target - value) <= tolerance:
            low = middle
        else:
            high = middle
    return low


def find_backups(
    runs: CircuitRuns, circuit: Nodes, ranks: Mapping[Node, int], *, tolerance: float
) -> tuple[Backup, ...]:
    """The backups of each node of the circuit that has any; none where the circuit is not faithful.

    `ranks` orders all nodes, the least first.
    """
    whole = runs.faithful([circuit])[0]
    if abs(1 - whole) > tolerance:
        return ()
    order = sorted(circuit, key=lambda node: -ranks[node])
    cut = runs.without([frozenset({node}) for node in order])
    alone = runs.faithful([circuit - {node} for node in order])
    replaced: list[Backup] = []
    for node, model, rest in zip(order, cut, alone, strict=True):
        replacements = _find_replacements(
            runs, circuit, node, ranks, tolerance=tolerance, whole=whole, loss=abs(whole - rest)
        )
        if replacements:
            both = runs.without([frozenset({node, *replacements})])[0]
            replaced.append(Backup(node, replacements, rest, model, both))
    return tuple(replaced)


def _find_replacements(
    runs: CircuitRuns,
    circuit: Nodes,
    node: Node,
    ranks: Mapping[Node, int],
    *,
    tolerance: float,
    whole: float,
    loss: float,
) -> tuple[Node, ...]:
    """The nodes without which the model loses about as much by `node` as the circuit, which then loses `loss`."""
    replacements: list[Node] = []
    while True:
        left = [other for other in ranks if other not in circuit and other not in replacements]
        model = runs.without([frozenset({node, *replacements})])[0]
        if not left or loss - abs(1 - model) <= tolerance:
            return tuple(replacements)
        left.sort(key=ranks.__getitem__)
        new, _ = prune(runs, left, tolerance=tolerance, target=model - (1 - whole), fixed=circuit - {node})
        if not new:  # Only where rounding decides.
            return tuple(replacements)
        replacements += sorted(new, key=lambda other: -ranks[other])


SHARE = 0.1
"""Of the clean-corrupted difference: what counts as an effect of one node by itself."""
_DIRECTIONS: tuple[Direction, ...] = ("noise", "denoise")
_ROLES = {
    (True, True): "needed and enough",
    (True, False): "needed, not enough",
    (False, True): "enough, not needed",
    (False, False): "only with others",
}
"""By whether a node is needed (noising) and enough (denoising): an AND's parts are the second, an OR's the third."""


@dataclass(frozen=True, slots=True)
class NodeScore:
    """A node patched by itself."""

    node: Node
    noise: Effect
    denoise: Effect

    @property
    def rank(self) -> float:
        """The larger effect, whatever its sign."""
        return max(abs(effect.recovered or 0.0) for effect in (self.noise, self.denoise))

    @property
    def role(self) -> str:
        """What the two directions say together."""
        needed, enough = (abs(effect.recovered or 0.0) >= SHARE for effect in (self.noise, self.denoise))
        return _ROLES[needed, enough]


@dataclass(frozen=True, slots=True)
class Scores:
    """The nodes' scores and their order."""

    exact: Mapping[Node, NodeScore]
    """Of those that were patched."""
    order: tuple[Node, ...]
    """All nodes, the least first."""
    agreement: Mapping[Direction, Agreement]
    """Of the gradients' predictions with exact patching; empty where all nodes were patched."""
    passes: int
    """Forward and backward ones that it took."""

    @property
    def ranks(self) -> dict[Node, int]:
        """Each node's place in the order."""
        return {node: place for place, node in enumerate(self.order)}


def score_nodes(runs: CircuitRuns, *, most: int, at_once: int, seed: int) -> Scores:
    """Score the nodes on the runs' pairs; at most `most` of them are patched exactly."""
    predicted = _Predicted({}, {}, 0) if len(runs.nodes) <= most else _predict(runs, at_once=at_once, seed=seed)
    weak_first = sorted(runs.nodes, key=lambda node: predicted.sizes.get(node, 0.0))
    begin = max(0, len(weak_first) - most)
    left, chosen = weak_first[:begin], weak_first[begin:]
    swept = sweep(
        runs.subject,
        runs.task.pairs,
        _grid(chosen),
        metrics=[runs.metric],
        materials=Materials(sources=runs.sources),
        at_once=at_once,
        seed=seed,
    )
    scores: dict[Node, NodeScore] = {}
    for node, cell in zip(chosen, swept.cells, strict=True):
        noise, denoise = (cell.effect(runs.metric, direction) for direction in _DIRECTIONS)
        assert isinstance(noise, Effect) and isinstance(denoise, Effect), "pairs have effects"
        scores[node] = NodeScore(node, noise, denoise)
    order = (*left, *sorted(chosen, key=lambda node: scores[node].rank))
    return Scores(scores, order, predicted.agreement, predicted.passes + swept.cost.forwards)


class _Predicted(NamedTuple):
    sizes: dict[Node, float]
    """The larger of the two directions' predictions, in the metric's unit."""
    agreement: dict[Direction, Agreement]
    passes: int


def _predict(runs: CircuitRuns, *, at_once: int, seed: int) -> _Predicted:
    materials = Materials(sources=runs.sources)
    attributions: dict[Direction, Attribution] = {
        direction: attribution_patching(
            runs.subject,
            runs.task.pairs,
            _grid(runs.nodes),
            direction=direction,
            metric=runs.metric,
            materials=materials,
            at_once=at_once,
            seed=seed,
        )
        for direction in _DIRECTIONS
    }
    sizes = {
        node: max(abs(cell.score) for cell in cells)
        for node, *cells in zip(
            runs.nodes, *(attribution.nodes[: len(runs.nodes)] for attribution in attributions.values()), strict=True
        )
    }
    passes = sum(each.passes.forwards + each.passes.backwards + each.exact.forwards for each in attributions.values())
    return _Predicted(sizes, {direction: each.agreement for direction, each in attributions.items()}, passes)


def _grid(nodes: Sequence[Node]) -> Grid:
    return Grid.of_edits(edit for node in nodes for edit in edits_of([node], "patch"))
