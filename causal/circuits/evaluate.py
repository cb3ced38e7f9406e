"""How good a circuit is: faithfulness, completeness, minimality, and what random circuits of its make-up achieve.

    faithfulness   F(C) of the circuit alone: near 1
    completeness   cut out of the whole model, the circuit should leave nothing: F(M \\ C) near 0; and with any part K
                   cut in both, circuit and model should stay alike: |F(C \\ K) - F(M \\ K)| near 0, for each node,
                   for C itself and for random subsets K (Wang et al. 2022)
    minimality     of a node v: F(C \\ K) - F(C \\ (K + v)), the largest over subsets K of the rest: every node's far
                   from 0. K runs over none, all, and random ones, so that a node that another backs up shows too;
                   where runs are not exact, over none and the random one at which the gradient says the node adds most
    control        F of other sets of as many nodes of each kind, and where the circuit stands among them by how near
                   to 1 it is

F is as in `runs`; intervals are bootstraps over pairs.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..controls import rank_among
from ..measures import Effect, effect
from .nodes import Node
from .runs import CircuitRuns, Nodes

_TRIES = 20
"""Draws for each random circuit wanted, before there are taken to be no more."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Circuit and model with the same nodes cut."""

    cut: tuple[Node, ...]
    circuit: float
    """F(C \\ K)."""
    model: float
    """F(M \\ K)."""

    @property
    def size(self) -> float:
        """How far apart the two are."""
        return abs(self.circuit - self.model)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a node adds where it adds most."""

    node: Node
    value: float
    """F with the node less F without it; the one of the largest size."""
    cut: tuple[Node, ...]
    """The nodes of the circuit that are cut meanwhile."""


@dataclass(frozen=True, slots=True)
class RandomCircuits:
    """Circuits of the same make-up."""

    faithfulness: tuple[float, ...]
    percentile: float
    """Percent of them that are further from 1 than the circuit; a tie counts half."""
    p: float
    """(1 + those at least as near) / (1 + all)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a circuit is worth on a task."""

    faithfulness: Effect
    """`recovered` is F: 0 with all nodes cut (`corrupted`), 1 with none; `patched` are the circuit's own values."""
    ablated: Effect
    """The same of the whole model with the circuit cut."""
    gaps: tuple[Gap, ...]
    """The largest first."""
    minimality: tuple[Contribution, ...]
    """By node, in the order of the circuit."""
    control: RandomCircuits | None
    """None where there is no other circuit of this make-up, or none is wanted."""

    @property
    def mean_gap(self) -> float | None:
        """Over the subsets; None where they are not measured yet."""
        return sum(gap.size for gap in self.gaps) / len(self.gaps) if self.gaps else None


@dataclass(frozen=True, slots=True)
class Cut:
    """A circuit, and the whole model, with some nodes cut."""

    nodes: tuple[Node, ...]
    """Those that are cut."""
    alone: Effect
    """F(C \\ K): `recovered` is that of the circuit alone without them."""
    model: Effect
    """F(M \\ K): the same of the whole model without them."""


def cut_out(runs: CircuitRuns, circuit: Sequence[Node], cut: Sequence[Node], *, seed: int = 0) -> Cut:
    """Cut nodes out of a circuit, and out of the model; none is cut where `cut` is empty."""
    left = frozenset(circuit) - frozenset(cut)
    alone, model = (runs.alone([left])[0], runs.cut([frozenset(cut)])[0])
    return Cut(tuple(cut), _effect(runs, alone, seed), _effect(runs, model, seed))


def _effect(runs: CircuitRuns, values: Tensor, seed: int) -> Effect:
    """What these values of the metric, (row,), keep of the behaviour: F with its interval."""
    return effect(runs.metric, clean=runs.clean, corrupted=runs.floor, patched=values, direction="denoise", seed=seed)


def evaluate(runs: CircuitRuns, circuit: Sequence[Node], *, subsets: int, controls: int, seed: int = 0) -> Evaluation:
    """Evaluate a circuit, which has at least one node; `seed` draws subsets, random circuits and bootstraps."""
    *_, evaluation = evaluations(runs, circuit, subsets=subsets, controls=controls, seed=seed)
    return evaluation


