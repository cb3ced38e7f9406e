"""Experiments on behaviours, node by node and with sets of nodes: each cut, kept alone or restored.

Random halves of the nodes outside a circuit, and random circuits of its make-up, are where silence is expected.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

from pydantic import Field

from ....causal.circuits.nodes import Node
from ....causal.circuits.tasks import baseline
from ....subject.errors import NeuronautError
from ...loop.behaviour_lab import FRESH, BehaviourLab
from ...loop.experiments import Design, Item, Measured
from ...loop.hypotheses import StrictModel
from ..base import BehaviourTool, Expect
from .common import (
    CONTROLS,
    Choose,
    choose,
    circuit_of,
    leader,
    measured,
    new_first,
    node_item,
    random_nodes,
    random_sets,
    restore_item,
    set_item,
)

_MANY = 64
"""Random sets that are drawn to choose from."""


class CircuitArgs(StrictModel, frozen=True):
    """Which circuit."""

    nodes: tuple[str, ...] = Field((), description="The set, such as head.1:0; none: what the leader names.")
    expect: Expect = Field(
        "any", description="silence: beside the set, random ones that should do nothing; otherwise parts of the set."
    )
    count: int = Field(8, ge=1, le=32, description="Parts or random sets at most.")
    draw: int = Field(0, ge=0, le=99, description="Another number draws other random sets.")


class KeepOnly(BehaviourTool[CircuitArgs]):
    """Cuts all nodes but a set, so that the set has to do the task alone. An item's value is the share of the
    behaviour that stays (faithfulness): of the whole set, and of it less one node in turn, or with expect="silence"
    of all but the set and of random sets of its make-up. The headline is that of the whole set.
    """

    name = "keep_only"

    def design(self, args: CircuitArgs, lab: BehaviourLab) -> Design:
        """The set, what it is compared with, and random circuits as a control."""
        chosen, seed = circuit_of(lab, args.nodes), lab.seed * 100 + args.draw
        if args.expect == "silence":
            others = [_outside(lab, chosen), *random_sets(lab, chosen, count=_MANY, seed=seed)]
        else:
            others = _parts(chosen, seed)
        items = new_first(lab, (set_item("keep", nodes, lab=lab) for nodes in others if nodes), args.count)
        control = random_sets(lab, chosen, count=CONTROLS, seed=seed + 50)
        plan = _control("keep", control, "random circuits of the same make-up", lab)
        whole = set_item("keep", chosen, lab=lab)
        return Design("Does the circuit do the task alone?", "effect", (whole, *items), plan)

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Keep each of them alone, on `select`."""
        return measured(lab, lab.runs("select"), design, headline=0)


class TogetherArgs(StrictModel, frozen=True):
    """Which sets."""

    sets: tuple[tuple[str, ...], ...] = Field(
        (), max_length=32, description="Sets of nodes, each cut at once; none: the leader's circuit and its pairs."
    )
    expect: Expect = Field(
        "any", description="silence: random halves of the nodes outside the leader's circuit, and the circuit."
    )
    count: int = Field(8, ge=1, le=32, description="Sets at most, beside the whole circuit.")
    draw: int = Field(0, ge=0, le=99, description="Another number draws other random sets.")


