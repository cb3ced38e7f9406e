"""Steering, which holds a feature at ever higher activations where it is silent, and what it writes by the weights."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ....causal.doses import trend
from ....causal.measures import mean
from ....explainers.battery.places import generator
from ....subject.address import Feature
from ....subject.directions import Promoted, direction, promoted
from ....subject.errors import NeuronautError
from ...loop.experiments import Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import Drawn, TokenArgs
from .effects import Moved, Trial, among, asked_weights, measure_moves, token_result
from .inputs import choose_tokens, edit_of, from_json, silent_places, to_json


class SteerArgs(TokenArgs, frozen=True):
    """Arguments of `steer`."""

    strengths: tuple[float, ...] = Field(
        (0.5, 1.0, 1.5, 2.0),
        min_length=2,
        max_length=8,
        description="activations to hold it at, 1 being that of its strongest examples; 0 is always among them",
    )


class Steer(InsideTool[SteerArgs]):
    """Holds the feature at several strengths in random windows where it is silent. It measures the next token: dose and
    response. Items are tokens, as in `ablate`; values come from the slope over strength, positive where more of the
    feature raises the token. The headline is the mean slope of the claimed tokens' logits; zero dose and random
    directions of the same size are the control; the curve and whether it is monotone are in `found`.
    """

    name = "steer"

    def design(self, args: SteerArgs, lab: FeatureLab) -> Design:
        """Chooses the tokens and the silent places."""
        chosen = choose_tokens(lab, args.tokens, seed=args.seed)
        silent = silent_places(lab, args.count, seed=args.seed)
        if len(silent) < 2:
            raise NeuronautError(
                f"{lab.target} is silent in {len(silent)} training windows; wanted at least 2 to steer"
            )
        return Design(
            f"How does the next token change as {lab.target} is held at ever higher activations?",
            "effect",
            chosen.items,
            {
                "asked": chosen.asked,
                "left_out": list(chosen.left_out),
                "strengths": sorted({0.0, *args.strengths}),
                "silent": to_json(silent),
            },
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Holds the feature at each strength; `found` has the curve."""
        strengths = design.plan["strengths"]
        edits = tuple(edit_of(lab, "set", value=strength * lab.scale) for strength in strengths)
        ids = [item.about["id"] for item in design.items]
        changes = measure_moves(lab, [Trial(place, edits) for place in from_json(design.plan["silent"])], ids)
        doses = torch.tensor(strengths, dtype=torch.float64)
        away = doses - doses.mean()
        slope = (away / away.square().sum()).tolist()
        return token_result(
            lab,
            design,
            changes,
            contrast=slope,
            units="logits per scale",
            tables=_curve(design, changes, ids, lab.seed),
        )


def _curve(design: Design, changes: Moved, ids: list[int], seed: int) -> dict[str, Any]:
    """Mean effect on the asked tokens by strength with its interval over places, and what random directions do."""
    strengths, item_weights = design.plan["strengths"], asked_weights(design)
    real, random_control = changes.real[:, :, ids] @ item_weights, changes.random_control.mean(0) @ item_weights
    means = [mean(column, seed=seed) for column in real.T]
    fit = trend(strengths, [effect.value for effect in means])
    curve = [
        {
            "strength": strength,
            "effect": round(effect.value, 4),
            "low": effect.interval and round(effect.interval.low, 4),
            "high": effect.interval and round(effect.interval.high, 4),
            **_range(controls),
        }
        for strength, effect, controls in zip(strengths, means, random_control, strict=True)
    ]
    zero = curve[strengths.index(0.0)]["effect"]
    return {"curve": curve, "sense": fit.sense, "monotone": fit.sense is not None, "zero_dose": zero}


def _range(controls: Tensor) -> dict[str, float]:
    low, high = controls.quantile(torch.tensor([0.025, 0.975], dtype=controls.dtype)).tolist()
    return {"sham_low": round(low, 4), "sham_high": round(high, 4)}


OTHERS = 50
"""Features of the same source that it is compared with."""


class PromotedArgs(Drawn, frozen=True):
    """Arguments of `promoted_tokens`."""

    count: int = Field(10, ge=1, le=50, description="tokens to list at either end")


class PromotedTokens(InsideTool[PromotedArgs]):
    """Looks up in the weights which tokens the feature raises and lowers directly. The headline is how many standard
    deviations of the vocabulary the top token stands out by; other features of the same source are the control. Later
    layers may undo or add to this: `ablate` and `steer` measure it.
    """

    name = "promoted_tokens"
    survey = True

    def design(self, args: PromotedArgs, lab: FeatureLab) -> Design:
        """Chooses other features of the source to compare with."""
        width, own = lab.source.width, lab.feature.index
        drawn = generator(lab, args.seed, "other features").permutation(width)
        others = [index for index in drawn.tolist() if index != own][:OTHERS]
        question = f"Which tokens does the direction that {lab.target} writes raise and lower?"
        return Design(question, "effect", (), {"count": args.count, "others": others})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Reads the direct path of the feature's direction, and of the others'."""
        own = promoted(lab.subject, lab.source, lab.feature, count=design.plan["count"])
        if not own.top:
            raise NeuronautError(f"{lab.target} writes nothing that reaches the output directly; ablate or steer it")
        others = [
            promoted(lab.subject, lab.source, Feature(lab.source.id, index, lab.feature.negative), count=1)
            for index in design.plan["others"]
        ]
        writing = [_outstanding(entry) for entry in others if entry.top]
        height = _outstanding(own)
        what = f"{len(writing)} other features of {lab.source.id}"
        control, rank = among(height, writing, what) if writing else (None, {})
        exact = direction(lab.subject, lab.source, lab.feature).exact
        tables = {
            name: [{"token": entry.token, "deviations": round(entry.value / own.spread, 3)} for entry in part]
            for name, part in (("raises", own.top), ("lowers", own.bottom))
        }
        return Measured(
            values=(),
            effect=height,
            low=None,
            high=None,
            n=len(lab.vocabulary),
            units="standard deviations over the vocabulary",
            normalised_by="standard deviation over the vocabulary of what the direction adds to logits",
            control=control,
            found={**tables, "exact": exact, "others_that_write_nothing": len(others) - len(writing), **rank},
        )


def _outstanding(listing: Promoted) -> float:
    return listing.top[0].value / listing.spread
