"""Nodes: the parts of a subject that a circuit is made of, written like edits without their operation.

    head.1:3    an attention head            mlp.2:17               a neuron
    mlp_out.2   a whole MLP                  resid_post.2@sae:40    a feature of a dictionary

With `@POSITIONS`, as in edits, a node is that part at these positions only; by default at all but BOS. The nodes among
which a circuit is looked for must not overlap. What none of them covers (the embeddings, a BOS, positions that no node
has) is never cut: it is the circuit's input.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ..edits import Edit, Operation, ranges
from ..prompts import Batch, where

_TEXT = re.compile(r"(?P<what>[a-z_]+(?:\.\d+)?(?:@[^:@\s]+(?=:))?(?::[\d,-]+)?)(?:@(?P<positions>.+))?")


@dataclass(frozen=True, slots=True)
class Node:
    """One part of the subject."""

    site: str
    unit: int | None = None
    """None: the whole vector."""
    dictionary: str | None = None
    positions: str = "all"

    @property
    def kind(self) -> str:
        """What it has in common with nodes that could stand in its place, such as `head`."""
        kind = self.site.partition(".")[0]
        named = f"{self.site}@{self.dictionary}" if self.dictionary else kind
        return named if self.positions == "all" else f"{named}@{self.positions}"

    def __str__(self) -> str:
        dictionary = f"@{self.dictionary}" if self.dictionary else ""
        unit = "" if self.unit is None else f":{self.unit}"
        return f"{self.site}{dictionary}{unit}" + ("" if self.positions == "all" else f"@{self.positions}")


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Read `head.1:3`, or several nodes of a site such as `head.1:0-3`."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise NeuronautError(f"{text!r} is no node of a circuit; some that are: head.1:3, mlp_out.2, mlp.2:17@last")
    edit = Edit.parse(f"{match['what']}=patch" + (f"@{match['positions']}" if match["positions"] else ""))
    return tuple(Node(edit.site, unit, edit.dictionary, edit.positions) for unit in edit.units or (None,))


def read_nodes(subject: Subject, texts: Iterable[str]) -> tuple[Node, ...]:
    """Read kinds such as `head`, of which all nodes are meant, and nodes as `parse_nodes` does; each of them once."""
    nodes = [node for text in texts for node in (nodes_of(subject, [text]) if text in KINDS else parse_nodes(text))]
    return tuple(dict.fromkeys(nodes))


def nodes_of(
    subject: Subject, kinds: Sequence[str] = ("head", "mlp"), *, positions: Sequence[str] = ("all",)
) -> tuple[Node, ...]:
    """All heads, MLPs or neurons of the subject, in forward order, once for each of the position rules."""
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise NeuronautError(f"no nodes of kind {', '.join(wrong)}; there are {', '.join(KINDS)}")
    nodes = [node for layer in range(subject.n_layers) for kind in kinds for node in KINDS[kind](subject, layer)]
    return tuple(Node(node.site, node.unit, None, rule) for node in nodes for rule in positions)


KINDS: Mapping[str, Callable[[Subject, int], Iterable[Node]]] = {
    "head": lambda subject, layer: (Node(f"head.{layer}", head) for head in range(subject.n_heads)),
    "mlp": lambda _, layer: [Node(f"mlp_out.{layer}")],
    "neuron": lambda subject, layer: (Node(f"mlp.{layer}", unit) for unit in range(subject.width(f"mlp.{layer}"))),
}
"""By name, a layer's nodes."""

_WHOLE = {"head": "attn_out", "mlp": "mlp_out"}
"""Where the sum of a site's units is a site of its own."""


def check_nodes(subject: Subject, batch: Batch, nodes: Sequence[Node]) -> None:
    """Raise NeuronautError where there are no nodes, or two that share a part at a position."""
    if not nodes:
        raise NeuronautError("there are no nodes to look for a circuit among; give some, such as head.1:3 or mlp_out.2")
    if repeated := [node for node, count in Counter(nodes).items() if count > 1]:
        raise NeuronautError(f"node {repeated[0]} is given twice; give each once")
    rules = {rule: where(subject, batch, rule) for rule in {node.positions for node in nodes}}
    groups = [list(group) for _, group in groupby(sorted(nodes, key=_place), _place)]
    for some, others in [(group, group) for group in groups] + list(combinations(groups, 2)):
        meet = bool((rules[some[0].positions] & rules[others[0].positions]).any())
        if meet and (clash := _find_clash(some, others)):
            raise NeuronautError(f"nodes {clash[0]} and {clash[1]} overlap; leave one of the two out")


def _place(node: Node) -> tuple[str, str, str]:
    return node.site, node.positions, node.dictionary or ""


def _find_clash(some: Sequence[Node], others: Sequence[Node]) -> tuple[Node, Node] | None:
    """Two different nodes of two groups (each of one place) that have a part in common, at equal positions."""
    (kind, _, layer), (other, _, its_layer) = some[0].site.partition("."), others[0].site.partition(".")
    if some[0].site != others[0].site:
        part = layer == its_layer and (_WHOLE.get(kind) == other or _WHOLE.get(other) == kind)
        return (some[0], others[0]) if part else None
    if some[0].dictionary != others[0].dictionary:
        return some[0], others[0]
    by_unit = {node.unit: node for node in others}
    for node in some:
        twins = (
            by_unit.values() if node.unit is None else [by_unit[unit] for unit in (node.unit, None) if unit in by_unit]
        )
        if other := next((twin for twin in twins if twin is not node), None):
            return node, other
    return None


def edits_of(nodes: Iterable[Node], operation: Operation) -> tuple[Edit, ...]:
    """One edit for each site, dictionary and position rule, of all its nodes at once."""
    places: dict[tuple[str, str, str], list[int | None]] = {}
    for node in nodes:
        places.setdefault(_place(node), []).append(node.unit)
    return tuple(
        Edit(site=site, dictionary=dictionary or None, units=_join_units(units), positions=rule, operation=operation)
        for (site, rule, dictionary), units in sorted(places.items())
    )


def _join_units(units: list[int | None]) -> tuple[int, ...] | None:
    numbers = sorted(unit for unit in units if unit is not None)
    return tuple(numbers) if len(numbers) == len(units) else None


def join_nodes(nodes: Iterable[Node]) -> str:
    """Nodes in short: `head.1:0,3 mlp_out.2`."""
    texts: list[str] = []
    for edit in edits_of(nodes, "patch"):
        site = f"{edit.site}@{edit.dictionary}" if edit.dictionary else edit.site
        units = "" if edit.units is None else f":{ranges(edit.units)}"
        texts.append(f"{site}{units}" + ("" if edit.positions == "all" else f"@{edit.positions}"))
    return " ".join(texts) or "nothing"
