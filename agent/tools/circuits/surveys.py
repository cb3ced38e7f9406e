"""Surveys of a behaviour, on the pairs that hypotheses may come from.

They say what nodes are worth, prune them to a circuit, and show where heads look and which components write the answer.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ....causal.circuits.find import CircuitSettings, find_circuit
from ....causal.heads import head_scores, repeated_tokens
from ....causal.logit_attribution import logit_attribution
from ....subject.attention import patterns
from ....subject.errors import NeuronautError
from ...loop.behaviour_lab import JOIN, BehaviourLab
from ...loop.experiments import Design, Measured
from ...loop.hypotheses import StrictModel
from ...loop.levels import EDGES
from ..base import BehaviourTool
from .common import leader

_TOP = 40


class AttributeArgs(StrictModel, frozen=True):
    """How many."""

    count: int = Field(_TOP, ge=1, le=200, description="Nodes to show, the largest first.")


class AttributeNodes(BehaviourTool[AttributeArgs]):
    """What every node is worth to first order (attribution patching, a few passes for all nodes): the share of the
    behaviour that cutting it would cost (noise) and that restoring it would bring back (denoise), and how far this
    agrees with patching. Cheap, and only a hint: a node at a bend of the model may be misjudged.
    """

    name = "attribute_nodes"
    survey = True

    def design(self, args: AttributeArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all nodes."""
        return Design(f"What are the {len(lab.nodes)} nodes worth?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The nodes with the largest attributions."""
        attributions = {
            direction: [cell.score / attribution.difference for cell in attribution.nodes]
            for direction, attribution in lab.attribution.items()
        }
        order = sorted(lab.worth.items(), key=lambda pair: -abs(pair[1]))[: design.plan["count"]]
        places = {node: at for at, node in enumerate(lab.nodes)}
        table = [
            {
                "node": str(node),
                **{direction: round(values[places[node]], 4) for direction, values in attributions.items()},
            }
            for node, _ in order
        ]
        return _survey(
            lab,
            {
                "nodes": table,
                "rank_agreement": {way: attribution.agreement.spearman for way, attribution in lab.attribution.items()},
                "doubts": list(
                    dict.fromkeys(doubt for attribution in lab.attribution.values() for doubt in attribution.doubts)
                ),
            },
        )


class FindArgs(StrictModel, frozen=True):
    """How faithful."""

    threshold: float = Field(0.9, gt=0, lt=1, description="Faithfulness that the pruning keeps to.")


class FindCircuit(BehaviourTool[FindArgs]):
    """Prunes all nodes down to a few that do the task alone (as faithful as `threshold`), and names their backups:
    a proposal of nodes, each with the share of the behaviour that goes when it alone is cut, on the pairs it was
    found on; `proposal` is in the form of a hypothesis's `nodes`.
    """

    name = "find_circuit"
    survey = True

    def design(self, args: FindArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all nodes."""
        question = f"Which few of the {len(lab.nodes)} nodes do the task alone?"
        return Design(question, "effect", (), {"threshold": args.threshold})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The circuit, its nodes' shares and backups."""
        settings = CircuitSettings(
            threshold=design.plan["threshold"], metric=lab.metric, subsets=2, controls=20, seed=lab.seed, roles=False
        )
        report = find_circuit(
            lab.subject, lab.task, nodes=lab.nodes, settings=settings, sources=dict(lab.sources) or None
        )
        backups = [[str(node) for node in (backup.node, *backup.nodes)] for backup in report.backups]
        evaluation = report.evaluation
        assert evaluation is not None, "a whole search evaluates"
        return _survey(
            lab,
            {
                "circuit": [str(node) for node in report.circuit],
                "backups": backups,
                "proposal": _proposal(lab, [str(node) for node in report.circuit], backups),
                "faithfulness": evaluation.faithfulness.recovered,
                "without": evaluation.ablated.recovered,
                "percentile": None if evaluation.control is None else evaluation.control.percentile,
                "threshold": settings.threshold,
                "forwards": report.passes.total,
            },
        )


def _proposal(lab: BehaviourLab, circuit: list[str], backups: list[list[str]]) -> dict[str, float]:
    """Shares of the circuit's nodes, and of nodes with their backups, where these together cost more than singly."""
    singles = list(dict.fromkeys([*circuit, *(node for group in backups for node in group)]))
    alone = _shares(lab, [[node] for node in singles])
    cost = dict(zip(singles, alone, strict=True))
    proposal = {node: round(cost[node], 3) for node in circuit}
    for group, share in zip(backups, _shares(lab, backups), strict=True):
        beyond = share - sum(cost[node] for node in group)
        if abs(beyond) >= EDGES[1]:
            proposal |= {node: round(cost[node], 3) for node in group} | {JOIN.join(group): round(beyond, 3)}
    return proposal


def _shares(lab: BehaviourLab, sets: list[list[str]]) -> list[float]:
    cut = [frozenset(lab.parse_nodes(nodes)) for nodes in sets]
    return [1 - left for left in lab.runs("explore").without(cut)] if cut else []


def _survey(
    lab: BehaviourLab, tables: dict[str, Any], *, n: int | None = None, units: str = "share of the behaviour"
) -> Measured:
    """Tables without a headline; `n` is by default the number of pairs."""
    return Measured(
        values=(),
        effect=None,
        low=None,
        high=None,
        n=len(lab.task) if n is None else n,
        units=units,
        normalised_by=lab.normalised_by,
        found=tables,
    )


_SAMPLES, _KEYS = 2, 5


class CountArgs(StrictModel, frozen=True):
    """How many."""

    count: int = Field(8, ge=1, le=100, description="Entries to show, the largest first.")


class HeadPatterns(BehaviourTool[CountArgs]):
    """Where each head looks on random tokens that are repeated: at the token before (previous), at earlier copies of
    the current token (duplicate), at what followed them (induction), or at the first token. It gives each kind's
    heads with the largest share of attention, 0 to 1; where a head looks is not what it is for.
    """

    name = "head_patterns"
    survey = True

    def design(self, args: CountArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all heads."""
        return Design(f"Where do the heads of {lab.subject.name} look?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Head scores by kind."""
        batch = repeated_tokens(lab.subject, seed=lab.seed)
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for score in head_scores(lab.subject, batch, seed=lab.seed):
            by_kind.setdefault(score.kind, []).append({"head": score.unit, "share": round(score.score.value, 4)})
        tables = {kind: heads[: design.plan["count"]] for kind, heads in by_kind.items()}
        return _survey(lab, tables, n=len(batch), units="share of attention")


class AttentionArgs(StrictModel, frozen=True):
    """Which heads."""

    heads: tuple[str, ...] = Field(
        (), description="Heads such as head.1:0; none: those that the leader names, or of the largest attribution."
    )
    count: int = Field(6, ge=1, le=32, description="Heads at most.")


class AttentionTo(BehaviourTool[AttentionArgs]):
    """Where heads look from the last position of the task's clean prompts: mean share of attention on the first
    token, on the last one itself, on the one before it, and on the tokens that the corruption changes and those right
    after them; and for two prompts the tokens that get most.
    """

    name = "attention_to"
    survey = True

    def design(self, args: AttentionArgs, lab: BehaviourLab) -> Design:
        """The heads; refuses nodes that are none."""
        first, texts = leader(lab), args.heads
        if not texts:
            ranked = sorted(lab.nodes, key=lambda node: -abs(lab.worth[node])) if first is None else lab.circuit(first)
            texts = tuple(str(node) for node in ranked if node.kind == "head")[: args.count]
        heads = [node for node in lab.parse_nodes(texts) if node.kind == "head"]
        if not heads or len(heads) < len(texts):
            raise NeuronautError(f"{', '.join(texts) or 'nothing'} is no list of heads; name some, such as head.1:0")
        return Design("Where do these heads look?", "effect", (), {"heads": [str(head) for head in heads]})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Attention from the last position, on `explore`."""
        heads, clean = lab.parse_nodes(design.plan["heads"]), lab.task.pairs.clean
        by_layer = patterns(lab.subject, clean.tokens, {int(head.site.partition(".")[2]) for head in heads})
        rows = torch.arange(len(clean))
        tables: dict[str, Any] = {}
        for head in heads:
            pattern = by_layer[int(head.site.partition(".")[2])][:, head.unit or 0].float().cpu()
            tables[str(head)] = _looks(lab, pattern[rows, clean.last])
        return _survey(lab, tables, n=len(clean), units="share of attention")


def _looks(lab: BehaviourLab, weights: Tensor) -> dict[str, Any]:
    """From (row, key) weights of the last position's query."""
    clean, corrupted = lab.task.pairs.clean, lab.task.pairs.corrupted
    changed = (clean.tokens != corrupted.tokens) & clean.real
    after = changed.roll(1, dims=1) & clean.real & ~changed
    rows = torch.arange(len(clean))
    samples = []
    for row in range(min(_SAMPLES, len(clean))):
        top = weights[row].topk(min(_KEYS, int(clean.lengths[row])))
        tokens = lab.subject.decode_tokens(clean.tokens[row, top.indices].tolist())
        places = zip(top.indices.tolist(), tokens, top.values.tolist(), strict=True)
        samples.append([[place, token, round(weight, 3)] for place, token, weight in places])
    shares = {
        "first": weights[:, 0],
        "itself": weights[rows, clean.last],
        "before": weights[rows, (clean.last - 1).clamp_min(0)],
        "changed": (weights * changed).sum(1),
        "after changed": (weights * after).sum(1),
    }
    return {**{name: round(float(share.mean()), 4) for name, share in shares.items()}, "prompts": samples}


class DirectLogits(BehaviourTool[CountArgs]):
    """Which components write the answer: the metric's logit difference on the clean prompts taken apart into what
    each head and MLP adds to it directly, as a share of the whole. A component that works through others does not
    show.
    """

    name = "direct_logits"
    survey = True

    def design(self, args: CountArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all components."""
        return Design(f"What writes the answers of {lab.task.name}?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The components with the largest shares, on `explore`."""
        pairs, split = lab.task.pairs, [f"head.{layer}" for layer in range(lab.subject.n_layers)]
        parts = logit_attribution(lab.subject, pairs.clean, token=pairs.answers, against=pairs.wrong, split=split)
        whole = float(parts.total.mean())
        ranked = parts.ranked()[: design.plan["count"]]
        components = [{"component": name, "share": round(value / whole, 4)} for name, value in ranked]
        return _survey(
            lab, {"components": components, "logit_difference": whole}, n=len(pairs), units="share of the logits"
        )
