"""Small random edits of training windows: the test that knows of no hypothesis, or one that is aimed at two of them.

Edits are the minimal pairs of `data/counterfactual.py`. Rules are code, so that many more can be made than are
measured: of these half are kept for which the leader's rule predicts silence; or those at the boundary of its rule
(`boundary`); or those of all these on which two rivals differ (`aimed`).

At the boundary of a rule one of its conditions is broken at a time, or an exception is brought about. At a training
place where a clause holds, the tokens that meet one condition are replaced by some that do not: by any, and by one of
the same class that the rule does not list. A token that the rule excludes is put in, and one of the same class that it
does not exclude. Since a rule may name what hardly occurs, its clauses are also written into places of other tokens,
every token that they name once, without and with each exception. Conditions on quotations, positions and repeats are
left to other tools.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
from pydantic import Field

from ...data.counterfactual import minimal_pairs
from ...explainers.battery.places import SILENT, Place, common_tokens, generator, in_turn, special_tokens
from ...rules.english import visible
from ...rules.evaluate import TokenGrid, clause_matches
from ...rules.language import CLASSES, Class, Condition, Regex, Rule, Token
from ...subject.errors import NeuronautError
from ..loop.experiments import Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from ..loop.levels import levels_of
from ..loop.rejections import RejectedError
from .base import FeatureTool
from .window_edits import (
    Expecting,
    changed_copy,
    design_changes,
    expectations,
    filter_by_expectation,
    measure_changes,
    names_with_rules,
)

CANDIDATES = 10
"""Edits that are made for each that is kept."""


class EditArgs(Expecting, frozen=True):
    """Arguments of `edit_at_random`."""

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


class EditAtRandom(FeatureTool[EditArgs]):
    """Makes small random edits of training windows: another pivot token, tokens before it replaced, swapped, inserted
    or transplanted. Gives the share that flips. The general test of a rule; `aimed` tells two rivals apart and
    `boundary` attacks the leading rule's conditions.
    """

    name = "edit_at_random"
    version = 2

    def design(self, args: EditArgs, lab: FeatureLab) -> Design:
        """Keeps the most telling of the candidates."""
        rng = generator(lab, args.seed, "edits")
        carriers: dict[Place, int] = {}
        names = _two_rivals(lab, args.rivals) if args.aimed else names_with_rules(lab)[:1]
        if args.boundary and not names:
            raise NeuronautError("boundary needs a hypothesis with a rule; propose one, or edit without")
        items: list[Item] = []
        if args.aimed or args.boundary:
            items += _at_boundaries(lab, names, carriers, rng)
        if args.aimed or not args.boundary:
            items += _at_random(lab, CANDIDATES * args.count, carriers, seed=args.seed)
        items = filter_by_expectation(lab, _distinct(items), args.expect)
        if args.aimed:
            items = _separating(lab, items, names)
        elif args.boundary:
            items = in_turn(items, lambda item: item.about["group"])
        elif names and args.expect == "any":
            silent = [value is not None and value < SILENT for value in expectations(lab, names[0], items)]
            halves = dict(zip((item.label for item in items), silent, strict=True))
            items = in_turn(items, lambda item: halves[item.label])
        chosen = items[: args.count]
        used = {item.about["carrier"] for item in chosen}
        carrier_places = [place for place, number in carriers.items() if number in used]
        question = f"What do small edits change{' on which ' + ' and '.join(names) + ' differ' if args.aimed else ''}?"
        return design_changes(question, lab, carrier_places, chosen, seed=args.seed, about={"candidates": len(items)})

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
        example, ids = lab.examples[pair.example], tuple(lab.fill(pair.tokens).tolist())
        value = float(example.activations[pair.pivot]) / lab.scale
        place = Place(tuple(lab.fill(example.ids).tolist()), pair.pivot, value)
        changes = [position for position, (a, b) in enumerate(zip(place.ids, ids, strict=True)) if a != b]
        group = "the pivot" if changes == [pair.pivot] else "one token before" if len(changes) == 1 else "several"
        items.append(_item(lab, place, ids, carriers, group))
    return items


def _at_boundaries(
    lab: FeatureLab, names: Sequence[str], carriers: dict[Place, int], rng: np.random.Generator
) -> list[Item]:
    """Edits of the rivals' conditions."""
    rules = [rule for name in names if (rule := lab.rivals[name].rule) is not None]
    edits = [edit for rule in rules for edit in (*break_conditions(lab, rule, rng), *write_causes(lab, rule, rng))]
    return [_item(lab, edit.place, edit.place.change(edit.tokens), carriers, edit.group) for edit in edits]


