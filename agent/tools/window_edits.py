"""Experiments that change windows and ask what flips: what they share; and RunTexts, which runs a policy's own texts.

Every item is a copy of a place (its carrier) with something changed. It has flipped where its level is another than
the carrier's, and by more than a rounding's breadth. The control is a change where none should matter, that of the
window's first token. The headline is the share of items that flip, a mean over carriers with its interval.

A text of a policy stands at the window's start; its item is the token that is marked with «», or the last one: it is
fixed before anything is measured. The control has the same tokens in another order, measured at the same position.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints

from ...causal.measures import Mean, mean
from ...explainers.battery.places import Place, common_tokens, excerpt, generator, silent_window
from ...rules.language import Condition, Rule
from ...subject.errors import NeuronautError
from ..loop.experiments import Control, Design, Item, Measured
from ..loop.feature_lab import FeatureLab
from ..loop.levels import EDGES, levels_of
from .base import Expect, FeatureTool
from .places import Drawn

APART = 0.1
"""How far a value is at least from its carrier's to have flipped, in units of the scale."""
RANDOM_CONTROLS = 2
"""Changes of the first token, of each of the first FIRST carriers."""
FIRST = 8
FLIPS_SHOWN = 40
"""Flips of one group that are told."""


class Expecting(Drawn, frozen=True):
    """Arguments of tools that can pick by what the leading hypothesis says."""

    expect: Expect = Field(
        "any", description="keep only inputs for which the leading hypothesis's rule predicts silence, or activity"
    )


def changed_copy(place: Place, ids: tuple[int, ...], *, carrier: int, label: str, group: str, put: str = "") -> Item:
    """A copy of a place with other tokens; its flips are listed under `group`, by `put` or else by label."""
    about = {"carrier": carrier, "was": round(place.value, 5), "group": group, "put": put or label}
    return Item(label, ids, place.pivot, about)


def expectations(lab: FeatureLab, name: str, items: Sequence[Item]) -> tuple[float | None, ...]:
    """What a rival expects of each item, in units of the scale."""
    return lab.expect(lab.rivals[name], Design("", "response", tuple(items)))


def names_with_rules(lab: FeatureLab) -> list[str]:
    """Names of the rivals that have a rule, in their order."""
    return [name for name, hypothesis in lab.rivals.items() if hypothesis.rule is not None]


def conditions(rule: Rule) -> list[Condition]:
    """Every condition of a rule, exceptions too."""
    return [*rule.unless, *(part for clause in rule.any for part in (*clause.when, *clause.unless))]


def filter_by_expectation(lab: FeatureLab, items: Sequence[Item], expect: Expect) -> list[Item]:
    """The items for which the leader's rule predicts this; NeuronautError where it predicts it of none."""
    if expect == "any":
        return list(items)
    leader = next(iter(names_with_rules(lab)), None)
    if leader is None:
        raise NeuronautError(f"expect={expect} needs a hypothesis with a rule; use expect=any")
    predictions = expectations(lab, leader, items)
    silent = expect == "silence"
    eligible = [
        i for i, value in zip(items, predictions, strict=True) if value is not None and (value < EDGES[1]) == silent
    ]
    if not eligible:
        raise NeuronautError(f"{leader} predicts {expect} for none of these {len(items)} inputs; use expect=any")
    return eligible


def design_changes(
    question: str,
    lab: FeatureLab,
    carriers: Sequence[Place],
    items: Sequence[Item],
    *,
    seed: int,
    about: Mapping[str, Any] | None = None,
) -> Design:
    """Designs the experiment on these items, with its control; `about` joins what is found."""
    if not items:
        raise NeuronautError(f"{lab.target}: there is nothing to change with these arguments; choose others")
    rng, tokens = generator(lab, seed, "sham"), common_tokens(lab)
    random_controls = []
    for place in carriers[:FIRST]:
        others = [token for token in tokens if token != place.ids[0]]
        if place.pivot and others:
            picked = rng.choice(others, size=min(RANDOM_CONTROLS, len(others)), replace=False).tolist()
            random_controls += [[list(place.put(0, token)), place.pivot, round(place.value, 5)] for token in picked]
    rows = [
        {"text": excerpt(lab, place.ids, place.pivot), "position": place.pivot, "value": round(place.value, 3)}
        for place in carriers
    ]
    return Design(
        question, "response", tuple(items), {"carriers": rows, "control": random_controls, "about": dict(about or {})}
    )


def measure_changes(design: Design, lab: FeatureLab) -> Measured:
    """Measures items and control: the share of items that flip."""
    random_controls = [(Item("sham", tuple(ids), pivot), was) for ids, pivot, was in design.plan["control"]]
    responses = lab.respond([*design.items, *(item for item, _ in random_controls)])
    values, others = responses[: len(design.items)], responses[len(design.items) :]
    flips = flipped(values, [item.about["was"] for item in design.items])
    share = by_carrier(design.items, flips, seed=lab.seed)
    control = None
    if random_controls:
        quiet = mean([float(flip) for flip in flipped(others, [was for _, was in random_controls])], seed=lab.seed)
        control = Control(
            f"{len(random_controls)} changes of the window's first token", quiet.value, *(quiet.interval or ())
        )
    return Measured(
        values,
        share.value,
        *(share.interval or (None, None)),
        n=len(values),
        units="share of changes that flip",
        normalised_by=lab.normalised_by,
        control=control,
        found={**design.plan["about"], "carriers": design.plan["carriers"], **_by_group(design.items, values, flips)},
    )


