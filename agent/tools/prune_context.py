"""Pruning of the text before the pivot: ever shorter contexts, until the feature falls silent.

The context is cut in two ways, filled and cut (explainers/battery/measurements.py). Any one filling may happen to
hold a cause, so several are tried, and the median counts.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from ...causal.measures import mean
from ...explainers.battery.measurements import LENGTHS, cut_context, fill_context, median_by_length, needed_length
from ...explainers.battery.places import excerpt, generator, silent_window
from ..loop.experiments import Control, Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import OfClaim, find_places, tell_pivots

Way = Literal["filled", "cut"]
WAYS: tuple[Way, ...] = ("filled", "cut")


class PruneArgs(OfClaim, frozen=True):
    """Arguments of `prune_context`."""

    count: int = Field(6, ge=1, le=24, description="how many active windows")
    fillings: int = Field(3, ge=1, le=9, description="texts that are put in the place of each one's context")


class PruneContext(FeatureTool[PruneArgs]):
    """Shortens the context before active pivots. 1, 2, 3, ... tokens are kept, once with other text in its place and
    once moved to the window's start. Gives how many tokens, the pivot included, are needed to fire.
    """

    name = "prune_context"

    def design(self, args: PruneArgs, lab: FeatureLab) -> Design:
        """Every length of every carrier in both ways; the control is the filling text itself."""
        carriers = find_places(
            lab, "active", args.count, before=2, windows=args.windows, seed=args.seed, about=args.about
        )
        rng = generator(lab, args.seed, "prune")
        items, control = [], []
        for number, place in enumerate(carriers, start=1):
            lengths = [length for length in LENGTHS if length <= place.pivot]
            items.append(
                _item(
                    place.ids, pivot=place.pivot, carrier=number, length=place.pivot + 1, way="filled", variant="whole"
                )
            )
            for text in range(1, args.fillings + 1):
                filling = silent_window(lab, rng, position=place.pivot).tolist()
                control.append([filling, place.pivot])
                for length in lengths:
                    ids = fill_context(place, length, filling)
                    items.append(
                        _item(
                            ids, pivot=place.pivot, carrier=number, length=length, way="filled", variant=f"text {text}"
                        )
                    )
            for length in lengths:
                ids = cut_context(place, length)
                items.append(
                    _item(ids, pivot=length - 1, carrier=number, length=length, way="cut", variant="moved to the start")
                )
        texts = [excerpt(lab, place.ids, place.pivot) for place in carriers]
        question = f"How many tokens before and including the pivot, {tell_pivots(lab, carriers)}, does it need?"
        return Design(question, "response", tuple(items), {"carriers": texts, "control": control})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The needed length, filled; a mean over carriers. `found` has both ways by carrier, and the curves."""
        control = [Item("filling", tuple(ids), pivot) for ids, pivot in design.plan["control"]]
        responses = lab.respond([*design.items, *control])
        values, others = responses[: len(design.items)], responses[len(design.items) :]
        curves: dict[str, dict[int, list[float]]] = {way: {} for way in WAYS}
        needed: dict[str, list[int]] = {way: [] for way in WAYS}
        for number in range(1, len(design.plan["carriers"]) + 1):
            own = {way: _curve(design, values, number, way) for way in WAYS}
            whole = max(own["filled"])
            own["cut"][whole] = own["filled"][whole]
            for way, curve in own.items():
                needed[way].append(needed_length(curve))
                for tokens, value in curve.items():
                    curves[way].setdefault(tokens, []).append(value)
        length, quiet = mean([float(n) for n in needed["filled"]], seed=lab.seed), mean(list(others), seed=lab.seed)
        means = {
            way: {str(tokens): round(float(np.mean(curve[tokens])), 3) for tokens in sorted(curve)}
            for way, curve in curves.items()
        }
        return Measured(
            values,
            length.value,
            *(length.interval or (None, None)),
            n=len(needed["filled"]),
            units="tokens needed, the pivot included",
            normalised_by=lab.normalised_by,
            control=Control("the filling text itself at the same positions", quiet.value, *(quiet.interval or ())),
            found={"needed": needed, "mean by length": means, "carriers": design.plan["carriers"]},
        )


def _item(ids: tuple[int, ...], pivot: int, carrier: int, length: int, way: Way, variant: str) -> Item:
    about = {"carrier": carrier, "kept": length, "way": way}
    return Item(f"{length} tokens of carrier {carrier}, {way}, {variant}", ids, pivot, about)


def _curve(design: Design, values: tuple[float, ...], carrier: int, way: Way) -> dict[int, float]:
    """By length, the median value."""
    return median_by_length(
        (item.about["kept"], value)
        for item, value in zip(design.items, values, strict=True)
        if item.about["carrier"] == carrier and item.about["way"] == way
    )
