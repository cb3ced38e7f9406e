"""The pivot, with the tokens right before it, at every position of the window: is the position the cause?

What stands before the moved tokens is corpus text in which the feature is silent where it can be. The control is that
text at the same positions: where the position alone makes it fire, the control fires too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...causal.measures import mean
from ..investigation.experiments import Control, Design, Item, Measured
from ..investigation.lab import FeatureLab
from .changed import Expecting, as_expected, by_carrier
from .places import ACTIVE, Carried, Where, excerpt, generator, places, silent_window

LONGEST_PERIOD = 8
"""Of every so-manyth position."""


class SweepArgs(Carried, Expecting, frozen=True):
    carriers: Where = Field("active", description="active: windows where it fires; near_miss: silent near misses")
    count: int = Field(3, ge=1, le=12, description="how many carriers")
    context: int = Field(4, ge=0, le=32, description="tokens before the pivot that move with it")


class SweepPositions:
    """Moves the pivot, with the tokens right before it, to every position of the window. Gives the share of positions
    at which it fires, the range of these, and whether it is every so-manyth one."""

    name: ClassVar[str] = "sweep_positions"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = False
    args: type[SweepArgs] = SweepArgs

    def design(self, args: SweepArgs, lab: FeatureLab) -> Design:
        """Every position for every carrier; at the first ones the context that moves along is cut."""
        found = places(lab, args.carriers, args.count, windows=args.windows, seed=args.seed)
        rng = generator(lab, args.seed, "sweep")
        items, control = [], []
        for number, place in enumerate(found, start=1):
            filling = silent_window(lab, rng, position=place.pivot).tolist()
            segment = place.ids[max(0, place.pivot - args.context) : place.pivot + 1]
            control.append(filling)
            for position in range(lab.width):
                moved = segment[-(position + 1) :]
                ids = (*filling[: position + 1 - len(moved)], *moved, *filling[position + 1 :])
                about = {"carrier": number, "position": position}
                items.append(Item(f"carrier {number} at {position}", ids, position, about))
        items = as_expected(lab, items, args.expect)
        told = [excerpt(lab, place.ids, place.pivot, before=args.context) for place in found]
        question = "At which positions of the window does it fire?"
        return Design(question, "response", tuple(items), {"carriers": told, "control": control})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of positions at which it fires; `found` has the mean by position and what the positions are."""
        values = lab.respond(design.items)
        around = lab.read(np.array(design.plan["control"], np.int64)) / lab.scale
        others = [float(around[item.about["carrier"] - 1, item.pivot]) for item in design.items]
        share = by_carrier(design.items, [float(value >= ACTIVE) for value in values], seed=lab.seed)
        quiet = mean([float(value >= ACTIVE) for value in others], seed=lab.seed)
        return Measured(
            values, share.value, *(share.interval or (None, None)), n=len(values),
            units="share of positions at which it fires", normalised_by=lab.normalised_by,
            control=Control("the text around, at the same positions", quiet.value, *(quiet.interval or ())),
            found={**_told(design.items, values), "control": _told(design.items, others),
                   "carriers": design.plan["carriers"]},
        )  # fmt: skip


def _told(items: Sequence[Item], values: Sequence[float]) -> Mapping[str, Any]:
    """The curve over positions, and the range and period of those that are active in most carriers."""
    groups: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        groups.setdefault(item.pivot, []).append(value)
    curve = {position: float(np.median(groups[position])) for position in sorted(groups)}
    active = [position for position, value in curve.items() if value >= ACTIVE]
    told: dict[str, Any] = {"median by position": {str(p): round(value, 3) for p, value in curve.items()}}
    if active:
        inside = [position for position in curve if active[0] <= position <= active[-1]]
        told |= {"first": active[0], "last": active[-1], "share between": round(len(active) / len(inside), 3)}
        told["every"] = _period(inside, active)
    return told


def _period(inside: Sequence[int], active: Sequence[int]) -> int | None:
    """The least n such that exactly every n-th position from the first on is active; None where there is none."""
    for n in range(1, LONGEST_PERIOD + 1):
        if list(active) == [position for position in inside if (position - active[0]) % n == 0] and len(active) > 1:
            return n
    return None
