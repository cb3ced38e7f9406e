"""What a pivot needs to have happened before it: an earlier copy of its token, or something that is still open.

Every carrier is first made bare: all earlier copies of the pivot token, or all quotes or brackets before it, are
replaced by neutral words. One thing is then put back at a distance d: a copy; an opening mark; or an opening mark and,
half as far, a closing one, so that what is counted rises and what is open does not. The control has one more neutral
word there. The headline is what the thing does: the mean of copies with it less that of the same without.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ...causal.measures import mean
from ...explainers.battery.places import Place, common_tokens, excerpt, find_near_misses, generator
from ...rules.language import CLASSES
from ...subject.errors import NeuronautError
from ..loop.experiments import Control, Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import Carried, find_places
from .window_edits import Expecting, filter_by_expectation

State = Literal["repeat", "induction", "double", "single", "parentheses", "brackets", "braces"]
MARKS: Mapping[str, tuple[str, str]] = {
    "double": ('"', '"'),
    "single": ("'", "'"),
    "parentheses": ("(", ")"),
    "brackets": ("[", "]"),
    "braces": ("{", "}"),
}
DISTANCES = (1, 2, 3, 4, 6, 8, 16, 32, 64)
WITH: tuple[str, ...] = ("copied", "opened")
"""Ways in which the thing is there; in the others it is not."""


class ProbeArgs(Carried, Expecting, frozen=True):
    """Arguments of `probe_state`."""

    what: State = Field(
        "repeat",
        description="repeat: an earlier copy of the pivot token; induction: of it and the token before it; else which "
        "quotes or brackets are open",
    )
    count: int = Field(6, ge=1, le=24, description="how many places, half of them near misses where there are any")


class ProbeState(FeatureTool[ProbeArgs]):
    """Adds or takes away an earlier copy of the pivot token, or an open quote or bracket. At several distances; gives
    how much the copy or the open mark adds; `found` has the mean by distance.
    """

    name = "probe_state"

    def design(self, args: ProbeArgs, lab: FeatureLab) -> Design:
        """Each place bare, and with the thing at every distance; the control is a neutral word at the same ones."""
        marks = _marks(lab, args.what) if args.what in MARKS else None
        rng, neutral = generator(lab, args.seed, "probe"), _neutral(lab)
        items, control, texts = [], [], []
        for number, place in enumerate(_places(lab, args), start=1):
            words = [token for token in neutral if token != place.token]
            bare = _strip(lab, place, args.what, words, rng)
            texts.append(excerpt(lab, place.ids, place.pivot))
            items.append(_item(bare, place, number, "bare", 0))
            for distance in (d for d in DISTANCES if d <= place.pivot):
                variants = _variants(bare, place, args.what, distance, marks)
                items += [_item(ids, place, number, way, distance) for way, ids in variants.items()]
                at = place.pivot - distance
                control.append([[*bare[:at], int(rng.choice(words)), *bare[at + 1 :]], place.pivot, number])
        items = filter_by_expectation(lab, items, args.expect)
        what = "an earlier copy of the token" if marks is None else f"an open mark ({args.what})"
        plan = {"carriers": texts, "control": control}
        return Design(f"Does {what} before the pivot matter, and how far away?", "response", tuple(items), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The mean with the thing less the mean without, over places; of the control likewise."""
        control = [Item("neutral", tuple(ids), pivot) for ids, pivot, _ in design.plan["control"]]
        responses = lab.respond([*design.items, *control])
        values, others = responses[: len(design.items)], responses[len(design.items) :]
        without: dict[int, list[float]] = {}
        there: dict[int, list[float]] = {}
        curves: dict[str, dict[str, list[float]]] = {}
        for item, value in zip(design.items, values, strict=True):
            way, carrier = item.about["way"], item.about["carrier"]
            (there if way in WITH else without).setdefault(carrier, []).append(value)
            curves.setdefault(way, {}).setdefault(str(item.about["distance"]), []).append(value)
        carriers = [carrier for carrier in there if carrier in without]
        if not carriers:
            raise NeuronautError("no place is left both with and without it; use expect=any")
        gain = mean([float(np.mean(there[c]) - np.mean(without[c])) for c in carriers], seed=lab.seed)
        random_control = [
            value - float(np.mean(without[number]))
            for value, (_, _, number) in zip(others, design.plan["control"], strict=True)
            if number in carriers
        ]
        quiet = mean(random_control, seed=lab.seed) if random_control else None
        means = {way: {d: round(float(np.mean(v)), 3) for d, v in curve.items()} for way, curve in curves.items()}
        return Measured(
            values,
            gain.value,
            *(gain.interval or (None, None)),
            n=len(carriers),
            units="share of the scale, added",
            normalised_by=lab.normalised_by,
            control=quiet and Control("a neutral word at the same places", quiet.value, *(quiet.interval or ())),
            found={"mean by distance": means, "carriers": design.plan["carriers"]},
        )


