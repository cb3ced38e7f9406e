"""Experiments that tell the position, the previous token and what is counted over the text apart.

SweepPositions puts the pivot, with the tokens right before it, at every position of the window. What stands before the
moved tokens is corpus text in which the feature is silent where it can be. The control is that text at the same
positions: where the position alone makes it fire, the control fires too.

SwapPairs lets two tokens before the pivot change places, or replaces them together. Only changes are kept after which
the same quotations and brackets are open at the pivot as before, so length, position and parity are fixed, and what
flips does so because of which token stands where.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from ...causal.measures import mean
from ...explainers.battery.places import ACTIVE, Place, common_tokens, excerpt, generator, in_turn, silent_window
from ...rules.evaluate import TokenGrid
from ...subject.errors import NeuronautError
from ..loop.experiments import Control, Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import OfClaim, Where, find_places, tell_pivots
from .window_edits import Expecting, by_carrier, changed_copy, design_changes, filter_by_expectation, measure_changes

LONGEST_PERIOD = 8
"""Of every so-manyth position."""


class SweepArgs(OfClaim, Expecting, frozen=True):
    """Arguments of `sweep_positions`."""

    carriers: Where = Field("active", description="active: windows where it fires; near_miss: silent near misses")
    count: int = Field(3, ge=1, le=12, description="how many carriers")
    context: int = Field(4, ge=0, le=32, description="tokens before the pivot that move with it")


class SweepPositions(FeatureTool[SweepArgs]):
    """Moves the pivot, with the tokens right before it, to every position of the window. Gives the share of positions
    at which it fires, the range of these, and whether it is every so-manyth one.
    """

    name = "sweep_positions"

    def design(self, args: SweepArgs, lab: FeatureLab) -> Design:
        """Every position for every carrier; at the first ones the context that moves along is cut."""
        carriers = find_places(lab, args.carriers, args.count, windows=args.windows, seed=args.seed, about=args.about)
        rng = generator(lab, args.seed, "sweep")
        items, control = [], []
        for number, place in enumerate(carriers, start=1):
            filling = silent_window(lab, rng, position=place.pivot).tolist()
            segment = place.ids[max(0, place.pivot - args.context) : place.pivot + 1]
            control.append(filling)
            for position in range(lab.width):
                moved = segment[-(position + 1) :]
                ids = (*filling[: position + 1 - len(moved)], *moved, *filling[position + 1 :])
                about = {"carrier": number, "position": position}
                items.append(Item(f"carrier {number} at {position}", ids, position, about))
        items = filter_by_expectation(lab, items, args.expect)
        texts = [excerpt(lab, place.ids, place.pivot, before=args.context) for place in carriers]
        question = f"At which positions of the window does it fire on {tell_pivots(lab, carriers)}?"
        return Design(question, "response", tuple(items), {"carriers": texts, "control": control})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of positions at which it fires; `found` has the mean by position and what the positions are."""
        values = lab.respond(design.items)
        around = lab.read(np.array(design.plan["control"], np.int64)) / lab.scale
        others = [float(around[item.about["carrier"] - 1, item.pivot]) for item in design.items]
        share = by_carrier(design.items, [float(value >= ACTIVE) for value in values], seed=lab.seed)
        quiet = mean([float(value >= ACTIVE) for value in others], seed=lab.seed)
        return Measured(
            values,
            share.value,
            *(share.interval or (None, None)),
            n=len(values),
            units="share of positions at which it fires",
            normalised_by=lab.normalised_by,
            control=Control("the text around, at the same positions", quiet.value, *(quiet.interval or ())),
            found={
                **_summarise(design.items, values),
                "control": _summarise(design.items, others),
                "carriers": design.plan["carriers"],
            },
        )


def _summarise(items: Sequence[Item], values: Sequence[float]) -> Mapping[str, Any]:
    """The curve over positions, and the range and period of those that are active in most carriers."""
    groups: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        groups.setdefault(item.pivot, []).append(value)
    curve = {position: float(np.median(groups[position])) for position in sorted(groups)}
    active = [position for position, value in curve.items() if value >= ACTIVE]
    summary: dict[str, Any] = {"median by position": {str(p): round(value, 3) for p, value in curve.items()}}
    if active:
        inside = [position for position in curve if active[0] <= position <= active[-1]]
        summary |= {"first": active[0], "last": active[-1], "share between": round(len(active) / len(inside), 3)}
        summary["every"] = _period(inside, active)
    return summary


