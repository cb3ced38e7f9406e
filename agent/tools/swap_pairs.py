"""Pairs of tokens change while everything that is counted stays: is it the previous token, or what is open?

Two tokens before the pivot change places, or are replaced together. Only changes are kept after which the same
quotations and brackets are open at the pivot as before, so length, position and parity are fixed, and what flips
does so because of which token stands where.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ...explainers.evaluate import TokenGrid
from ...subject.errors import NeuronautError
from ..investigation.experiments import Design, Item, Measured
from ..investigation.lab import FeatureLab
from .changed import Expecting, as_expected, changed, design_changes, measure_changes
from .places import Carried, Place, Where, common_tokens, generator, in_turn, places

REACH = 8
"""Tokens before the pivot of which pairs are made."""


class SwapArgs(Carried, Expecting, frozen=True):
    carriers: Where = Field("active", description="active: windows where it fires; near_miss: silent near misses")
    count: int = Field(6, ge=1, le=24, description="how many carriers")
    each: int = Field(10, ge=2, le=40, description="changes of each carrier")


class SwapPairs:
    """Swaps or replaces two tokens before the pivot together, keeping length, position and what is open (quotes,
    brackets). Tells whether the previous token matters or something that is counted over the text: compare the group
    "previous token" with the group "others"."""

    name: ClassVar[str] = "swap_pairs"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = False
    args: type[SwapArgs] = SwapArgs

    def design(self, args: SwapArgs, lab: FeatureLab) -> Design:
        """Of every carrier as many changes that involve the previous token as ones that do not, where there are."""
        found = places(lab, args.carriers, args.count, before=3, windows=args.windows, seed=args.seed)
        rng, tokens = generator(lab, args.seed, "pairs"), common_tokens(lab)
        items = []
        for number, place in enumerate(found, start=1):
            made = [change for change in _changes(place, number, tokens, lab, rng) if change.ids != place.ids]
            kept = [item for item, same in zip(made, _same_state(lab, place, made), strict=True) if same]
            items += in_turn(kept, lambda item: item.about["group"])[: args.each]
        if not items:
            raise NeuronautError(f"{lab.target}: no pair of tokens can change without opening or closing a quotation")
        items = as_expected(lab, items, args.expect)
        question = "Does the previous token matter when length, position and what is open stay as they are?"
        return design_changes(question, lab, found, items, seed=args.seed)

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
        drawn = dict(zip(at, rng.choice(tokens, size=2).tolist(), strict=True))
        which = "previous token" if near == 1 else "others"
        for verb, change in (("swapped", swap), ("replaced", drawn)):
            told = f"{verb} -{near} and -{far} of carrier {number}"
            if verb == "replaced":
                told += f": {''.join(lab.vocabulary[change[position]] for position in reversed(at))!r}"
            # A token that is put where it was would be no change of the previous one.
            if change[at[0]] != place.ids[at[0]]:
                yield changed(place, place.change(change), carrier=number, label=told, group=f"{which} {verb}")


def _same_state(lab: FeatureLab, place: Place, made: list[Item]) -> list[bool]:
    """Whether the same is open at the pivot as in the unchanged window."""
    grid = TokenGrid(lab.vocabulary, np.array([place.ids, *(item.ids for item in made)], np.int64))
    state = grid.open[:, place.pivot]
    return (state[1:] == state[0]).tolist()