def _places(lab: FeatureLab, args: ProbeArgs) -> list[Place]:
    """Active places and near misses, half of each where there are."""
    if args.windows:
        return find_places(lab, "active", args.count, before=2, windows=args.windows, seed=args.seed)
    silent = find_near_misses(lab, args.count // 2, before=2, seed=args.seed)
    return [*find_places(lab, "active", args.count - len(silent), before=2, seed=args.seed), *silent]


def _marks(lab: FeatureLab, what: str) -> tuple[int, int]:
    """The commonest tokens that are nothing but the opening and the closing mark."""
    tokens = []
    for mark in MARKS[what]:
        token = next((token for token in common_tokens(lab) if lab.vocabulary[token].strip() == mark), None)
        if token is None:
            raise NeuronautError(f"no token of the corpus is {mark!r} alone; probe something else than {what}")
        tokens.append(token)
    return tokens[0], tokens[1]


def _neutral(lab: FeatureLab) -> list[int]:
    """Words of the corpus: no mark of any kind is opened or closed by them."""
    return [token for token in common_tokens(lab) if CLASSES["word"](lab.vocabulary[token])]


def _strip(lab: FeatureLab, place: Place, what: str, words: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """The window without any earlier copy of the pivot token, or without any of the marks before it."""
    if what in MARKS:
        goes = [any(mark in lab.vocabulary[token] for mark in MARKS[what]) for token in place.ids[: place.pivot]]
    else:
        goes = [token == place.token for token in place.ids[: place.pivot]]
    drawn = rng.choice(words, size=place.pivot).tolist()
    return place.change({position: drawn[position] for position, gone in enumerate(goes) if gone})


def _variants(
    bare: tuple[int, ...], place: Place, what: str, distance: int, marks: tuple[int, int] | None
) -> dict[str, tuple[int, ...]]:
    """By way, the bare window with the thing at the distance; fewer ways where there is no room."""
    changed, at = Place(bare, place.pivot, 0.0), place.pivot - distance
    if marks is not None:
        variants = {"opened": changed.put(at, marks[0])}
        if distance > 1:
            variants["opened and closed"] = changed.change({at: marks[0], place.pivot - distance // 2: marks[1]})
        return variants
    if what == "repeat":
        return {"copied": changed.put(at, place.token)}
    # The copied pair must not overlap the pivot's own.
    if distance < 2 or at < 1:
        return {}
    copied = {at - 1: bare[place.pivot - 1], at: place.token}
    return {"copied": changed.change(copied), "token alone copied": changed.put(at, place.token)}


def _item(ids: tuple[int, ...], place: Place, carrier: int, way: str, distance: int) -> Item:
    label = f"carrier {carrier}, {way}{f' at -{distance}' if distance else ''}"
    return Item(label, ids, place.pivot, {"carrier": carrier, "way": way, "distance": distance})
