"""Sources of a feature's activation: the components before it, cut one at a time, and the tokens of the window."""

from typing import Any, Literal

import torch
from pydantic import Field

from ....causal.circuits.nodes import parse_nodes
from ....causal.measures import mean
from ....causal.saliency import Activation, occlusion
from ....explainers.battery.places import Place, excerpt
from ...loop.experiments import Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import ActiveArgs, find_places
from .ablate import REFERENCE
from .effects import among, asked_weights, build_result
from .inputs import batch_of, choose_nodes, from_json, reference_rows, to_json, upstream_nodes
from .paths import Cuts, Pairing, edits_each, first_order_shares, pair

RANDOM_CONTROLS = 8
TOKENS = 6
"""Tokens of a window that are listed."""


class UpstreamArgs(ActiveArgs, frozen=True):
    """Arguments of `upstream`."""

    top: int = Field(6, ge=1, le=24, description="components that are cut exactly, the highest predicted shares first")
    each: int = Field(2, ge=1, le=8, description="silent windows for every active place")


class Upstream(InsideTool[UpstreamArgs]):
    """Finds which heads and MLPs the activation comes through, and which tokens. At the strongest examples: shares of
    all components by gradients, the highest of them checked by cutting, and the share of the activation that goes as
    each token is blotted out. The headline is the highest checked share; random changes of the same size there are the
    control. Name what it finds in `reads` of a hypothesis, then predict `cut_upstream`.
    """

    name = "upstream"
    survey = True

    def design(self, args: UpstreamArgs, lab: FeatureLab) -> Design:
        """Chooses active places with silent runs; refuses a site that nothing comes before."""
        upstream_nodes(lab.subject, lab.source.id.site)  # Where nothing comes before is an error that says so.
        return design_pairs(
            lab, args, f"What does the activation of {lab.target} come from?", top=args.top, each=args.each
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Ranks all components to first order, and cuts the highest."""
        pairing, nodes = pairing_from_plan(design), upstream_nodes(lab.subject, lab.source.id.site)
        first_order = first_order_shares(lab, pairing, nodes).mean(1)
        order = first_order.abs().argsort(descending=True, stable=True)[: design.plan["top"]].tolist()
        edits = edits_each([nodes[i] for i in order], "patch")
        cuts = Cuts.of(lab, pairing, edits)
        exact = cuts.shares(edits)
        best = int(exact.mean(1).argmax())
        headline = mean(exact[best], seed=lab.seed)
        what = f"{RANDOM_CONTROLS} random changes of the same norm at {nodes[order[best]]}"
        control, rank = among(
            headline.value, cuts.random_controls(edits[best], count=RANDOM_CONTROLS).mean(1).tolist(), what
        )
        components = [
            {"node": str(nodes[i]), "predicted": round(float(first_order[i]), 4), "share": round(float(row.mean()), 4)}
            for i, row in zip(order, exact, strict=True)
        ]
        return build_result(
            headline,
            units="share of the activation",
            normalised_by="its activation at each place",
            control=control,
            found={
                "components": sorted(components, key=lambda row: -row["share"]),
                "of": len(nodes),
                "tokens": [_tokens(lab, place) for place in pairing.active],
                **rank,
            },
        )


def design_pairs(lab: FeatureLab, args: ActiveArgs, question: str, *, each: int, **more: Any) -> Design:
    """Designs a survey of active places with silent runs; `more` joins the plan."""
    active = find_places(lab, "active", args.count, windows=args.windows, seed=args.seed)
    pairing = pair(lab, active, each=each, seed=args.seed)
    silent = [to_json(runs) for runs in pairing.silent]
    return Design(question, "effect", (), {"active": to_json(active), "silent": silent, **more})


def pairing_from_plan(design: Design) -> Pairing:
    """The places and their silent runs, from a design's plan."""
    silent = tuple(tuple(from_json(runs)) for runs in design.plan["silent"])
    return Pairing(tuple(from_json(design.plan["active"])), silent)


def _tokens(lab: FeatureLab, place: Place) -> dict[str, Any]:
    """What share of the activation goes as each token before the place gives way to the mean of all tokens."""
    (row,) = batch_of(lab, [place]).ids()
    occluded = occlusion(lab.subject, row, Activation(lab.source, lab.feature), baseline="mean")
    worth = torch.tensor(occluded.values) / occluded.metric
    order = worth.abs().argsort(descending=True, stable=True)[:TOKENS].tolist()
    rows = [
        {"offset": at - len(row) + 1, "token": lab.vocabulary[row[at]], "share": round(float(worth[at]), 4)}
        for at in order
    ]
    return {"place": excerpt(lab, place.ids, place.pivot), "tokens": rows}


class CutArgs(ActiveArgs, frozen=True):
    """Arguments of `cut_upstream`."""

    nodes: tuple[str, ...] = Field(
        (),
        max_length=20,
        description="components to cut beside those that hypotheses claim, such as head.0:1 or mlp_out.0",
    )
    how: Literal["silent_run", "mean"] = Field(
        "silent_run", description="what takes its place: its values in windows where the feature is silent, or its mean"
    )
    each: int = Field(2, ge=1, le=8, description="silent windows for every active place")


class CutUpstream(InsideTool[CutArgs]):
    """Cuts components before the feature, one at a time, where it is strongest. Items are heads and MLPs: those that
    hypotheses say it reads, and as many others of the same kind; the value is the share of the activation that goes
    (0: nothing changes, 1: it falls silent, negative: it rises). The headline is the mean share of the claimed ones;
    random changes of the same size at the same components are the control.
    """

    name = "cut_upstream"

    def design(self, args: CutArgs, lab: FeatureLab) -> Design:
        """Chooses the components, the active places and what they are cut with."""
        chosen = choose_nodes(lab, args.nodes, seed=args.seed)
        active = find_places(lab, "active", args.count, windows=args.windows, seed=args.seed)
        by_mean = args.how == "mean"
        silent = () if by_mean else pair(lab, active, each=args.each, seed=args.seed).silent
        return Design(
            f"Through which heads and MLPs does the activation of {lab.target} come?",
            "effect",
            chosen.items,
            {
                "asked": chosen.asked,
                "left_out": list(chosen.left_out),
                "how": args.how,
                "active": to_json(active),
                "silent": [to_json(runs) for runs in silent],
                "reference": reference_rows(lab, REFERENCE, seed=args.seed) if by_mean else [],
            },
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Cuts each component by itself."""
        plan = design.plan
        pairing = Pairing(tuple(from_json(plan["active"])), tuple(tuple(from_json(runs)) for runs in plan["silent"]))
        nodes = [parse_nodes(item.about["node"])[0] for item in design.items]
        edits = edits_each(nodes, plan["how"])
        item_weights = asked_weights(design)
        cuts = Cuts.of(lab, pairing, edits, reference=plan["reference"])
        shares = cuts.shares(edits)
        headline = mean(item_weights @ shares, seed=lab.seed)
        random_controls = torch.stack(
            [cuts.random_controls(edit, count=RANDOM_CONTROLS).mean(1) for edit in edits[: len(plan["asked"])]]
        )
        control, rank = among(
            headline.value,
            random_controls.flatten().tolist(),
            f"{RANDOM_CONTROLS} random changes of the same norm each",
        )
        values = shares.mean(1).tolist()
        table = {item.label: round(value, 4) for item, value in zip(design.items, values, strict=True)}
        by_control = {
            item.label: round(float(row.mean()), 4) for item, row in zip(design.items, random_controls, strict=False)
        }
        return build_result(
            headline,
            values=values,
            units="share of the activation",
            normalised_by=f"its mean activation at these {len(pairing.active)} places: {float(cuts.plain.mean()):.3g}",
            control=control,
            found={
                "shares": table,
                "shams": by_control,
                "how": plan["how"],
                "left_out": list(plan["left_out"]),
                **rank,
            },
        )
