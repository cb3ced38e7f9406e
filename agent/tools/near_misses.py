"""Places of the corpus that ought to be alike: where it fires, and where it is silent on the same tokens.

Half of the places are active, half near misses; first come those on which the rivals disagree most. Each is measured
on a fresh copy of its window in which everything that no rival reads is other corpus text (beyond FAR tokens where one
reads the whole text, or where none has a rule), so that what is left of the difference is what some rival can explain.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from ...causal.measures import mean
from ...explainers.battery.measurements import preceding
from ...explainers.battery.places import ACTIVE, Place, excerpt, find_near_misses, generator, in_turn, silent_window
from ...rules.language import Class, Condition, Position, Regex, Text, Token
from ..loop.experiments import Control, Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import find_places
from .window_edits import Expecting, conditions, expectations, filter_by_expectation, flipped, names_with_rules

POOL = 400
"""Places of each kind among which the rivals' disagreement chooses."""
SHOWN = 12
"""Previous tokens that are told of each pivot token."""
CONTROLS = 12
FAR = 16
"""Tokens before the pivot that are kept at most."""


class MineArgs(Expecting, frozen=True):
    """Arguments of `mine_near_misses`."""

    count: int = Field(40, ge=2, le=400, description="how many places, half of them silent ones where there are any")


class MineNearMisses(FeatureTool[MineArgs]):
    """Measures corpus places of the tokens on which it fires, active and silent ones. First come those on which rivals
    disagree, with all the context replaced that no rival reads. Gives the share that changes by this; `found` sets the
    tokens before silent places against those before active ones, so exceptions show.
    """

    name = "mine_near_misses"

    def design(self, args: MineArgs, lab: FeatureLab) -> Design:
        """Copies of the chosen places; the control is tokens on which it never fires."""
        rng, reach = generator(lab, args.seed, "mine"), _reach(lab)
        pools = [
            find_places(lab, "active", POOL, seed=args.seed),
            find_near_misses(lab, POOL, seed=args.seed),
            _others(lab, CONTROLS, rng),
        ]
        active, silent, others = (
            [_copy(lab, place, f"{kind} {i}", rng, reach) for i, place in enumerate(pool, start=1)]
            for kind, pool in zip(("active", "silent", "other"), pools, strict=True)
        )
        eligible = filter_by_expectation(lab, [*silent, *active], args.expect)
        chosen = in_turn(_disputed_first(lab, eligible), lambda item: item.about["was"] >= ACTIVE)[: args.count]
        question = f"Do places with the same token behave as in the corpus when {reach} tokens before it are kept?"
        control = [[list(item.ids), item.pivot] for item in others]
        return Design(question, "response", tuple(chosen), {"control": control, "kept": reach})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of places at another level than in the corpus."""
        control = [Item("other", tuple(ids), pivot) for ids, pivot in design.plan["control"]]
        responses = lab.respond([*design.items, *control])
        values, others = responses[: len(design.items)], responses[len(design.items) :]
        flips = flipped(values, [item.about["was"] for item in design.items])
        share = mean([float(flip) for flip in flips], seed=lab.seed)
        quiet = mean(others, seed=lab.seed) if others else None
        what = "tokens on which it never fires"
        flipping = {
            item.about["text"]: [item.about["was"], value]
            for item, value, flip in zip(design.items, values, flips, strict=True)
            if flip
        }
        return Measured(
            values,
            share.value,
            *(share.interval or (None, None)),
            n=len(values),
            units="share of places that change with the unread context",
            normalised_by=lab.normalised_by,
            control=None if quiet is None else Control(what, quiet.value, *(quiet.interval or ())),
            found={**_previous(lab), "was and is": flipping},
        )


def _copy(lab: FeatureLab, place: Place, label: str, rng: np.random.Generator, reach: int) -> Item:
    """The place in its window, with other text before the `reach` tokens before the pivot."""
    start = max(0, place.pivot - reach)
    filling = silent_window(lab, rng, position=place.pivot).tolist()
    ids = (*filling[:start], *place.ids[start:])
    text = excerpt(lab, place.ids, place.pivot)
    return Item(f"{label}: {text}", ids, place.pivot, {"was": round(place.value, 5), "text": text})


def _disputed_first(lab: FeatureLab, items: Sequence[Item]) -> list[Item]:
    """Those on which the rivals' rules are furthest apart first; the order stays among equals."""
    names = names_with_rules(lab)
    if len(names) < 2 or not items:
        return list(items)
    predictions = np.array([expectations(lab, name, items) for name in names], np.float64)
    return [items[i] for i in np.argsort(-np.ptp(predictions, axis=0), kind="stable").tolist()]


def _others(lab: FeatureLab, count: int, rng: np.random.Generator) -> list[Place]:
    """Random places of tokens on which it never fires."""
    windows, fires = lab.windows, lab.fires_on
    rows, positions = np.nonzero(~np.isin(windows.ids, list(fires)) & np.isfinite(windows.values))
    drawn = rng.choice(len(rows), size=min(count, len(rows)), replace=False).tolist()
    return [
        Place(tuple(windows.ids[rows[i]].tolist()), int(positions[i]), float(windows.values[rows[i], positions[i]]))
        for i in drawn
    ]


def _previous(lab: FeatureLab) -> dict[str, Any]:
    """What stands before active and before silent places of the tokens on which it fires, in the whole corpus part."""
    table, only = {}, Counter[str]()
    for token, active, silent in preceding(lab, most=SHOWN):
        only.update({lab.vocabulary[t]: n for t, n in silent.items() if n > 1 and t not in active})
        table[lab.vocabulary[token]] = {
            "active": active.total(),
            "silent": silent.total(),
            "before active": {lab.vocabulary[t]: n for t, n in active.most_common(SHOWN)},
            "before silent": {lab.vocabulary[t]: n for t, n in silent.most_common(SHOWN)},
        }
    return {"tokens": table, "only before silent": dict(only.most_common(SHOWN))}


def _reach(lab: FeatureLab) -> int:
    """How many tokens before the pivot the rivals' rules read, FAR at most."""
    rules = [rule for name in names_with_rules(lab) if (rule := lab.rivals[name].rule) is not None]
    reaches = [_read_by(condition) for rule in rules for condition in conditions(rule)]
    return min(max(reaches, default=0), FAR) if rules else FAR


def _read_by(condition: Condition) -> int:
    match condition:
        case Token() | Class() | Regex(of="token"):
            return condition.reach
        case Text():
            # Of at least one character a token.
            return condition.reach + len(condition.ending)
        case Position():
            return 0
        case _:
            return FAR
