"""The places that a tool is to use (explainers/battery/places.py), and arguments that causal tools share."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ...data.records import Example
from ...explainers.battery.places import SILENT, Place, active_in, find_active, find_near_misses, find_silent
from ..loop.experiments import Design, Item
from ..loop.feature_lab import FeatureLab
from ..loop.hypotheses import StrictModel
from ..loop.rejections import RejectedError

Where = Literal["active", "near_miss", "silent"]
POOL = 256
"""Places among which those of a hypothesis are looked for."""
PIVOTS = 6
"""Pivot tokens that a question names."""


class Drawn(StrictModel, frozen=True):
    """Arguments of tools that draw something."""

    seed: int = Field(0, ge=0, description="another number gives another draw of whatever is random")


class Carried(Drawn, frozen=True):
    """Arguments of tools that change training windows."""

    windows: tuple[str, ...] = Field(
        (), max_length=16, description="digests of the training windows to use; none: the tool chooses"
    )


class OfClaim(Carried, frozen=True):
    """Arguments of tools whose places begin with that of a hypothesis."""

    about: str = Field("", max_length=12, description="hypothesis whose pivot token comes first; none: the leader")


def find_places(
    lab: FeatureLab,
    where: Where,
    count: int,
    *,
    before: int = 0,
    windows: Sequence[str] = (),
    seed: int = 0,
    about: str = "",
) -> list[Place]:
    """Up to `count` places with at least `before` tokens before them, of as many different tokens as there are.

    The first one is of the token on which the hypothesis that is asked `about`, else the leader, fires most strongly.
    With `windows` (digests) one place of each of these. Raises RejectedError where there is no place.
    """
    if windows:
        return [_in_window(lab, lab.window(digest), where, before, seed) for digest in windows]
    pivot = _pivot_of(lab, about)
    if where == "silent":
        chosen = find_silent(lab, count, before, seed)
    else:
        find = find_active if where == "active" else find_near_misses
        places = find(lab, POOL, before, seed)
        first = next((place for place in places if place.token == pivot), None)
        chosen = sorted(places, key=lambda place: place is not first)[:count]
    if not chosen:
        raise RejectedError(
            "no_place",
            f"{lab.target} has no {where} place with {before} tokens before it in its training windows; "
            f"use {'silent' if where != 'silent' else 'active'} places, or fewer tokens before",
            where=where,
        )
    return chosen


def _pivot_of(lab: FeatureLab, about: str) -> int | None:
    """The token of the strongest active place where a hypothesis predicts activity; the leader's where none is named.

    None where no hypothesis has a rule, or its rule holds at no active place.
    """
    rules = {name: hypothesis for name, hypothesis in lab.rivals.items() if hypothesis.rule is not None}
    if about and about not in rules:
        raise RejectedError(
            "bad_call", f"about={about} is no rival with a rule; there are {', '.join(rules) or 'none'}"
        )
    claim = rules.get(about) or next(iter(rules.values()), None)
    if claim is None:
        return None
    places = find_active(lab, POOL, 0, 0)
    expected = lab.expect(claim, Design("", "response", tuple(Item("", place.ids, place.pivot) for place in places)))
    fires = [place for place, value in zip(places, expected, strict=True) if value is not None and value >= SILENT]
    return max(fires, key=lambda place: place.value).token if fires else None


def tell_pivots(lab: FeatureLab, places: Sequence[Place]) -> str:
    """The tokens at the pivots, for the question that an experiment asks."""
    tokens = dict.fromkeys(lab.vocabulary[place.token] for place in places)
    return ", ".join(f"«{token}»" for token in list(tokens)[:PIVOTS]) + ", ..." * (len(tokens) > PIVOTS)


def _in_window(lab: FeatureLab, example: Example, where: Where, before: int, seed: int) -> Place:
    """The place of one window that was named."""
    if where == "active":
        place = active_in(lab, example, before, seed)
    else:
        fires, values = lab.fires_on, example.activations / lab.scale
        rank = {token: place for place, token in enumerate(fires)}
        quiet = [p for p in range(before, len(values)) if values[p] < SILENT]
        here = [p for p in quiet if (int(example.ids[p]) in rank) == (where == "near_miss")]
        pivot = min(here, key=lambda p: rank.get(int(example.ids[p]), 0), default=None)
        place = None if pivot is None else Place(tuple(lab.fill(example.ids).tolist()), pivot, float(values[pivot]))
    if place is None:
        kind = {"active": "token of level strong", "near_miss": "silent token that fires elsewhere"}.get(where)
        message = f"window {example.window} has no {kind or 'silent token'} with {before} tokens before it"
        raise RejectedError("no_place", message, where=where)
    return place


class ActiveArgs(Carried, frozen=True):
    """Arguments of tools that look at places where the feature is active."""

    count: int = Field(6, ge=2, le=32, description="how many active places to use, the strongest first")


class TokenArgs(Drawn, frozen=True):
    """Arguments of tools whose items are tokens."""

    count: int = Field(6, ge=2, le=32, description="how many places to use; active ones are the strongest first")
    tokens: tuple[str, ...] = Field(
        (),
        max_length=20,
        description="tokens to ask about beside those that hypotheses claim, as the examples show them (' the')",
    )
