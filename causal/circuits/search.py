"""The search for a circuit: nodes are scored, pruned while the rest stays faithful, and then their backups are named.

Scores rank the nodes, each patched by itself in both directions. Noising writes a node's corrupted value into the clean
run and shows whether the model needs the node; a part of an OR, which another node backs up, is not needed. Denoising
writes its clean value into the corrupted run and shows whether the node is enough; a part of an AND, which works only
together with another, is not. The larger of the two counts. All nodes are patched exactly where that is affordable.
Where it is not, attribution patching ranks them first, by gradients and in both directions too, and of those that are
patched one half has the largest predictions, the other is a random sample of the rest: what it finds there says what
the gradients missed.

Pruning starts from all nodes and keeps a set whose faithfulness is within the tolerance of the target. It removes as
many of the lowest-ranked nodes as can go together (by bisection), ranks the rest again by what removing each of them
would do now, and so on until none of them can go by itself. Where cutting each node at each step is not affordable,
gradients at the circuit alone rank the rest; where they lead no further the first few are cut, and only then each:
every step is a measured one, and the end is the same. The order is greedy, so the circuit is minimal, not least.

A node whose loss costs the circuit more than the whole model, beyond the tolerance, has backups: with it cut in both,
a minimal set of other nodes that brings the rest of the circuit as far as the model comes (or as far behind it as the
whole circuit is). Then those are cut too, for a backup may be backed up itself, until the model loses as much as the
circuit.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..agreement import Agreement, agreement
from ..attribution_patching import predict_patches
from ..edits import Edit
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


class Pruned(NamedTuple):
    """What the pruning has come to."""

    nodes: tuple[Node, ...]
    """The candidates that are left."""
    step: Step


def prune(
    runs: CircuitRuns, candidates: Sequence[Node], *, tolerance: float, target: float = 1.0, fixed: Nodes = frozenset()
) -> tuple[Nodes, tuple[Step, ...]]:
    """A minimal set of candidates that with the `fixed` nodes is as faithful as the target, and the way there.

    `candidates` are removed from the front where nothing else tells them apart. All of them together must be faithful.
    """
    pruned = list(prunings(runs, candidates, tolerance=tolerance, target=target, fixed=fixed))
    return frozenset(pruned[-1].nodes if pruned else candidates), tuple(each.step for each in pruned)


def prunings(
    runs: CircuitRuns, candidates: Sequence[Node], *, tolerance: float, target: float = 1.0, fixed: Nodes = frozenset()
) -> Iterator[Pruned]:
    """As `prune`, set by set, the last one minimal; none where nothing can be removed."""
    rankings = (_cut_each,) if runs.exact else (_predict_each, _cut_front, _cut_each)
    order, at = list(candidates), -1
    while order and at < len(rankings):
        if at >= 0:
            left = rankings[at](runs, fixed.union(order), order)
            order.sort(key={node: abs(target - value) for node, value in left.items()}.__getitem__)
        dropped = _count_droppable(runs, order, tolerance=tolerance, target=target, fixed=fixed)
        order = order[dropped:]
        if dropped:
            circuit = fixed.union(order)
            yield Pruned(tuple(order), Step(len(circuit), runs.faithful([circuit])[0]))
        at = 0 if dropped or at < 0 else at + 1


def _cut_each(runs: CircuitRuns, circuit: Nodes, order: Sequence[Node]) -> dict[Node, float]:
    """F of the circuit without each node of the order."""
    return dict(zip(order, runs.faithful([circuit - {node} for node in order], base=circuit), strict=True))


_FRONT = 16
"""Nodes that are cut where gradients lead no further, before all are."""


def _cut_front(runs: CircuitRuns, circuit: Nodes, order: Sequence[Node]) -> dict[Node, float]:
    """As `_cut_each` for the first few; the others stay behind them, in their order."""
    return dict.fromkeys(order, math.inf) | _cut_each(runs, circuit, order[:_FRONT])


def _predict_each(runs: CircuitRuns, circuit: Nodes, order: Sequence[Node]) -> dict[Node, float]:
    """The same to first order."""
    whole, losses = runs.faithful([circuit])[0], runs.predict_losses(circuit)
    return {node: whole - losses[node] for node in order}


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
class Sample:
    """What patching says of nodes that gradients ranked low, from a random sample of these."""

    drawn: int
    others: int
    """How many there are, the sample included."""
    strong: int
    """Of the sample: those whose larger effect is SHARE or more."""

    @property
    def bound(self) -> float:
        """The largest share of strong ones that leaves so few in the sample a chance of 5% (Clopper-Pearson)."""
        low, high = self.strong / self.drawn, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            ways = (
                math.comb(self.drawn, k) * middle**k * (1 - middle) ** (self.drawn - k) for k in range(self.strong + 1)
            )
            low, high = (middle, high) if sum(ways) > 0.05 else (low, middle)
        return high


@dataclass(frozen=True, slots=True)
class Scores:
    """The nodes' scores and their order."""

    exact: Mapping[Node, NodeScore]
    """Of those that were patched."""
    order: tuple[Node, ...]
    """All nodes, the least first."""
    agreement: Mapping[Direction, Agreement]
    """Of the gradients' predictions with exact patching; empty where all nodes were patched."""
    sample: Sample | None
    """None where all nodes were patched."""
    passes: int
    """Forward and backward ones that it took."""

    @property
    def ranks(self) -> dict[Node, int]:
        """Each node's place in the order."""
        return {node: place for place, node in enumerate(self.order)}