class CutTogether(BehaviourTool[TogetherArgs]):
    """Cuts sets of nodes, each set at once: finds nodes that back each other up, none of which is missed alone. An
    item's value is the share of the behaviour that goes; the headline is that of the first set.
    """

    name = "cut_together"

    def design(self, args: TogetherArgs, lab: BehaviourLab) -> Design:
        """The sets, and random ones as large as the first as a control."""
        seed = lab.seed * 100 + args.draw
        first, *others = [lab.parse_nodes(texts) for texts in args.sets] or [circuit_of(lab, ())]
        if args.sets:
            items = new_first(lab, (set_item("cut", nodes, lab=lab) for nodes in others), len(others))
        else:
            some = _sets_outside(lab, first, seed) if args.expect == "silence" else _joint_sets(lab, first, seed)
            items = new_first(lab, (set_item("cut", nodes, lab=lab) for nodes in some), args.count)
        control = random_sets(lab, first, count=CONTROLS, seed=seed + 50, among=_outside(lab, first))
        plan = _control("cut", control, "random sets of the same make-up outside", lab)
        whole = set_item("cut", first, lab=lab)
        return Design("What goes where several nodes are cut at once?", "effect", (whole, *items), plan)

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Cut each of them, on `select`."""
        return measured(lab, lab.runs("select"), design, headline=0)


class FreshArgs(StrictModel, frozen=True):
    """Which prompts and nodes."""

    prompts: int = Field(1, ge=1, le=FRESH, description="Which draw of fresh prompts.")
    expect: Expect = Field("any", description="silence: nodes of which the leader expects nothing, and some others.")
    count: int = Field(12, ge=1, le=64, description="Nodes at most, beside the whole circuit.")


class SwapPrompts(BehaviourTool[FreshArgs]):
    """Repeats on fresh prompts, which the task's generator draws anew: the circuit alone, the circuit cut, and nodes
    cut one by one. Values as in keep_only and cut_nodes; the headline is what goes with the circuit. `found` says how
    well the subject does the task on these prompts.
    """

    name = "swap_prompts"

    def design(self, args: FreshArgs, lab: BehaviourLab) -> Design:
        """The circuit and the nodes; refuses a task without a generator."""
        lab.fresh(args.prompts)
        circuit = circuit_of(lab, ())
        whole = [set_item("cut", circuit, lab=lab), set_item("keep", circuit, lab=lab)]
        every = [node_item(node) for node in lab.nodes]
        seed = lab.seed * 100 + args.prompts
        items = [
            *whole,
            *choose(lab, every, by="random", expect=args.expect, count=args.count, seed=seed, prompts=args.prompts),
        ]
        control = random_sets(lab, circuit, count=CONTROLS, seed=seed + 50, among=_outside(lab, circuit))
        plan = {
            "prompts": args.prompts,
            **_control("cut", control, "random sets of the same make-up outside, cut", lab),
        }
        return Design("Is it the same on fresh prompts?", "effect", tuple(items), plan)

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """All of it on the fresh prompts; refused where the subject does not do the task on them."""
        runs = lab.fresh(int(design.plan["prompts"]))
        scores = baseline(lab.subject, runs.task, metric_name=lab.metric, seed=lab.seed)
        tables = {
            "pairs": len(runs.task),
            "accuracy": scores.accuracy,
            lab.metric: {"clean": scores.clean.value, "corrupted": scores.corrupted.value},
        }
        return measured(lab, runs, design, headline=0, tables=tables)


def _control(
    way: Literal["cut", "keep"], control: Sequence[Sequence[Node]], what: str, lab: BehaviourLab
) -> dict[str, Any]:
    """A design's plan for sets that should do nothing."""
    about = [dict(set_item(way, nodes, lab=lab).about) for nodes in control]
    return {"control": about, "what": f"{len(control)} {what}"}


def _outside(lab: BehaviourLab, circuit: Sequence[Node]) -> list[Node]:
    inside = {*circuit}
    return [node for node in lab.nodes if node not in inside]


def _parts(circuit: Sequence[Node], seed: int) -> list[Sequence[Node]]:
    """The circuit less one node in turn, then less several random ones."""
    rng = random.Random(f"parts:{seed}")
    parts: list[Sequence[Node]] = [
        [other for other in circuit if other is not node] for node in rng.sample(circuit, len(circuit))
    ]
    return [*parts, *(rng.sample(circuit, rng.randint(1, len(circuit))) for _ in range(_MANY))]


def _sets_outside(lab: BehaviourLab, circuit: Sequence[Node], seed: int) -> list[Sequence[Node]]:
    """All nodes outside, and random halves of them."""
    others, rng = _outside(lab, circuit), random.Random(f"halves:{seed}")
    if not others:
        raise NeuronautError("the circuit has all nodes, so there is nothing outside it to cut")
    halves = ([node for node in others if rng.random() < 0.5] for _ in range(_MANY))
    return [others, *(half for half in halves if half)]