def _period(inside: Sequence[int], active: Sequence[int]) -> int | None:
    """The least n such that exactly every n-th position from the first on is active; None where there is none."""
    for n in range(1, LONGEST_PERIOD + 1):
        if list(active) == [position for position in inside if (position - active[0]) % n == 0] and len(active) > 1:
            return n
    return None


REACH = 8
"""Tokens before the pivot of which pairs are made."""


class SwapArgs(OfClaim, Expecting, frozen=True):
    """Arguments of `swap_pairs`."""

    carriers: Where = Field("active", description="active: windows where it fires; near_miss: silent near misses")
    count: int = Field(6, ge=1, le=24, description="how many carriers")
    each: int = Field(10, ge=2, le=40, description="changes of each carrier")


class SwapPairs(FeatureTool[SwapArgs]):
    """Swaps or replaces two tokens before the pivot together. Length, position and what is open (quotes, brackets)
    stay. Tells whether the previous token matters or something that is counted over the text: compare the group
    "previous token" with the group "others".
    """

    name = "swap_pairs"

    def design(self, args: SwapArgs, lab: FeatureLab) -> Design:
        """Of every carrier as many changes that involve the previous token as ones that do not, where there are."""
        carriers = find_places(
            lab, args.carriers, args.count, before=3, windows=args.windows, seed=args.seed, about=args.about
        )
        rng, tokens = generator(lab, args.seed, "pairs"), common_tokens(lab)
        items = []
        for number, place in enumerate(carriers, start=1):
            changes = [change for change in _changes(place, number, tokens, lab, rng) if change.ids != place.ids]
            balanced = [item for item, same in zip(changes, _same_state(lab, place, changes), strict=True) if same]
            items += in_turn(balanced, lambda item: item.about["group"])[: args.each]
        if not items:
            raise NeuronautError(f"{lab.target}: no pair of tokens can change without opening or closing a quotation")
        items = filter_by_expectation(lab, items, args.expect)
        pivots = tell_pivots(lab, carriers)
        question = f"Does the token before {pivots} matter when length, position and what is open stay as they are?"
        return design_changes(question, lab, carriers, items, seed=args.seed)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of changes that flip; by group in `found`."""
        return measure_changes(design, lab)


def _changes(place: Place, number: int, tokens: list[int], lab: FeatureLab, rng: np.random.Generator) -> Iterator[Item]:
    """Every pair in random order, swapped and replaced by random tokens of the corpus."""
    pairs = list(combinations(range(1, min(place.pivot, REACH) + 1), 2))
    for index in rng.permutation(len(pairs)).tolist():
        near, far = pairs[index]
        at = (place.pivot - near, place.pivot - far)
        swap = {at[0]: place.ids[at[1]], at[1]: place.ids[at[0]]}
        replacement = dict(zip(at, rng.choice(tokens, size=2).tolist(), strict=True))
        which = "previous token" if near == 1 else "others"
        for verb, change in (("swapped", swap), ("replaced", replacement)):
            label = f"{verb} -{near} and -{far} of carrier {number}"
            if verb == "replaced":
                label += f": {''.join(lab.vocabulary[change[position]] for position in reversed(at))!r}"
            # A token that is put where it was would be no change of the previous one.
            if change[at[0]] != place.ids[at[0]]:
                yield changed_copy(place, place.change(change), carrier=number, label=label, group=f"{which} {verb}")


def _same_state(lab: FeatureLab, place: Place, items: list[Item]) -> list[bool]:
    """Whether the same is open at the pivot as in the unchanged window."""
    grid = TokenGrid(lab.vocabulary, np.array([place.ids, *(item.ids for item in items)], np.int64))
    state = grid.open[:, place.pivot]
    return (state[1:] == state[0]).tolist()
