"""Ablation and patching of a feature: what the subject says next without it, and with it where it was not."""

from typing import Literal

from pydantic import Field

from ....subject.errors import NeuronautError
from ...loop.experiments import Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import Carried, TokenArgs, find_places
from .effects import Trial, measure_moves, token_result
from .inputs import choose_tokens, edit_of, from_json, reference_rows, silent_places, to_json

REFERENCE = 16
"""Background windows that means and draws are of."""


class AblateArgs(TokenArgs, Carried, frozen=True):
    """Arguments of `ablate`."""

    how: Literal["mean", "zero", "resample"] = Field(
        "zero", description="what its activation becomes: 0, its mean over text, or what it is at a random token"
    )


class Ablate(InsideTool[AblateArgs]):
    """Takes the feature away where it is strongest and measures which tokens the model then expects less. Items are
    tokens: those that hypotheses say are promoted or suppressed, and as many others of like frequency; a promoted
    token gives a positive value, a suppressed one a negative, others are silent. The headline is the mean fall of the
    claimed tokens' logits; random changes of the same size are the control.
    """

    name = "ablate"

    def design(self, args: AblateArgs, lab: FeatureLab) -> Design:
        """Chooses the tokens and the active places."""
        chosen = choose_tokens(lab, args.tokens, seed=args.seed)
        return Design(
            f"Which tokens does {lab.target} raise or lower, judged by what its {args.how} ablation takes away?",
            "effect",
            chosen.items,
            {
                "asked": chosen.asked,
                "left_out": list(chosen.left_out),
                "how": args.how,
                "active": to_json(find_places(lab, "active", args.count, windows=args.windows, seed=args.seed)),
                "reference": [] if args.how == "zero" else reference_rows(lab, REFERENCE, seed=args.seed),
            },
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Takes the feature away at each place; `found` has the places' activations."""
        how, resampled = design.plan["how"], design.plan["how"] == "resample"
        trials = [
            Trial(place, (edit_of(lab, how, seed=number + 1 if resampled else 0),), -1.0)
            for number, place in enumerate(from_json(design.plan["active"]))
        ]
        changes = measure_moves(lab, trials, _ids(design), reference=design.plan["reference"])
        strengths = [round(trial.place.value, 4) for trial in trials]
        return token_result(
            lab, design, changes, contrast=[1.0], units="logits", tables={"how": how, "activations": strengths}
        )


class PatchArgs(TokenArgs, Carried, frozen=True):
    """Arguments of `patch_activation`."""

    direction: Literal["both", "on", "off"] = Field(
        "both", description="on: active at silent places; off: silent at active places; both: the mean of the two"
    )


class PatchActivation(InsideTool[PatchArgs]):
    """Sets the feature where it is silent to what it is where it is strongest, and the other way round. At places that
    look alike; it measures the next token. Items are tokens, as in `ablate`: positive means that more of the feature
    raises the token. The headline is the mean effect on the claimed tokens; random changes of the same size are the
    control.
    """

    name = "patch_activation"

    def design(self, args: PatchArgs, lab: FeatureLab) -> Design:
        """Chooses the tokens, and active places with silent ones that look alike."""
        chosen = choose_tokens(lab, args.tokens, seed=args.seed)
        active = find_places(lab, "active", args.count, windows=args.windows, seed=args.seed)
        near = silent_places(lab, len(active), seed=args.seed, tokens=lab.fires_on)
        # A feature of the token alone has no near misses: any silent place will do then.
        silent = near + silent_places(lab, len(active) - len(near), seed=args.seed)
        if not silent:
            raise NeuronautError(f"{lab.target} is silent in no training window, so there is nowhere to set it")
        return Design(
            f"What does the model say next when the activation of {lab.target} is that of another place?",
            "effect",
            chosen.items,
            {
                "asked": chosen.asked,
                "left_out": list(chosen.left_out),
                "direction": args.direction,
                "near_misses": len(near),
                "silent": to_json(silent),
                "active": to_json(active),
            },
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Sets the feature at silent places, at active ones, or both; `found` has each direction by itself."""
        active, silent = (from_json(design.plan[name]) for name in ("active", "silent"))
        swaps = [(silent[i % len(silent)], strong) for i, strong in enumerate(active)]
        trials = {
            "on": [Trial(quiet, (edit_of(lab, "set", value=strong.value * lab.scale),)) for quiet, strong in swaps],
            "off": [
                Trial(strong, (edit_of(lab, "set", value=quiet.value * lab.scale),), -1.0) for quiet, strong in swaps
            ],
        }
        chosen = [name for name in trials if design.plan["direction"] in (name, "both")]
        changes = measure_moves(lab, [trial for name in chosen for trial in trials[name]], _ids(design))
        by_direction = {
            name: changes.real[at * len(swaps) : (at + 1) * len(swaps), 0][:, _ids(design)].mean(0).tolist()
            for at, name in enumerate(chosen)
        }
        table = {
            name: {item.label: round(effect, 4) for item, effect in zip(design.items, effects, strict=True)}
            for name, effects in by_direction.items()
        }
        return token_result(
            lab,
            design,
            changes,
            contrast=[1.0],
            units="logits",
            tables={"by_direction": table, "near_misses": design.plan["near_misses"]},
        )


def _ids(design: Design) -> list[int]:
    return [item.about["id"] for item in design.items]
