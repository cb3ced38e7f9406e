"""Small random edits of training windows: the test that knows of no hypothesis, or one that is aimed at two of them.

Edits are the minimal pairs of `data/counterfactual.py`. Rules are code, so that many more can be made than are
measured: of these half are kept for which the leader's rule predicts silence; or those that break a condition of
its rule (`boundary`); or those of all these on which two rivals differ (`aimed`).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ...data.counterfactual import minimal_pairs
from ...subject.errors import NeuronautError
from ..investigation.experiments import Design, Item, Measured
from ..investigation.lab import FeatureLab
from ..investigation.levels import levels_of
from .boundary import broken, brought_about, differences
from .changed import Expecting, as_expected, changed, design_changes, expected, measure_changes, ruled
from .places import SILENT, Place, generator, in_turn

CANDIDATES = 10
"""Edits that are made for each that is kept."""


class EditArgs(Expecting, frozen=True):
    count: int = Field(40, ge=2, le=400, description="how many edits are measured")
    aimed: bool = Field(False, description="keep only edits on which two rivals differ in level")
    rivals: tuple[str, ...] = Field(
        (), max_length=2, description="names of the two rivals for aimed; none: the first two that have rules"
    )
    boundary: bool = Field(
        False,
        description="edit where the leading rule holds: break one condition at a time, put an exception in; and write "
        "its causes where it does not hold",
    )


class EditAtRandom:
    """Makes small random edits of training windows: another pivot token, tokens before it replaced, swapped, inserted
    or transplanted. Gives the share that flips. The general test of a rule; `aimed` tells two rivals apart and
    `boundary` attacks the leading rule's conditions."""

    name: ClassVar[str] = "edit_at_random"
    version: ClassVar[int] = 2
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = False
    args: type[EditArgs] = EditArgs

    def design(self, args: EditArgs, lab: FeatureLab) -> Design:
        """The most telling of the candidates."""
        rng = generator(lab, args.seed, "edits")
        carriers: dict[Place, int] = {}
        names = _two(lab, args.rivals) if args.aimed else ruled(lab)[:1]
        if args.boundary and not names:
            raise NeuronautError("boundary needs a hypothesis with a rule; propose one, or edit without")
        items: list[Item] = []
        if args.aimed or args.boundary:
            items += _at_boundaries(lab, names, carriers, rng)
        if args.aimed or not args.boundary:
            items += _at_random(lab, CANDIDATES * args.count, carriers, seed=args.seed)
        items = as_expected(lab, _distinct(items), args.expect)
        if args.aimed:
            items = _apart(lab, items, names)
        elif args.boundary:
            items = in_turn(items, lambda item: item.about["group"])
        elif names and args.expect == "any":
            silent = [value is not None and value < SILENT for value in expected(lab, names[0], items)]
            halves = dict(zip((item.label for item in items), silent, strict=True))
            items = in_turn(items, lambda item: halves[item.label])
        kept = items[: args.count]
        used = {item.about["carrier"] for item in kept}
        shown = [place for place, number in carriers.items() if number in used]
        question = f"What do small edits change{' on which ' + ' and '.join(names) + ' differ' if args.aimed else ''}?"
        return design_changes(question, lab, shown, kept, seed=args.seed, about={"candidates": len(items)})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of edits that flip; by kind of edit in `found`."""
        return measure_changes(design, lab)


def _at_random(lab: FeatureLab, count: int, carriers: dict[Place, int], *, seed: int) -> list[Item]:
    """Minimal pairs of the training examples."""
    pairs = minimal_pairs(
        lab.examples, peak=lab.scale, corpus=lab.batch.background.ids, count=count, seed=lab.seed + 1000 * seed
    )
    items = []
    for pair in pairs:
        example, ids = lab.examples[pair.example], tuple(pair.tokens.tolist())
        value = float(example.activations[pair.pivot]) / lab.scale
        place = Place(tuple(example.ids.tolist()), pair.pivot, value)
        changes = [position for position, (a, b) in enumerate(zip(place.ids, ids, strict=True)) if a != b]
        group = "the pivot" if changes == [pair.pivot] else "one token before" if len(changes) == 1 else "several"
        items.append(_item(lab, place, ids, carriers, group))
    return items


def _at_boundaries(
    lab: FeatureLab, names: Sequence[str], carriers: dict[Place, int], rng: np.random.Generator
) -> list[Item]:
    """Edits of the rivals' conditions."""
    rules = [rule for name in names if (rule := lab.rivals[name].rule) is not None]
    edits = [edit for rule in rules for edit in (*broken(lab, rule, rng), *brought_about(lab, rule, rng))]
    return [_item(lab, edit.place, edit.place.change(edit.tokens), carriers, edit.group) for edit in edits]


def _item(lab: FeatureLab, place: Place, ids: tuple[int, ...], carriers: dict[Place, int], group: str) -> Item:
    number = carriers.setdefault(place, len(carriers) + 1)
    told = f"{differences(lab, place.ids, ids, place.pivot)} in carrier {number}"
    return changed(place, ids, carrier=number, label=told, group=group)


def _distinct(items: Sequence[Item]) -> list[Item]:
    """Each edited text once, and no label twice."""
    texts = {(item.ids[: item.pivot + 1], item.pivot): item for item in reversed(items)}
    found: dict[str, Item] = {}
    for item in reversed(list(texts.values())):
        label = item.label if item.label not in found else f"{item.label} ({len(found)})"
        found[label] = Item(label, item.ids, item.pivot, {**item.about, "put": label})
    return list(found.values())


def _two(lab: FeatureLab, named: Sequence[str]) -> list[str]:
    """The two rivals that edits are aimed at."""
    with_rule = ruled(lab)
    if unknown := [name for name in named if name not in with_rule]:
        raise NeuronautError(f"{unknown[0]} has no rule; rivals that have one: {', '.join(with_rule) or 'none'}")
    names = list(dict.fromkeys([*named, *with_rule]))[:2]
    if len(names) < 2:
        raise NeuronautError(f"aimed edits need two rivals with rules, and there is {len(names)}; use aimed=false")
    return names


def _apart(lab: FeatureLab, items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The items for which the two predict different levels, each kind of edit and each direction in turn."""
    one, other = (np.array(expected(lab, name, items), np.float64) for name in names)
    apart = np.flatnonzero(levels_of(one.tolist()) != levels_of(other.tolist())).tolist()
    if not apart:
        raise NeuronautError(
            f"{names[0]} and {names[1]} predict the same for all {len(items)} edits; name other rivals"
        )
    apart.sort(key=lambda i: -abs(one[i] - other[i]))
    return [items[i] for i in in_turn(apart, lambda i: (items[i].about["group"], bool(one[i] > other[i])))]
