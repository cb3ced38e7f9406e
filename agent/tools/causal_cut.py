"""Cutting components before a feature, one at a time: which of them its activation depends on."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from ...causal.measures import mean
from ...causal.nodes import parse_nodes
from ..investigation.experiments import Design, Measured
from ..investigation.lab import FeatureLab
from .causal_ablate import REFERENCE
from .causal_arguments import ActiveArgs
from .causal_effects import among, asked_weights
from .causal_inputs import choose_nodes, from_json, reference_rows, to_json
from .causal_paths import Cuts, Pairing, edits_each, pair
from .places import places

SHAMS = 8


class CutArgs(ActiveArgs, frozen=True):
    """Arguments of `cut_upstream`."""

    nodes: tuple[str, ...] = Field(
        (), max_length=20,
        description="components to cut beside those that hypotheses claim, such as head.0:1 or mlp_out.0",
    )  # fmt: skip
    how: Literal["silent_run", "mean"] = Field(
        "silent_run", description="what takes its place: its values in windows where the feature is silent, or its mean"
    )
    each: int = Field(2, ge=1, le=8, description="silent windows for every active place")


class CutUpstream:
    """Cuts components before the feature, one at a time, where it is strongest. Items are heads and MLPs: those that
    hypotheses say it reads, and as many others of the same kind; the value is the share of the activation that goes
    (0: nothing changes, 1: it falls silent, negative: it rises). The headline is the mean share of the claimed ones;
    random changes of the same size at the same components are the control."""

    name: ClassVar[str] = "cut_upstream"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = False
    args: type[CutArgs] = CutArgs

    def design(self, args: CutArgs, lab: FeatureLab) -> Design:
        chosen = choose_nodes(lab, args.nodes, seed=args.seed)
        active = places(lab, "active", args.count, windows=args.windows, seed=args.seed)
        by_mean = args.how == "mean"
        silent = () if by_mean else pair(lab, active, each=args.each, seed=args.seed).silent
        return Design(
            f"Through which heads and MLPs does the activation of {lab.target} come?",
            "effect",
            chosen.items,
            {
                "asked": chosen.asked, "left_out": list(chosen.left_out), "how": args.how, "active": to_json(active),
                "silent": [to_json(runs) for runs in silent],
                "reference": reference_rows(lab, REFERENCE, seed=args.seed) if by_mean else [],
            },
        )  # fmt: skip

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        plan = design.plan
        pairing = Pairing(tuple(from_json(plan["active"])), tuple(tuple(from_json(runs)) for runs in plan["silent"]))
        nodes = [parse_nodes(item.about["node"])[0] for item in design.items]
        edits = edits_each(nodes, plan["how"])
        asked = asked_weights(design)
        cuts = Cuts.of(lab, pairing, edits, reference=plan["reference"])
        found = cuts.shares(edits)
        headline = mean(asked @ found, seed=lab.seed)
        shams = torch.stack([cuts.shams(edit, count=SHAMS).mean(1) for edit in edits[: len(plan["asked"])]])
        control, rank = among(headline.value, shams.flatten().tolist(), f"{SHAMS} random changes of the same norm each")
        values = found.mean(1).tolist()
        table = {item.label: round(value, 4) for item, value in zip(design.items, values, strict=True)}
        by_sham = {item.label: round(float(row.mean()), 4) for item, row in zip(design.items, shams, strict=False)}
        return Measured(
            tuple(round(value, 5) for value in values), headline.value, headline.interval and headline.interval.low,
            headline.interval and headline.interval.high, headline.n, "share of the activation",
            f"its mean activation at these {len(pairing.active)} places: {float(cuts.plain.mean()):.3g}", control,
            {"shares": table, "shams": by_sham, "how": plan["how"], "left_out": list(plan["left_out"]), **rank},
        )  # fmt: skip
