"""Attention of the heads that a feature's activation comes through.

A look is a head's attention from an active place, by how many tokens back: 0 is the place itself; BOS, which is at
another distance from every place, is a column of its own at the end.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ....causal.circuits.nodes import Node
from ....causal.heads import head_scores, repeated_tokens
from ....causal.measures import mean
from ....explainers.battery.places import Place
from ....subject.attention import patterns
from ....subject.errors import NeuronautError
from ...loop.experiments import Control, Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import ActiveArgs
from .effects import among, build_result
from .inputs import batch_of, upstream_nodes
from .paths import first_order_shares
from .upstream import design_pairs, pairing_from_plan

OFFSETS = 3
"""Offsets of a head that are listed."""


class AttentionArgs(ActiveArgs, frozen=True):
    """Arguments of `attention`."""

    heads: int = Field(3, ge=1, le=12, description="how many heads to look at, those of the highest shares first")


class Attention(InsideTool[AttentionArgs]):
    """Shows where the heads that the feature's activation comes through look from its strongest places: the offsets
    that get the most weight and the tokens there, and what kind of head each is (previous token, duplicate, induction,
    first). The headline is the weight of the first head on the offset that it mostly looks at; the other heads of its
    layer, on the same offset, are the control.
    """

    name = "attention"
    survey = True

    def design(self, args: AttentionArgs, lab: FeatureLab) -> Design:
        """Chooses active places with silent runs; refuses a site that no head comes before."""
        _heads(lab)  # Where there is none is an error that says so.
        return design_pairs(lab, args, f"Where do the heads that {lab.target} reads look?", each=1, heads=args.heads)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Reads the patterns of the heads with the highest shares to first order."""
        pairing, heads = pairing_from_plan(design), _heads(lab)
        ranked = first_order_shares(lab, pairing, heads).mean(1)
        order = ranked.abs().argsort(descending=True, stable=True)[: design.plan["heads"]].tolist()
        chosen = {heads[i]: float(ranked[i]) for i in order}
        layers = sorted({_layer(node) for node in chosen})
        looks = _looks(lab, pairing.active, layers)
        first = next(iter(chosen))
        back = int(looks[str(first)].mean(0).argmax())
        headline = mean(looks[str(first)][:, back], seed=lab.seed)
        control, rank = _other_heads(lab, looks, first, back, headline.value)
        kinds = _kinds(lab, layers)
        table = [
            {
                "head": str(node),
                "predicted_share": round(share, 4),
                "kinds": kinds[str(node)],
                "looks": _list_offsets(lab, looks[str(node)], pairing.active),
            }
            for node, share in chosen.items()
        ]
        return build_result(
            headline,
            units="share of attention",
            normalised_by="all of the attention that a head has at a place",
            control=control,
            found={"heads": table, **rank},
        )


def _heads(lab: FeatureLab) -> list[Node]:
    heads = [node for node in upstream_nodes(lab.subject, lab.source.id.site) if node.unit is not None]
    if not heads:
        raise NeuronautError(f"no head of {lab.subject.name} comes before {lab.source.id.site}; look at a later site")
    return heads


def _layer(node: Node) -> int:
    return int(node.site.partition(".")[2])


def _looks(lab: FeatureLab, active: Sequence[Place], layers: Sequence[int]) -> dict[str, Tensor]:
    """Every head's looks in these layers, (place, token back), float64; the last column is BOS, or always 0."""
    batch, opening = batch_of(lab, active), int(lab.subject.bos is not None)
    by_head: dict[str, Tensor] = {}
    for layer, pattern in patterns(lab.subject, batch.tokens, layers).items():
        weights = pattern[torch.arange(len(batch)), :, batch.last].double().cpu()
        looks = torch.zeros(*weights.shape[:2], lab.width + 1, dtype=torch.float64)
        for row, place in enumerate(active):
            looks[row, :, : place.pivot + 1] = weights[row, :, opening : opening + place.pivot + 1].flip(-1)
            looks[row, :, -1] = weights[row, :, 0] * opening
        by_head |= {f"head.{layer}:{head}": looks[:, head] for head in range(looks.shape[1])}
    return by_head


def _other_heads(
    lab: FeatureLab, looks: dict[str, Tensor], first: Node, back: int, real: float
) -> tuple[Control | None, dict[str, float]]:
    """What the other heads of the first one's layer give to the same offset."""
    names = [f"{first.site}:{head}" for head in range(lab.subject.n_heads) if head != first.unit]
    others = [float(looks[name][:, back].mean()) for name in names]
    return among(real, others, f"{len(others)} other heads of {first.site}") if others else (None, {})


def _kinds(lab: FeatureLab, layers: Sequence[int]) -> dict[str, dict[str, float]]:
    """Head scores on repeated random tokens, by head and kind."""
    kinds: dict[str, dict[str, float]] = {}
    for score in head_scores(lab.subject, repeated_tokens(lab.subject, seed=lab.seed), layers=layers):
        kinds.setdefault(score.unit, {})[score.kind] = round(score.score.value, 4)
    return kinds


def _list_offsets(lab: FeatureLab, look: Tensor, active: Sequence[Place]) -> list[dict[str, Any]]:
    """The offsets of the most weight with the tokens that stand there."""
    means = look.mean(0)
    rows: list[dict[str, Any]] = []
    for back in means.argsort(descending=True, stable=True)[:OFFSETS].tolist():
        at = Counter(lab.vocabulary[place.ids[place.pivot - back]] for place in active if back <= place.pivot)
        offset = "start" if back == lab.width else -back
        rows.append({"offset": offset, "weight": round(float(means[back]), 4), "tokens": dict(at.most_common(4))})
    return rows
