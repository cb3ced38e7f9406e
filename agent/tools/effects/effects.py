"""Effects of a feature's edits on the next token's logits, beside random controls, as values and a headline.

An effect is the change of a token's logit above the vocabulary's mean: a feature that raises one token leaves the
others silent, which their probabilities would not. A control is a change of the same norm at the same positions in a
random direction. With e an item's mean effect over the places, b the size that 95% of the controls' effects on the
items stay within, and L the largest |e| of any token of the vocabulary,

    value = sign(e) max(|e| - b, 0) / max(L - b, b)

so that what a control might do is silent, and 1 is the feature's own largest effect, if that is at least twice a
control's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....causal.controls import random_directions, rank_among
from ....causal.edits import Edit
from ....causal.measures import Mean, mean
from ....causal.runs import gather, logits_at, separately
from ....explainers.battery.places import Place
from ....subject.errors import NeuronautError
from ...loop.experiments import Control, Design, Measured
from ...loop.feature_lab import FeatureLab
from .inputs import batch_of, materials, windows

RANDOM_CONTROLS = 20
ROUNDING = 1e-3
"""Logits. Less than that is never told from rounding."""
NOTHING = 1e-4
"""Share of the scale: an edit that changes its site by less has done nothing."""
SHOWN = 8
"""Tokens that are listed as the most moved."""


class Trial(NamedTuple):
    """Edits at one place, each by itself."""

    place: Place
    edits: tuple[Edit, ...]
    """By dose."""
    sense: float = 1.0
    """-1 where the edit takes the feature away, so that what falls counts as raised by it."""


class Moved(NamedTuple):
    """Changes of logits above the vocabulary's mean."""

    real: Tensor
    """(trial, dose, token), in the sense of having more of the feature."""
    random_control: Tensor
    """(trial, dose, control, item)."""


@torch.inference_mode()
def measure_moves(
    lab: FeatureLab, trials: Sequence[Trial], ids: Sequence[int], *, reference: Sequence[Sequence[int]] = ()
) -> Moved:
    """Runs every edit of every trial and RANDOM_CONTROLS controls of each.

    `ids` are the items' tokens, `reference` the windows that means and draws are of. Raises NeuronautError where no
    edit changes anything.
    """
    columns = torch.tensor(list(ids))
    patch_values = gather(
        lab.subject,
        [edit for trial in trials for edit in trial.edits],
        materials=materials(lab),
        reference=windows(lab, reference) if reference else None,
    )
    real, random_control, largest = list[Tensor](), list[Tensor](), 0.0
    for trial in trials:
        batch = batch_of(lab, [trial.place])
        plain = _centred(logits_at(lab.subject, batch.tokens, batch.last))[0]
        edited, reports = separately(lab.subject, batch, trial.edits, _centred, materials=patch_values)
        largest = max(largest, *(report.max_change for report in reports))
        others = [
            control for edit in trial.edits for control in random_directions(edit, count=RANDOM_CONTROLS, seed=lab.seed)
        ]
        controlled, _ = separately(
            lab.subject, batch, others, lambda x: _centred(x)[:, columns], materials=patch_values
        )
        real.append(trial.sense * (edited[:, 0] - plain))
        # A random direction has no sense: turned round in some trials it would cancel itself over the trials.
        random_control.append((controlled[:, 0] - plain[columns]).view(len(trial.edits), RANDOM_CONTROLS, len(columns)))
    if not largest > NOTHING * lab.scale:
        raise NeuronautError(
            f"the edit ({trials[0].edits[-1]}) changes nothing at {len(trials)} places: {lab.target} has these values "
            "there already; choose another operation or strength"
        )
    return Moved(torch.stack(real), torch.stack(random_control))


def _centred(logits: Tensor) -> Tensor:
    """(row, token) -> the same above its mean, float64 on the CPU."""
    logits = logits.double().cpu()
    return logits - logits.mean(-1, keepdim=True)