def _item(lab: FeatureLab, place: Place, ids: tuple[int, ...], carriers: dict[Place, int], group: str) -> Item:
    number = carriers.setdefault(place, len(carriers) + 1)
    label = f"{differences(lab, place.ids, ids, place.pivot)} in carrier {number}"
    return changed_copy(place, ids, carrier=number, label=label, group=group)


def _distinct(items: Sequence[Item]) -> list[Item]:
    """Each edited text once, and no label twice."""
    texts = {(item.ids[: item.pivot + 1], item.pivot): item for item in reversed(items)}
    by_label: dict[str, Item] = {}
    for item in reversed(list(texts.values())):
        label = item.label if item.label not in by_label else f"{item.label} ({len(by_label)})"
        by_label[label] = Item(label, item.ids, item.pivot, {**item.about, "put": label})
    return list(by_label.values())


def _two_rivals(lab: FeatureLab, wanted: Sequence[str]) -> list[str]:
    """The two rivals that edits are aimed at."""
    with_rule = names_with_rules(lab)
    if unknown := [name for name in wanted if name not in with_rule]:
        raise NeuronautError(f"{unknown[0]} has no rule; rivals that have one: {', '.join(with_rule) or 'none'}")
    names = list(dict.fromkeys([*wanted, *with_rule]))[:2]
    if len(names) < 2:
        raise NeuronautError(f"aimed edits need two rivals with rules, and there is {len(names)}; use aimed=false")
    return names


