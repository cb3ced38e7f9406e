"""The order of an investigation as a LangGraph graph, and its state, which never grows.

    acquire -> baseline -> propose -> plan -> preregister -> execute -> judge -> plan ...
    propose -> preregister (surveys) ... judge -> propose
    plan -> challenge -> plan (as the challenger) ... judge -> close -> freeze
    close -> preregister (what code asks for) ... judge -> close
    freeze -> holdout -> controls -> report -> store

All that grows is in the journal; the state says where the investigation stands. A node may be run again after the
process was killed in it: what it does is keyed, so that nothing is done or paid twice. Checkpoints are written
before the next node begins (durability "sync").
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, get_args

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

Role = Literal["proposer", "challenger", "code"]
StopCode = Literal["refused", "budget", "rounds", "submitted", "conceded", "stood", "misses", "failures"]
"""refused: there is nothing to investigate; stood: the leader stood its challenge; misses: too many decisions in a row
were not carried out; failures: too many experiments in a row failed."""


class State(TypedDict):
    """Where an investigation stands: JSON-plain, of constant size."""

    investigation: str
    role: Role
    """Who decides: proposer, challenger, or code at the end."""
    step: int
    """Decisions taken so far."""
    round: int
    """Plans that were run so far."""
    turns: int
    """Decisions of this challenger so far."""
    challenges: int
    challenged: str | None
    """The leader that is challenged."""
    misses: int
    """Decisions in a row that were not accepted."""
    rejected: str | None
    """Why the last one was not."""
    next: str
    """The node that follows, where there is a choice."""
    stop: str | None
    """Why exploring ended."""
    stop_code: StopCode | None
    """The same for code; not there in what was written before there were codes."""


Node = Callable[[State], Mapping[str, Any]]
"""Returns what changes in the state."""

NodeName = Literal[
    "acquire",
    "baseline",
    "propose",
    "plan",
    "preregister",
    "execute",
    "judge",
    "challenge",
    "close",
    "freeze",
    "holdout",
    "controls",
    "report",
    "store",
]
ORDER: tuple[NodeName, ...] = get_args(NodeName)


class Nodes(Protocol):
    """The functions of all nodes."""

    def node(self, name: NodeName) -> Node:
        """The function of a node of `ORDER`."""
        ...


def first_state(investigation: str) -> State:
    """The state at the beginning."""
    return State(
        investigation=investigation,
        role="proposer",
        step=0,
        round=0,
        turns=0,
        challenges=0,
        challenged=None,
        misses=0,
        rejected=None,
        next="baseline",
        stop=None,
        stop_code=None,
    )


def stopped(code: StopCode, reason: str) -> dict[str, Any]:
    """The update that ends exploring."""
    return {"next": "close", "stop": reason, "stop_code": code}


def build(nodes: Nodes, *, checkpointer: BaseCheckpointSaver[Any]) -> "CompiledStateGraph[State]":
    """Compiles the graph."""
    graph = StateGraph(State)
    for name in ORDER:
        # LangGraph's own types ask for parameters that it does not need.
        node: Any = _checked(name, nodes.node(name))
        graph.add_node(name, node)
    for first, second in (
        (START, "acquire"),
        ("baseline", "propose"),
        ("preregister", "execute"),
        ("execute", "judge"),
        ("challenge", "plan"),
        ("freeze", "holdout"),
        ("holdout", "controls"),
        ("controls", "report"),
        ("report", "store"),
        ("store", END),
    ):
        graph.add_edge(first, second)
    for name, targets in (
        ("acquire", ("baseline", "report")),
        ("propose", ("propose", "preregister", "plan", "close")),
        ("plan", ("plan", "preregister", "challenge", "close")),
        ("judge", ("propose", "plan", "close")),
        ("close", ("preregister", "freeze")),
    ):
        graph.add_conditional_edges(name, lambda state: state["next"], list(targets))
    return graph.compile(checkpointer=checkpointer)


def _checked(name: str, node: Node) -> Node:
    """The node, with an error for updates of unknown keys, which LangGraph drops in silence."""
    known = State.__annotations__

    def run(state: State) -> Mapping[str, Any]:
        update = node(state)
        if unknown := set(update) - set(known):
            raise KeyError(f"{name} returned {sorted(unknown)}, which the state does not have")
        return update

    return run