def token_result(
    lab: FeatureLab, design: Design, changes: Moved, *, contrast: Sequence[float], units: str, tables: Mapping[str, Any]
) -> Measured:
    """The result for a design whose items are tokens. `contrast` weighs the doses.

    The headline is the mean over the asked tokens, suppressed ones counted negatively, with its interval over places.
    """
    weights = torch.tensor(list(contrast), dtype=torch.float64)
    real = torch.einsum("tdv,d->tv", changes.real, weights)
    random_control = torch.einsum("tdsi,d->si", changes.random_control, weights) / len(real)
    columns = torch.tensor([item.about["id"] for item in design.items])
    effects, own = real[:, columns].mean(0), real.mean(0)
    bound = max(float(random_control.abs().flatten().quantile(0.95)), ROUNDING)
    largest = float(own.abs().max())
    unit = max(largest - bound, bound)
    values = (effects.sign() * (effects.abs() - bound).clamp_min(0) / unit).tolist()
    item_weights = asked_weights(design)
    headline = mean((real[:, columns] @ item_weights), seed=lab.seed)
    control, rank = among(
        headline.value,
        (random_control @ item_weights).tolist(),
        f"{RANDOM_CONTROLS} random directions of the same norm",
    )
    return build_result(
        headline,
        values=values,
        units=units,
        normalised_by=_describe_scale(bound, largest, units),
        control=control,
        found={
            "tokens": _token_rows(design, effects.tolist(), values),
            "most_raised": _extreme(lab, own, 1.0),
            "most_lowered": _extreme(lab, own, -1.0),
            **rank,
            "left_out": list(design.plan["left_out"]),
            **tables,
        },
    )


def _token_rows(design: Design, effects: Sequence[float], values: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "token": item.about["token"],
            "asked": item.about["token"] in design.plan["asked"],
            "logits": round(effect, 4),
            "value": round(value, 4),
        }
        for item, effect, value in zip(design.items, effects, values, strict=True)
    ]


def build_result(
    headline: Mean,
    *,
    values: Sequence[float] = (),
    units: str,
    normalised_by: str,
    control: Control | None,
    found: Mapping[str, Any],
) -> Measured:
    """The result whose headline is a mean over places, with the mean's interval."""
    low, high = headline.interval or (None, None)
    return Measured(
        values=tuple(round(value, 5) for value in values),
        effect=headline.value,
        low=low,
        high=high,
        n=headline.n,
        units=units,
        normalised_by=normalised_by,
        control=control,
        found=found,
    )


def _describe_scale(bound: float, largest: float, units: str) -> str:
    top = "its own largest effect on any token" if largest >= 2 * bound else "twice that"
    low, high = f"within what 95% of shams do ({bound:.3g} {units})", f"{max(largest, 2 * bound):.3g} {units}"
    return f"0: {low}; 1: {high}, {top}"


def asked_weights(design: Design) -> Tensor:
    """What each item counts in the headline: +1 or -1 over how many are asked about, 0 for controls. (item,)."""
    weights = design.plan["asked"]
    names = [item.about.get("token", item.about.get("node")) for item in design.items]
    return torch.tensor([weights.get(name, 0.0) for name in names], dtype=torch.float64) / len(weights)


def among(value: float, controls: Sequence[float], what: str) -> tuple[Control, dict[str, float]]:
    """The control of a headline, and how the headline stands among its values."""
    values = torch.tensor(list(controls), dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    ranked = rank_among(value, controls)
    return Control(what, float(values.mean()), low, high), {"percentile": ranked.percentile, "p": round(ranked.p, 4)}


def _extreme(lab: FeatureLab, effects: Tensor, sense: float) -> list[dict[str, Any]]:
    order = (sense * effects).argsort(descending=True, stable=True)[:SHOWN].tolist()
    return [{"token": lab.vocabulary[id], "logits": round(float(effects[id]), 4)} for id in order]