def score_nodes(runs: CircuitRuns, *, most: int, at_once: int, seed: int) -> Scores:
    """Score the nodes on the runs' pairs: all of them exactly where the runs are exact, else at most `most`."""
    if runs.exact or len(runs.nodes) <= most:
        scores, passes = _patch(runs, runs.nodes, at_once=at_once, seed=seed)
        return Scores(scores, tuple(sorted(scores, key=lambda node: scores[node].rank)), {}, None, passes)
    predicted, cost = _predict(runs, at_once=at_once)
    ranked = sorted(runs.nodes, key=lambda node: -max(abs(side[node]) for side in predicted.values()))
    others = ranked[most - most // 2 :]
    drawn = random.Random(seed).sample(others, most // 2)
    scores, passes = _patch(runs, [*ranked[: most - most // 2], *drawn], at_once=at_once, seed=seed)
    strong = sum(scores[node].rank >= SHARE for node in drawn)
    exact: dict[Direction, list[float]] = {
        "noise": [score.noise.recovered or 0.0 for score in scores.values()],
        "denoise": [score.denoise.recovered or 0.0 for score in scores.values()],
    }
    agreed: dict[Direction, Agreement] = {
        direction: agreement([side[node] for node in scores], exact[direction], top=most)
        for direction, side in predicted.items()
    }
    sizes = {node: max(abs(side[node]) for side in predicted.values()) for node in ranked}
    sizes |= {node: score.rank for node, score in scores.items()}
    order = tuple(sorted(ranked, key=sizes.__getitem__))
    return Scores(scores, order, agreed, Sample(len(drawn), len(others), strong), cost + passes)


def _patch(runs: CircuitRuns, nodes: Sequence[Node], *, at_once: int, seed: int) -> tuple[dict[Node, NodeScore], int]:
    """Patch each node by itself, and say how many forwards it took."""
    swept = sweep(
        runs.subject,
        runs.task.pairs,
        Grid.of_edits(_patches(nodes)),
        metrics=[runs.metric],
        materials=Materials(sources=runs.sources),
        at_once=at_once,
        seed=seed,
    )
    scores: dict[Node, NodeScore] = {}
    for node, cell in zip(nodes, swept.cells, strict=True):
        noise, denoise = (cell.effect(runs.metric, direction) for direction in _DIRECTIONS)
        assert isinstance(noise, Effect) and isinstance(denoise, Effect), "pairs have effects"
        scores[node] = NodeScore(node, noise, denoise)
    return scores, swept.cost.forwards


def _predict(runs: CircuitRuns, *, at_once: int) -> tuple[dict[Direction, dict[Node, float]], int]:
    """Each node's effect to first order, as a fraction of clean to corrupted, and how many passes it took."""
    effects: dict[Direction, dict[Node, float]] = {}
    passes = 0
    for direction in _DIRECTIONS:
        predicted = predict_patches(
            runs.subject,
            runs.task.pairs,
            _patches(runs.nodes),
            direction=direction,
            metric=runs.metric,
            materials=Materials(sources=runs.sources),
            at_once=at_once,
        )
        shares = predicted.scores.mean(1) / predicted.difference
        effects[direction] = dict(zip(runs.nodes, shares.tolist(), strict=True))
        passes += predicted.passes.forwards + predicted.passes.backwards
    return effects, passes


def _patches(nodes: Sequence[Node]) -> list[Edit]:
    return [edit for node in nodes for edit in edits_of([node], "patch")]