def _joint_sets(lab: BehaviourLab, circuit: Sequence[Node], seed: int) -> list[Sequence[Node]]:
    """What the leader says of nodes together, then pairs of its circuit, then such pairs with nodes outside."""
    first, others, rng = leader(lab), _outside(lab, circuit), random.Random(f"pairs:{seed}")
    together: list[Sequence[Node]] = [] if first is None else [tuple(n) for n in lab.shares(first) if len(n) > 1]
    pairs = list(combinations(circuit, 2))
    pairs = rng.sample(pairs, min(len(pairs), _MANY))
    beside = [[*pair, *(node for node in others if rng.random() < 0.5)] for pair in pairs]
    return [*together, *pairs, *beside]


class NodeArgs(StrictModel, frozen=True):
    """Which nodes."""

    nodes: tuple[str, ...] = Field((), description="Nodes by name, such as head.1:0; none: chosen as below.")
    choose: Choose = Field(
        "differ", description="top: by attribution; random; differ: those of which the rivals expect different values."
    )
    expect: Expect = Field(
        "any",
        description="silence: nodes of which the leader expects nothing, and some others; activity: of which it does.",
    )
    count: int = Field(12, ge=1, le=64, description="Nodes at most.")
    draw: int = Field(0, ge=0, le=99, description="Another number draws other random nodes.")


def node_design(args: NodeArgs, lab: BehaviourLab, *, question: str, item: Callable[[Node], Item]) -> Design:
    """Designs an experiment on the nodes that the arguments ask for, with random ones as a control."""
    seed = lab.seed * 100 + args.draw
    if args.nodes:
        items = [item(node) for node in lab.parse_nodes(args.nodes)]
    else:
        every = [item(node) for node in lab.nodes]
        items = choose(lab, every, by=args.choose, expect=args.expect, count=args.count, seed=seed)
    others = lab.parse_nodes(random_nodes(lab, _nodes(lab, items), seed=seed))
    control = [dict(item(node).about) for node in others]
    plan = {"control": control, "what": f"{len(control)} random nodes that no rival names"}
    return Design(question, "effect", tuple(items), plan)


def _nodes(lab: BehaviourLab, items: Sequence[Item]) -> tuple[Node, ...]:
    return lab.parse_nodes([text for item in items for text in (item.about.get("restore") or [item.about["node"]])])


class CutNodes(BehaviourTool[NodeArgs]):
    """Cuts each of a set of nodes by itself: its value on the corrupted prompt is put into the clean run. An item's
    value is the share of the behaviour that goes; the headline is the largest. A node that another backs up is
    silent here (see cut_together).
    """

    name = "cut_nodes"

    def design(self, args: NodeArgs, lab: BehaviourLab) -> Design:
        """Choose the nodes."""
        return node_design(args, lab, question="Which nodes does the behaviour need?", item=node_item)

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Cut them one by one, on `select`."""
        return measured(lab, lab.runs("select"), design)


class RestoreNodes(BehaviourTool[NodeArgs]):
    """Restores each of a set of nodes by itself: its value on the clean prompt is put into the corrupted run. An
    item's value is the share of the behaviour that comes back; the first is that of all the leader's nodes. The
    headline is the largest. A node that works only together with another is silent here.
    """

    name = "restore_nodes"

    def design(self, args: NodeArgs, lab: BehaviourLab) -> Design:
        """Choose the nodes."""
        design = node_design(args, lab, question="Which nodes are enough by themselves?", item=restore_item)
        if leader(lab) is None:
            return design
        whole = set_item("restore", circuit_of(lab, ()), lab=lab)
        return replace(design, items=(whole, *(item for item in design.items if item.about != whole.about)))

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Restore them one by one, on `select`."""
        return measured(lab, lab.runs("select"), design)
