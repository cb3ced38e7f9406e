"""What experiments on behaviours share: how nodes are chosen, how an item is measured, and its control.

An item's `about` says what is done: {"node": n} and {"cut": [...]} put these nodes' corrupted values into the clean
run, and its value is the share of the behaviour that goes; {"keep": [...]} cuts all others, and its value is the share
that stays; {"restore": [...]} puts clean values into the corrupted run, and its value is the share that comes back.
Intervals are bootstraps over pairs.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from ....causal.circuits.nodes import Node, join_nodes
from ....causal.circuits.runs import CircuitRuns, Nodes
from ....subject.errors import NeuronautError
from ...loop.behaviour_lab import BehaviourLab, effects
from ...loop.experiments import Control, Design, Item, Measured
from ...loop.hypotheses import Hypothesis
from ...loop.levels import EDGES
from ..base import Expect

Choose = Literal["top", "random", "differ"]
CONTROLS = 20
"""Random nodes or sets that stand beside an experiment, at most."""
_TRIES = 20


def node_item(node: Node) -> Item:
    """One node cut by itself."""
    return Item(str(node), about={"node": str(node)})


def restore_item(node: Node) -> Item:
    """One node restored by itself."""
    return Item(f"restore {node}", about={"restore": [str(node)]})


def set_item(what: Literal["cut", "keep", "restore"], nodes: Iterable[Node], *, lab: BehaviourLab) -> Item:
    """A set of nodes, in forward order."""
    chosen = frozenset(nodes)
    ordered = [node for node in lab.nodes if node in chosen]
    return Item(f"{what} {join_nodes(ordered)}", about={what: [str(node) for node in ordered]})


def leader(lab: BehaviourLab) -> Hypothesis | None:
    """The hypothesis with the highest odds that names nodes."""
    return next((rival for rival in lab.rivals.values() if rival.nodes), None)


def circuit_of(lab: BehaviourLab, texts: Sequence[str]) -> tuple[Node, ...]:
    """The nodes of these texts, or else those that the first rival with nodes names."""
    first = leader(lab)
    if texts or first is None:
        if not texts:
            raise NeuronautError("no rival names nodes; say which in `nodes`, such as head.1:0")
        return lab.parse_nodes(texts)
    return lab.circuit(first)


def expected_of(lab: BehaviourLab, items: Sequence[Item]) -> list[list[float | None]]:
    """What every rival expects of every item: (rival, item), the leader first."""
    design = Design("", "effect", tuple(items))
    return [list(lab.expect(rival, design)) for rival in lab.rivals.values()]


def choose(
    lab: BehaviourLab,
    items: Sequence[Item],
    *,
    by: Choose,
    expect: Expect,
    count: int,
    seed: int,
    prompts: int | None = None,
) -> list[Item]:
    """At most `count` of the items that stand for `lab.nodes`, by what the leader expects of them; new ones first.

    Where silence is asked for, one in four are ones of which the rivals' expectations differ most: beside what should
    be silent stands what should not, or else nothing could be learned.
    """
    expected = expected_of(lab, items)
    first = expected[0] if expected else [None] * len(items)
    silent = [value is not None and EDGES[0] <= value < EDGES[1] for value in first]
    active = [value is not None and not quiet for value, quiet in zip(first, silent, strict=True)]
    spread = [_range([row[at] for row in expected]) for at in range(len(items))]
    places = list(range(len(items)))
    if by == "top":
        worth = list(lab.worth.values())
        places.sort(key=lambda at: -abs(worth[at]))
    else:
        random.Random(f"{by}:{seed}").shuffle(places)
    differing = sorted(places, key=lambda at: -spread[at])
    if by == "differ":
        places = differing
    mask = {"any": [True] * len(items), "silence": silent, "activity": active}[expect]
    pool = sorted((at for at in places if mask[at]), key=lambda at: not lab.is_new(items[at], prompts=prompts))
    if not pool:
        raise NeuronautError(f"the leader expects {expect} of none of the {len(items)} nodes; ask for another")
    beside = [at for at in differing if spread[at] > 0 and at not in pool] if expect == "silence" else []
    contrast = beside[: min(count // 4, len(pool))]
    return [items[at] for at in (*pool[: count - len(contrast)], *contrast)]


def _range(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return max(numbers) - min(numbers) if numbers else 0.0


def new_first(lab: BehaviourLab, items: Iterable[Item], count: int) -> list[Item]:
    """At most `count` different items, those that were not measured before first."""
    different = {repr(item.about): item for item in items}
    return sorted(different.values(), key=lambda item: not lab.is_new(item))[:count]


def random_nodes(lab: BehaviourLab, apart: Iterable[Node], *, seed: int) -> list[str]:
    """Nodes that are none of these, and that no rival names, as a control."""
    taken = {*apart}.union(*(lab.circuit(rival) for rival in lab.rivals.values()))
    others = [str(node) for node in lab.nodes if node not in taken]
    return random.Random(f"control:{seed}").sample(others, min(CONTROLS, len(others)))


def random_sets(
    lab: BehaviourLab, like: Sequence[Node], *, count: int, seed: int, among: Sequence[Node] | None = None
) -> list[tuple[Node, ...]]:
    """Different other sets of as many nodes of each kind; fewer where there are no more."""
    rng, kinds = random.Random(f"sets:{seed}"), dict[str, list[Node]]()
    for node in lab.nodes if among is None else among:
        kinds.setdefault(node.kind, []).append(node)
    makeup = Counter(node.kind for node in like)
    sizes = {kind: min(number, len(kinds.get(kind, []))) for kind, number in makeup.items()}
    sets: dict[Nodes, None] = {}
    for _ in range(_TRIES * count):
        drawn = [node for kind, number in sizes.items() if number for node in rng.sample(kinds[kind], number)]
        if drawn and frozenset(drawn) != frozenset(like):
            sets.setdefault(frozenset(drawn))
        if len(sets) == count:
            break
    return [tuple(node for node in lab.nodes if node in chosen) for chosen in sets]


def measured(
    lab: BehaviourLab,
    runs: CircuitRuns,
    design: Design,
    *,
    headline: int | None = None,
    tables: Mapping[str, Any] | None = None,
) -> Measured:
    """All items of a design and its control. The headline is the item of this index, or the largest."""
    measurements = effects(lab, runs, [item.about for item in design.items])
    if failed := next((effect.reason for effect in measurements if effect.recovered is None), None):
        raise NeuronautError(f"{lab.target} cannot be measured: {failed}")
    values = [round(float(effect.recovered or 0.0), 5) for effect in measurements]
    at = max(range(len(values)), key=lambda index: abs(values[index])) if headline is None else headline
    low, high = measurements[at].interval or (None, None)
    spans = {
        item.label: [value, *(round(end, 4) for end in effect.interval or ())]
        for item, value, effect in zip(design.items, values, measurements, strict=True)
    }
    return Measured(
        values=tuple(values),
        effect=values[at],
        low=low,
        high=high,
        n=len(runs.task),
        units=f"share of the behaviour, {design.items[at].label}",
        normalised_by=lab.normalised_by,
        control=_control(lab, runs, design.plan),
        found={"items": spans, **(tables or {})},
    )


def _control(lab: BehaviourLab, runs: CircuitRuns, plan: Mapping[str, Any]) -> Control | None:
    abouts = plan.get("control") or []
    if not abouts:
        return None
    values = torch.tensor([effect.recovered or 0.0 for effect in effects(lab, runs, abouts)], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Control(str(plan["what"]), float(values.mean()), low, high)
