"""What a feature's activation comes from: the components before it and the tokens of the window."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ...causal.measures import mean
from ...causal.saliency import Activation, occlusion
from ..investigation.experiments import Design, Measured
from ..investigation.lab import FeatureLab
from .causal_arguments import ActiveArgs
from .causal_effects import among
from .causal_inputs import batch_of, from_json, to_json, upstream_nodes
from .causal_paths import Cuts, Pairing, edits_each, pair, predicted
from .places import Place, excerpt, places

SHAMS = 8
TOKENS = 6
"""Tokens of a window that are listed."""


class UpstreamArgs(ActiveArgs, frozen=True):
    """Arguments of `upstream`."""

    top: int = Field(6, ge=1, le=24, description="components that are cut exactly, the highest predicted shares first")
    each: int = Field(2, ge=1, le=8, description="silent windows for every active place")


class Upstream:
    """Finds which heads and MLPs the feature's activation comes through at its strongest examples, and which tokens:
    shares of all components by gradients, the highest of them checked by cutting, and the share of the activation that
    goes as each token is blotted out. The headline is the highest checked share; random changes of the
    same size there are the control. Name what it finds in `reads` of a hypothesis, then predict `cut_upstream`."""

    name: ClassVar[str] = "upstream"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = True
    args: type[UpstreamArgs] = UpstreamArgs

    def design(self, args: UpstreamArgs, lab: FeatureLab) -> Design:
        upstream_nodes(lab.subject, lab.source.id.site)  # Where nothing comes before is an error that says so.
        return paired(lab, args, f"What does the activation of {lab.target} come from?", top=args.top, each=args.each)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        pairing, nodes = pairing_of(design), upstream_nodes(lab.subject, lab.source.id.site)
        first_order = predicted(lab, pairing, nodes).mean(1)
        order = first_order.abs().argsort(descending=True, stable=True)[: design.plan["top"]].tolist()
        edits = edits_each([nodes[i] for i in order], "patch")
        cuts = Cuts.of(lab, pairing, edits)
        exact = cuts.shares(edits)
        best = int(exact.mean(1).argmax())
        headline = mean(exact[best], seed=lab.seed)
        what = f"{SHAMS} random changes of the same norm at {nodes[order[best]]}"
        control, rank = among(headline.value, cuts.shams(edits[best], count=SHAMS).mean(1).tolist(), what)
        components = [
            {"node": str(nodes[i]), "predicted": round(float(first_order[i]), 4), "share": round(float(row.mean()), 4)}
            for i, row in zip(order, exact, strict=True)
        ]  # fmt: skip
        return Measured(
            (), headline.value, headline.interval and headline.interval.low,
            headline.interval and headline.interval.high, headline.n, "share of the activation",
            "its activation at each place", control,
            {"components": sorted(components, key=lambda one: -one["share"]), "of": len(nodes),
             "tokens": [_tokens(lab, place) for place in pairing.active], **rank},
        )  # fmt: skip


def paired(lab: FeatureLab, args: ActiveArgs, question: str, *, each: int, **more: Any) -> Design:
    """The design of a survey of active places with silent runs."""
    active = places(lab, "active", args.count, windows=args.windows, seed=args.seed)
    pairing = pair(lab, active, each=each, seed=args.seed)
    silent = [to_json(runs) for runs in pairing.silent]
    return Design(question, "effect", (), {"active": to_json(active), "silent": silent, **more})


def pairing_of(design: Design) -> Pairing:
    silent = tuple(tuple(from_json(runs)) for runs in design.plan["silent"])
    return Pairing(tuple(from_json(design.plan["active"])), silent)


def _tokens(lab: FeatureLab, place: Place) -> dict[str, Any]:
    """What share of the activation goes as each token before the place gives way to the mean of all tokens."""
    (row,) = batch_of(lab, [place]).ids()
    found = occlusion(lab.subject, row, Activation(lab.source, lab.feature), baseline="mean")
    worth = torch.tensor(found.values) / found.metric
    order = worth.abs().argsort(descending=True, stable=True)[:TOKENS].tolist()
    shown = [
        {"offset": at - len(row) + 1, "token": lab.vocabulary[row[at]], "share": round(float(worth[at]), 4)}
        for at in order
    ]
    return {"place": excerpt(lab, place.ids, place.pivot), "tokens": shown}
