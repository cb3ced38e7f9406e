"""Experiments on behaviours, node by node: each of a set of nodes is cut, or restored, by itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...causal.nodes import Node
from ..investigation.behaviour import BehaviourLab
from ..investigation.experiments import Design, Item, Measured
from .circuit_common import (
    Choose,
    Expect,
    choose,
    circuit_of,
    leader,
    measured,
    node_item,
    random_nodes,
    restore_item,
    set_item,
)


class NodeArgs(BaseModel, frozen=True):
    """Which nodes."""

    model_config = ConfigDict(extra="forbid")

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
    """The nodes that the arguments ask for, and random ones as a control."""
    seed = lab.seed * 100 + args.draw
    if args.nodes:
        items = [item(node) for node in lab.named(args.nodes)]
    else:
        every = [item(node) for node in lab.nodes]
        items = choose(lab, every, by=args.choose, expect=args.expect, count=args.count, seed=seed)
    others = lab.named(random_nodes(lab, _nodes(lab, items), seed=seed))
    control = [dict(item(node).about) for node in others]
    plan = {"control": control, "what": f"{len(control)} random nodes that no rival names"}
    return Design(question, "effect", tuple(items), plan)


def _nodes(lab: BehaviourLab, items: Sequence[Item]) -> tuple[Node, ...]:
    return lab.named([text for item in items for text in (item.about.get("restore") or [item.about["node"]])])


class CutNodes:
    """Cuts each of a set of nodes by itself: its value on the corrupted prompt is put into the clean run. An item's
    value is the share of the behaviour that goes; the headline is the largest. A node that another backs up is
    silent here (see cut_together)."""

    name: ClassVar[str] = "cut_nodes"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = False
    args: type[NodeArgs] = NodeArgs

    def design(self, args: NodeArgs, lab: BehaviourLab) -> Design:
        """Choose the nodes."""
        return node_design(args, lab, question="Which nodes does the behaviour need?", item=node_item)

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Cut them one by one, on `select`."""
        return measured(lab, lab.runs("select"), design)


class RestoreNodes:
    """Restores each of a set of nodes by itself: its value on the clean prompt is put into the corrupted run. An
    item's value is the share of the behaviour that comes back; the first is that of all the leader's nodes. The
    headline is the largest. A node that works only together with another is silent here."""

    name: ClassVar[str] = "restore_nodes"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = False
    args: type[NodeArgs] = NodeArgs

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
