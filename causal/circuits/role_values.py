"""Roles of a circuit's nodes as data and as text: each with its pattern, its effect, and the algorithm in words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..measures import Interval
from .landmarks import EdgeName
from .nodes import Node, join_nodes
from .plain import to_plain

Role = Literal[
    "enriching",
    "previous-token",
    "duplicate-token",
    "induction",
    "carrier",
    "inhibition",
    "position",
    "mover",
    "writing against",
    "writer",
]
Status = Literal["proven", "pattern only", "effect only"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that has to reach a bar."""

    what: str
    value: float
    """As the role predicts it: positive."""
    interval: Interval | None
    n: int
    """Pairs."""
    bar: float
    """The stated least, or what other nodes reach, whichever is higher."""
    others: int = 0
    """Other nodes at which an effect was measured too; their highest is part of the bar."""

    @property
    def holds(self) -> bool:
        """Whether the value reaches the bar, and its interval lies above zero."""
        return self.value >= self.bar and self.interval is not None and self.interval.low > 0

    def __str__(self) -> str:
        spread = "" if self.interval is None else f" [{self.interval.low:.2f}, {self.interval.high:.2f}]"
        return f"{self.what} {self.value:.2f}{spread}{'' if self.holds else ' FAILS'} (bar {self.bar:.2f})"


@dataclass(frozen=True, slots=True)
class Claim:
    """A role that a node may have."""

    node: Node
    role: Role
    word: EdgeName | None
    """What it attends to from the end; None for MLPs and roles that say it themselves."""
    pattern: tuple[Measure, ...]
    """All have to hold."""
    effect: Measure | None
    """Of the intervention that the role predicts."""
    reason: str | None = None
    """Why there is no effect to measure."""

    @property
    def status(self) -> Status | None:
        """Proven by both, or by which alone; None: by neither."""
        seen = all(measure.holds for measure in self.pattern)
        acts = self.effect is not None and self.effect.holds
        if seen:
            return "proven" if acts else "pattern only"
        return "effect only" if acts else None


@dataclass(frozen=True, slots=True)
class Roles:
    """What the nodes of a circuit do."""

    nodes: tuple[Node, ...]
    claims: tuple[Claim, ...]
    """Those of which a proof holds, in the order in which information flows."""
    pairs: int
    places: str
    """The first pair's landmarks, as token and position."""
    absent: Mapping[Role, str]
    """Roles that the task has no place for, and why."""
    forwards: int
    """Forward passes that it took."""

    def proven(self, node: Node) -> tuple[Claim, ...]:
        """A node's proven roles."""
        return tuple(claim for claim in self.claims if claim.node == node and claim.status == "proven")

    def shown(self, node: Node) -> tuple[Claim, ...]:
        """A node's proven roles, or the halves of one where none is proven."""
        return self.proven(node) or tuple(claim for claim in self.claims if claim.node == node)

    def through(self, claim: Claim) -> tuple[Node, ...]:
        """The nodes by way of which a proven role was shown to act, all together; none: on the answer itself."""
        if claim.status != "proven" or claim.role not in _READERS:
            return ()
        reader = _READERS[claim.role]
        proven = (other for other in self.claims if other.status == "proven")
        return tuple(dict.fromkeys(other.node for other in proven if reader in (other.role, other.word)))

    @property
    def algorithm(self) -> tuple[str, ...]:
        """What the proven roles do, a sentence each, in the order in which information flows."""
        groups: dict[tuple[Role, EdgeName | None], list[Node]] = {}
        for claim in self.claims:
            if claim.status == "proven":
                groups.setdefault((claim.role, claim.word), []).append(claim.node)
        told = [_SENTENCES[key].format(**_count(nodes)) for key, nodes in groups.items()]
        if rest := [node for node in self.nodes if not self.proven(node)]:
            told.append(f"No role is proven for {join_nodes(rest)}.")
        return tuple(told)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and objects, with each claim's status, and the algorithm."""
        data = to_plain(self)
        for claim, written in zip(self.claims, data["claims"], strict=True):
            written |= {"status": claim.status, "through": [str(node) for node in self.through(claim)]}
        return data | {"algorithm": list(self.algorithm)}

    def table(self) -> str:
        """Role by role with both proofs, then the algorithm."""
        return "\n".join([f"roles, on {self.pairs} pairs ({self.places})", *self._rows(), "algorithm", *self._told()])

    def _rows(self) -> list[str]:
        rows = [_row(claim) for node in self.nodes for claim in self.shown(node)]
        rows += [[str(node), "no role found", "", ""] for node in self.nodes if not self.shown(node)]
        widths = [max((len(row[at]) for row in rows), default=0) for at in range(3)]
        return [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in rows
        ]

    def _told(self) -> list[str]:
        return [f"{number}. {sentence}" for number, sentence in enumerate(self.algorithm, start=1)]


