"""The search for a circuit: nodes are scored, pruned while the rest stays faithful, and then their backups are named.

Scores rank the nodes: patching each by itself in both directions, because noising misses what another node backs up
(an OR) and denoising what works only together with another (an AND); the larger of the two counts.

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

from .circuit_runs import CircuitRuns, Nodes
from .nodes import Node


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
    runs: CircuitRuns,
    candidates: Sequence[Node],
    *,
    tolerance: float,
    target: float = 1.0,
    fixed: Nodes = frozenset(),
) -> tuple[Nodes, tuple[Step, ...]]:
    """A minimal set of candidates that with the `fixed` nodes is as faithful as the target, and the way there.

    `candidates` are removed from the front where nothing else tells them apart. All of them together must be faithful.
    """
    order, steps, in_context = list(candidates), list[Step](), False
    while True:
        dropped = _droppable(runs, order, tolerance=tolerance, target=target, fixed=fixed)
        order = order[dropped:]
        kept = fixed.union(order)
        if dropped:
            steps.append(Step(len(kept), runs.faithful([kept])[0]))
        if not order or (in_context and not dropped):
            return frozenset(order), tuple(steps)
        values = runs.faithful([kept - {node} for node in order])
        harm = {node: abs(target - value) for node, value in zip(order, values, strict=True)}
        order, in_context = sorted(order, key=harm.__getitem__), True


def _droppable(runs: CircuitRuns, order: Sequence[Node], *, tolerance: float, target: float, fixed: Nodes) -> int:
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


def backups(runs: CircuitRuns, circuit: Nodes, ranks: Mapping[Node, int], *, tolerance: float) -> tuple[Backup, ...]:
    """The backups of each node of the circuit that has any; none where the circuit is not faithful.

    `ranks` orders all nodes, the least first.
    """
    whole = runs.faithful([circuit])[0]
    if abs(1 - whole) > tolerance:
        return ()
    order = sorted(circuit, key=lambda node: -ranks[node])
    cut = runs.without([frozenset({node}) for node in order])
    alone = runs.faithful([circuit - {node} for node in order])
    found: list[Backup] = []
    for node, model, rest in zip(order, cut, alone, strict=True):
        others = _taking_over(runs, circuit, node, ranks, tolerance=tolerance, whole=whole, loss=abs(whole - rest))
        if others:
            both = runs.without([frozenset({node, *others})])[0]
            found.append(Backup(node, others, rest, model, both))
    return tuple(found)


def _taking_over(
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
    found: list[Node] = []
    while True:
        left = [other for other in ranks if other not in circuit and other not in found]
        model = runs.without([frozenset({node, *found})])[0]
        if not left or loss - abs(1 - model) <= tolerance:
            return tuple(found)
        left.sort(key=ranks.__getitem__)
        new, _ = prune(runs, left, tolerance=tolerance, target=model - (1 - whole), fixed=circuit - {node})
        if not new:  # Only where rounding decides.
            return tuple(found)
        found += sorted(new, key=lambda other: -ranks[other])
