"""Surveys of a behaviour, on the pairs that hypotheses may come from: what nodes are worth, and a circuit."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...causal.circuits import CircuitSettings, find_circuit
from ..investigation.behaviour import JOIN, BehaviourLab
from ..investigation.experiments import Design, Measured
from ..investigation.levels import EDGES

_TOP = 40


class _Args(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid")


class AttributeArgs(_Args, frozen=True):
    """How many."""

    count: int = Field(_TOP, ge=1, le=200, description="Nodes to show, the largest first.")


class AttributeNodes:
    """What every node is worth to first order (attribution patching, a few passes for all nodes): the share of the
    behaviour that cutting it would cost (noise) and that restoring it would bring back (denoise), and how far this
    agrees with patching. Cheap, and only a hint: a node at a bend of the model may be misjudged."""

    name: ClassVar[str] = "attribute_nodes"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = True
    args: type[AttributeArgs] = AttributeArgs

    def design(self, args: AttributeArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all nodes."""
        return Design(f"What are the {len(lab.nodes)} nodes worth?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The nodes with the largest attributions."""
        both = {
            direction: [cell.score / one.difference for cell in one.nodes] for direction, one in lab.attribution.items()
        }
        order = sorted(lab.worth.items(), key=lambda pair: -abs(pair[1]))[: design.plan["count"]]
        places = {node: at for at, node in enumerate(lab.nodes)}
        table = [
            {"node": str(node), **{direction: round(values[places[node]], 4) for direction, values in both.items()}}
            for node, _ in order
        ]
        return _survey(
            lab,
            {
                "nodes": table,
                "rank_agreement": {way: one.agreement.spearman for way, one in lab.attribution.items()},
                "doubts": list(dict.fromkeys(doubt for one in lab.attribution.values() for doubt in one.doubts)),
            },
        )


class FindArgs(_Args, frozen=True):
    """How faithful."""

    threshold: float = Field(0.9, gt=0, lt=1, description="Faithfulness that the pruning keeps to.")


class FindCircuit:
    """Prunes all nodes down to a few that do the task alone (as faithful as `threshold`), and names their backups:
    a proposal of nodes, each with the share of the behaviour that goes when it alone is cut, on the pairs it was
    found on; `proposal` is in the form of a hypothesis's `nodes`."""

    name: ClassVar[str] = "find_circuit"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = True
    args: type[FindArgs] = FindArgs

    def design(self, args: FindArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all nodes."""
        question = f"Which few of the {len(lab.nodes)} nodes do the task alone?"
        return Design(question, "effect", (), {"threshold": args.threshold})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The circuit, its nodes' shares and backups."""
        settings = CircuitSettings(
            threshold=design.plan["threshold"], metric=lab.metric, subsets=2, controls=20, seed=lab.seed
        )
        report = find_circuit(
            lab.subject, lab.task, nodes=lab.nodes, settings=settings, sources=dict(lab.sources) or None
        )
        backups = [[str(node) for node in (one.node, *one.nodes)] for one in report.backups]
        control = report.evaluation.control
        return _survey(
            lab,
            {
                "circuit": [str(node) for node in report.circuit],
                "backups": backups,
                "proposal": _proposal(lab, [str(node) for node in report.circuit], backups),
                "faithfulness": report.evaluation.faithfulness.recovered,
                "without": report.evaluation.ablated.recovered,
                "percentile": None if control is None else control.percentile,
                "threshold": settings.threshold,
                "forwards": report.passes.total,
            },
        )


def _proposal(lab: BehaviourLab, circuit: list[str], backups: list[list[str]]) -> dict[str, float]:
    """Shares of the circuit's nodes, and of nodes with their backups, where these together cost more than singly."""
    singles = list(dict.fromkeys([*circuit, *(node for one in backups for node in one)]))
    alone = _shares(lab, [[node] for node in singles])
    cost = dict(zip(singles, alone, strict=True))
    found = {node: round(cost[node], 3) for node in circuit}
    for one, share in zip(backups, _shares(lab, backups), strict=True):
        beyond = share - sum(cost[node] for node in one)
        if abs(beyond) >= EDGES[1]:
            found |= {node: round(cost[node], 3) for node in one} | {JOIN.join(one): round(beyond, 3)}
    return found


def _shares(lab: BehaviourLab, sets: list[list[str]]) -> list[float]:
    cut = [frozenset(lab.named(one)) for one in sets]
    return [1 - kept for kept in lab.runs("explore").without(cut)] if cut else []


def _survey(lab: BehaviourLab, found: dict[str, Any]) -> Measured:
    return Measured(
        values=(), effect=None, low=None, high=None, n=len(lab.task), units="share of the behaviour",
        normalised_by=lab.normalised_by, found=found,
    )  # fmt: skip