def flipped(values: Sequence[float], was: Sequence[float]) -> list[bool]:
    """Whether each value is on another level than it was, and not just beside an edge."""
    other = levels_of(values, "response") != levels_of(was, "response")
    return (other & (np.abs(np.subtract(values, was)) >= APART)).tolist()


def by_carrier(items: Sequence[Item], values: Sequence[float], *, seed: int) -> Mean:
    """Mean over carriers of the mean over each one's items."""
    groups: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        groups.setdefault(item.about["carrier"], []).append(float(value))
    return mean([sum(group) / len(group) for group in groups.values()], seed=seed)


def _by_group(items: Sequence[Item], values: Sequence[float], flips: Sequence[bool]) -> dict[str, Any]:
    """By group: how many items, their mean, the share that flips; and which flip, or, of most, which do not."""
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.about["group"], []).append(i)
    table, lists, rest = {}, {}, {}
    for group, members in groups.items():
        flipping = [i for i in members if flips[i]]
        average, share = float(np.mean([values[i] for i in members])), len(flipping) / len(members)
        table[group] = {"items": len(members), "mean": round(average, 3), "flipped": round(share, 4)}
        flipping.sort(key=lambda i: -abs(values[i] - items[i].about["was"]))
        if 2 * len(flipping) > len(members):
            rest[group] = {items[i].about["put"]: values[i] for i in members if not flips[i]}
        elif flipping:
            lists[group] = {items[i].about["put"]: values[i] for i in flipping[:FLIPS_SHOWN]}
    return {"groups": table, "flips": lists, "nearly all flip but": rest}


TOKENS_SHOWN = 64
"""Tokens of a text that are told with their values."""
_MARKED = re.compile("([^«»]*)(?:«([^«»]+)»([^«»]*))?")

Words = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class TextsArgs(Drawn, frozen=True):
    """Arguments of `run_texts`."""

    texts: tuple[Words, ...] = Field(
        (), max_length=64, description="texts to run; «» around a token marks the one that is asked, else the last one"
    )


class RunTexts(FeatureTool[TextsArgs]):
    """Runs texts that you write; the marked («») or last token of each is judged. Gives the mean over texts, and where
    else in them it fires.
    """

    name = "run_texts"

    def design(self, args: TextsArgs, lab: FeatureLab) -> Design:
        """One item for each text that can be read, filled up with corpus text, which a causal model does not see."""
        if not args.texts:
            raise NeuronautError('run_texts was given no text; wanted some, as in {"texts": ["the old «river»"]}')
        rng = generator(lab, args.seed, "texts")
        items, control, left_out = [], [], []
        for number, text in enumerate(args.texts, start=1):
            try:
                ids, pivot = _read(text, lab)
            except NeuronautError as error:
                left_out.append(f"text {number}: {error}")
                continue
            filling = silent_window(lab, rng, position=pivot).tolist()
            window = (*ids, *filling[len(ids) :])
            about = {"text": number, "tokens": len(ids)}
            items.append(Item(f"text {number}: {excerpt(lab, ids, pivot)}", window, pivot, about))
            shuffled = rng.permutation(ids[: pivot + 1]).tolist()
            if shuffled != ids[: pivot + 1]:
                control.append([[*shuffled, *window[pivot + 1 :]], pivot])
        if not items:
            raise NeuronautError("; ".join(left_out))
        plan = {"control": control, "left_out": left_out}
        return Design("What does it do on these texts?", "response", tuple(items), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The mean at the asked tokens; `found` has the value of every token."""
        rows = lab.read(np.array([item.ids for item in design.items], np.int64)) / lab.scale
        values = tuple(round(float(row[item.pivot]), 5) for row, item in zip(rows, design.items, strict=True))
        average = mean(values, seed=lab.seed)
        texts = [
            {
                "tokens": [lab.vocabulary[token] for token in item.ids[: min(item.about["tokens"], TOKENS_SHOWN)]],
                "values": [round(float(value), 3) for value in row[: min(item.about["tokens"], TOKENS_SHOWN)]],
                "asked": item.pivot,
            }
            for item, row in zip(design.items, rows, strict=True)
        ]
        control = None
        if design.plan["control"]:
            responses = lab.respond([Item("shuffled", tuple(ids), pivot) for ids, pivot in design.plan["control"]])
            quiet = mean(responses, seed=lab.seed)
            control = Control("the same tokens in another order", quiet.value, *(quiet.interval or ()))
        return Measured(
            values,
            average.value,
            *(average.interval or (None, None)),
            n=len(values),
            units="share of the scale",
            normalised_by=lab.normalised_by,
            control=control,
            found={"texts": texts, "not run": design.plan.get("left_out", [])},
        )


def _read(text: str, lab: FeatureLab) -> tuple[list[int], int]:
    """Token ids of a text without its marks, and the position of the token that is asked."""
    parts = _MARKED.fullmatch(text)
    if parts is None:
        raise NeuronautError(f"{text[:60]!r} has more marks than one pair of «»; mark one token")
    before, marked, after = (part or "" for part in parts.groups())
    ids, head = lab.subject.encode(before + marked + after), lab.subject.encode(before + marked)
    if not head or len(ids) > lab.width:
        raise NeuronautError(f"{text[:60]!r} has {len(ids)} tokens; wanted 1 to {lab.width}, as windows have")
    if ids[: len(head)] != head:
        there = [lab.vocabulary[token] for token in ids]
        raise NeuronautError(f"the mark in {text[:60]!r} ends inside a token; mark whole ones of {there}")
    return ids, len(head) - 1
