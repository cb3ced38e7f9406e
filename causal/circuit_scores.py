"""Scores of nodes, each patched by itself in both directions: where the search for a circuit begins.

Noising writes a node's corrupted value into the clean run and shows whether the model needs the node; a part of an OR
is not needed. Denoising writes its clean value into the corrupted run and shows whether the node is enough; a part of
an AND is not. The larger of the two ranks a node.

All nodes are patched exactly where they are few. Where they are many, attribution patching ranks them first, by
gradients and in both directions too, and those with the largest predictions are patched; the others rank below them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .applying import Materials
from .attribution_patching import Attribution, attribution_patching
from .circuit_runs import CircuitRuns
from .grading import Agreement
from .grids import Grid
from .measures import Direction, Effect
from .nodes import Node, edits_of
from .sweeps import sweep

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
    found: dict[Direction, Attribution] = {
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
        for node, *cells in zip(runs.nodes, *(one.nodes[: len(runs.nodes)] for one in found.values()), strict=True)
    }
    passes = sum(one.passes.forwards + one.passes.backwards + one.exact.forwards for one in found.values())
    return _Predicted(sizes, {direction: one.agreement for direction, one in found.items()}, passes)


def _grid(nodes: Sequence[Node]) -> Grid:
    return Grid.listed(edit for node in nodes for edit in edits_of([node], "patch"))