def evaluations(
    runs: CircuitRuns, circuit: Sequence[Node], *, subsets: int, controls: int, seed: int
) -> Iterator[Evaluation]:
    """As `evaluate`, part by part: faithfulness and completeness, then gaps, minimality node by node, the control."""
    rng, whole = random.Random(seed), frozenset(circuit)
    drawn = [frozenset(node for node in circuit if rng.random() < 0.5) for _ in range(subsets)]
    faithfulness, ablated = (_effect(runs, values[0], seed) for values in (runs.alone([whole]), runs.cut([whole])))
    evaluation = Evaluation(faithfulness, ablated, (), (), None)
    yield evaluation
    evaluation = replace(evaluation, gaps=_measure_gaps(runs, circuit, drawn))
    yield evaluation
    measure = _measure_contributions if runs.exact else _verify_contributions
    for added in measure(runs, circuit, drawn):
        evaluation = replace(evaluation, minimality=(*evaluation.minimality, added))
        yield evaluation
    yield replace(evaluation, control=_compare_random(runs, whole, controls, rng))


def _measure_gaps(runs: CircuitRuns, circuit: Sequence[Node], drawn: Sequence[Nodes]) -> tuple[Gap, ...]:
    whole = frozenset(circuit)
    singles = [frozenset({node}) for node in circuit]
    parts = [part for part in dict.fromkeys([whole, *singles, *drawn]) if part]
    alone, model = runs.faithful([whole - part for part in parts], base=whole), runs.without(parts)
    gaps = (Gap(_in_order(circuit, part), *both) for part, *both in zip(parts, alone, model, strict=True))
    return tuple(sorted(gaps, key=lambda gap: -gap.size))


def _measure_contributions(
    runs: CircuitRuns, circuit: Sequence[Node], drawn: Sequence[Nodes]
) -> Iterator[Contribution]:
    whole = frozenset(circuit)
    cases = {
        node: list(dict.fromkeys(part - {node} for part in (frozenset[Node](), whole, *drawn))) for node in circuit
    }
    pairs = [(whole - part, whole - part - {node}) for node, parts in cases.items() for part in parts]
    values = iter(runs.faithful([circuit for pair in pairs for circuit in pair]))
    for node, parts in cases.items():
        yield _largest([Contribution(node, next(values) - next(values), _in_order(circuit, part)) for part in parts])


def _verify_contributions(runs: CircuitRuns, circuit: Sequence[Node], drawn: Sequence[Nodes]) -> Iterator[Contribution]:
    """Each node's with nothing cut, and with the part cut at which gradients say that it adds most."""
    whole, nothing = frozenset(circuit), frozenset[Node]()
    predicted = {part: runs.predict_losses(whole - part) for part in dict.fromkeys(drawn) if part != whole}
    cases: dict[Nodes, list[Node]] = {nothing: list(circuit)}
    for node in circuit:
        parts = [part for part in predicted if node not in part]
        best = max(parts, key=lambda part: abs(predicted[part][node]), default=nothing)
        cases.setdefault(best, []).append(node)
    found: dict[Node, list[Contribution]] = {node: [] for node in circuit}
    for part, nodes in cases.items():
        rest = whole - part
        with_it, *without = runs.faithful([rest, *(rest - {node} for node in nodes)], base=rest)
        for node, value in zip(nodes, without, strict=True):
            found[node].append(Contribution(node, with_it - value, _in_order(circuit, part)))
    yield from map(_largest, found.values())


def _largest(contributions: Sequence[Contribution]) -> Contribution:
    return max(contributions, key=lambda contribution: abs(contribution.value))


def _compare_random(runs: CircuitRuns, circuit: Nodes, count: int, rng: random.Random) -> RandomCircuits | None:
    kinds: dict[str, list[Node]] = {}
    for node in runs.nodes:
        kinds.setdefault(node.kind, []).append(node)
    makeup = Counter(node.kind for node in circuit)
    circuits: dict[Nodes, None] = {}
    for _ in range(_TRIES * count):
        drawn = frozenset(node for kind, nodes in kinds.items() for node in rng.sample(nodes, makeup[kind]))
        if drawn != circuit:
            circuits.setdefault(drawn)
        if len(circuits) == count:
            break
    if not circuits:
        return None
    values = runs.faithful(list(circuits))
    rank = rank_among(_nearness(runs.faithful([circuit])[0]), [_nearness(value) for value in values])
    return RandomCircuits(tuple(values), rank.percentile, rank.p)


def _nearness(faithfulness: float) -> float:
    """1 where it is perfect, 0 where it is off by all of the effect or more."""
    return max(0.0, 1 - abs(1 - faithfulness))


def _in_order(circuit: Sequence[Node], part: Iterable[Node]) -> tuple[Node, ...]:
    chosen = frozenset(part)
    return tuple(node for node in circuit if node in chosen)