def _separating(lab: FeatureLab, items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The items for which the two predict different levels, each kind of edit and each direction in turn."""
    first, second = (np.array(expectations(lab, name, items), np.float64) for name in names)
    apart = np.flatnonzero(levels_of(first.tolist(), "response") != levels_of(second.tolist(), "response")).tolist()
    if not apart:
        raise RejectedError(
            "inseparable",
            f"{names[0]} and {names[1]} predict the same for all {len(items)} edits; name other rivals",
            rivals=(names[0], names[1]),
        )
    apart.sort(key=lambda i: -abs(first[i] - second[i]))
    return [items[i] for i in in_turn(apart, lambda i: (items[i].about["group"], bool(first[i] > second[i])))]


WINDOWS = 600
"""Training windows, the examples first, that are searched for places where a clause holds."""
PLACES, MOST = 4, 24
"""Places of each clause, and how many it is written into at most."""

OnToken = Token | Class | Regex


class Edit(NamedTuple):
    """A place, and what is changed in it."""

    place: Place
    tokens: dict[int, int]
    """By position."""
    label: str
    group: str


def break_conditions(lab: FeatureLab, rule: Rule, rng: np.random.Generator) -> list[Edit]:
    """Edits at places where a clause holds, of every clause of a rule."""
    windows = lab.windows
    ids, values = windows.ids[:WINDOWS], windows.values[:WINDOWS]
    grid = TokenGrid(lab.vocabulary, ids)
    edits: list[Edit] = []
    for clause in rule.any:
        rows, positions = np.nonzero(clause_matches(clause, grid) & np.isfinite(values))
        chosen = rng.permutation(len(rows))[:PLACES].tolist()
        for row, pivot in ((int(rows[i]), int(positions[i])) for i in chosen):
            place = Place(tuple(ids[row].tolist()), pivot, float(values[row, pivot]))
            for condition in clause.when:
                edits += _break_condition(lab, place, condition, rng)
            for exception in (*clause.unless, *rule.unless):
                edits += _put_exception_in(lab, place, exception, rng)
    return edits


def write_causes(lab: FeatureLab, rule: Rule, rng: np.random.Generator) -> Iterator[Edit]:
    """Edits that write every clause into random places, without and with an exception to it."""
    windows = lab.windows
    for clause in rule.any:
        causes = [(condition, _pool(lab, condition)) for condition in clause.when if _on_token(condition)]
        excepted = [(c, _pool(lab, c)) for c in (*clause.unless, *rule.unless) if _on_token(c)]
        for exception in (None, *excepted):
            conditions = [*causes, *([exception] if exception else [])]
            pools = [pool for _, pool in conditions]
            if not causes or not all(pools):
                continue
            for number in range(min(MOST, max(PLACES, *map(len, pools)))):
                row = int(rng.integers(len(windows.ids)))
                pivot = int(rng.integers(np.isfinite(windows.values[row]).sum()))
                place = Place(tuple(windows.ids[row].tolist()), pivot, float(windows.values[row, pivot]))
                at = [_positions(place, condition) for condition, _ in conditions]
                if all(at):
                    put = [(int(rng.choice(p)), pool[number % len(pool)]) for p, pool in zip(at, pools, strict=True)]
                    # What is excluded must not be written over what is required, so the last one gives way.
                    yield _put(
                        lab, place, dict(reversed(put)), "an exception written" if exception else "a cause written"
                    )


def _pool(lab: FeatureLab, condition: OnToken) -> list[int]:
    """All tokens of which a condition on a token holds."""
    holds, special = _matcher(condition), special_tokens(lab)
    return [token for token, text in enumerate(lab.vocabulary) if token not in special and holds(text)]


def _break_condition(lab: FeatureLab, place: Place, condition: Condition, rng: np.random.Generator) -> Iterator[Edit]:
    """Edits that replace the condition's tokens by others: any, and some of the same class."""
    if not _on_token(condition):
        return
    holds = _matcher(condition)
    at = [p for p in _positions(place, condition) if holds(lab.vocabulary[place.ids[p]])]
    others = [token for token in common_tokens(lab) if not holds(lab.vocabulary[token])]
    alike = _of_same_classes(lab, [place.ids[p] for p in at], others)
    for group, pool in (("a condition broken", others), ("an unlisted token of the same class", alike)):
        if at and pool:
            yield _put(lab, place, dict(zip(at, rng.choice(pool, size=len(at)).tolist(), strict=True)), group)


def _put_exception_in(lab: FeatureLab, place: Place, exception: Condition, rng: np.random.Generator) -> Iterator[Edit]:
    """Edits that put in a token that is excluded, and one of the same class that is not."""
    if not _on_token(exception) or not (at := list(_positions(place, exception))):
        return
    holds, tokens = _matcher(exception), common_tokens(lab)
    inside = [token for token in tokens if holds(lab.vocabulary[token])]
    outside = [token for token in tokens if not holds(lab.vocabulary[token])]
    alike = _of_same_classes(lab, inside, outside)
    for group, pool in (("an excluded token put in", inside), ("a token like the excluded ones put in", alike)):
        if pool:
            yield _put(lab, place, {int(rng.choice(at)): int(rng.choice(pool))}, group)


def _put(lab: FeatureLab, place: Place, tokens: dict[int, int], group: str) -> Edit:
    return Edit(place, tokens, differences(lab, place.ids, place.change(tokens), place.pivot), group)


def differences(lab: FeatureLab, was: Sequence[int], now: Sequence[int], pivot: int) -> str:
    """In words, which tokens an edited window has instead of which, by offset from the pivot."""
    positions = [position for position, (old, new) in enumerate(zip(was, now, strict=True)) if old != new]
    if len(positions) > 3:
        return f"{len(positions)} tokens changed from {positions[0] - pivot} to {positions[-1] - pivot}"
    return ", ".join(
        f"{visible(lab.vocabulary[now[p]])} for {visible(lab.vocabulary[was[p]])} at {p - pivot}" for p in positions
    )


def _on_token(condition: Condition) -> TypeGuard[OnToken]:
    return isinstance(condition, Token | Class) or (isinstance(condition, Regex) and condition.of == "token")


def _matcher(condition: OnToken) -> Callable[[str], bool]:
    match condition:
        case Token():
            return set(condition.any).__contains__
        case Class():
            return CLASSES[condition.name]
        case Regex():
            search = re.compile(condition.pattern).search
            return lambda token: search(token) is not None


def _positions(place: Place, condition: OnToken) -> range:
    """Where in the window the condition looks."""
    if condition.within is not None:
        return range(max(0, place.pivot - condition.reach), place.pivot)
    at = place.pivot + condition.at
    return range(at, at + 1) if at >= 0 else range(0)


def _of_same_classes(lab: FeatureLab, members: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of the others that are of every class that all members are of."""
    shared = [holds for holds in CLASSES.values() if members and all(holds(lab.vocabulary[t]) for t in members)]
    return [t for t in others if shared and all(holds(lab.vocabulary[t]) for holds in shared)]