def _row(claim: Claim) -> list[str]:
    effect = str(claim.effect) if claim.effect is not None else f"no effect measured: {claim.reason}"
    return [str(claim.node), claim.role, claim.status or "", "; ".join([*map(str, claim.pattern), effect])]


def _count(nodes: Sequence[Node]) -> dict[str, str]:
    """A subject for a sentence, and its verb's ending."""
    one = len(nodes) == 1
    endings = {"s": "s", "es": "es", "ies": "ies"} if one else {"s": "", "es": "", "ies": "y"}
    return {"nodes": join_nodes(nodes), **endings}


_SENTENCES: dict[tuple[Role, EdgeName | None], str] = {
    ("enriching", None): "At the word that decides, {nodes} enrich{es} it for what reads it later (enriching).",
    ("previous-token", None): "At the token after the first copy, {nodes} read{s} the one before it (previous-token).",
    ("duplicate-token", None): "At the repeated word, {nodes} attend{s} to its earlier copy (duplicate-token).",
    ("induction", None): "At the repeated word, {nodes} attend{s} to what followed its earlier copy (induction).",
    ("carrier", "source"): "From the end, {nodes} read{s} the word that decides and pass{es} it on (carrier).",
    (
        "inhibition",
        None,
    ): "From the end, {nodes} read{s} the repeated word and turn{s} the movers away from its first copy (inhibition).",
    ("position", None): "What {nodes} carr{ies} is the place of the first copy rather than the word (position).",
    ("mover", "answer"): "From the end, {nodes} read{s} the answer's word and write{s} it (mover).",
    ("mover", "wrong"): "From the end, {nodes} read{s} the wrong word and write{s} it (mover).",
    ("mover", "source"): "From the end, {nodes} read{s} the word that decides and write{s} the answer (mover).",
    ("writing against", "answer"): "From the end, {nodes} read{s} the answer's word and write{s} against it "
    "(writing against).",
    ("writing against", "wrong"): "From the end, {nodes} read{s} the wrong word and write{s} against it "
    "(writing against).",
    (
        "writing against",
        "source",
    ): "From the end, {nodes} read{s} the word that decides and write{s} against the answer (writing against).",
    ("writer", "itself"): "At the end, {nodes} write{s} the answer out (writer).",
    ("writing against", "itself"): "At the end, {nodes} write{s} against the answer (writing against).",
}


_READERS: Mapping[Role, Role | EdgeName] = {
    "previous-token": "induction",
    "induction": "inhibition",
    "duplicate-token": "inhibition",
    "inhibition": "answer",
}
"""By a role, the role of the heads that it acts by way of, where there are any, or the word that these attend to."""


def flow(claims: Iterable[Claim], order: Sequence[Role]) -> tuple[Claim, ...]:
    """Claims by role in this order, and by layer."""
    return tuple(sorted(claims, key=lambda claim: (order.index(claim.role), int(claim.node.site.partition(".")[2]))))
