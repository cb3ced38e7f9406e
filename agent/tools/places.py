"""The places that a tool is to use (explainers/battery/places.py), and arguments that causal tools share."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ...data.records import Example
from ...explainers.battery.places import SILENT, Place, active_in, find_active, find_near_misses, find_silent
from ..loop.feature_lab import FeatureLab
from ..loop.hypotheses import StrictModel
from ..loop.rejections import RejectedError

Where = Literal["active", "near_miss", "silent"]


class Drawn(StrictModel, frozen=True):
    """Arguments of tools that draw something."""

    seed: int = Field(0, ge=0, description="another number gives another draw of whatever is random")


class Carried(Drawn, frozen=True):
    """Arguments of tools that change training windows."""

    windows: tuple[str, ...] = Field(
        (), max_length=16, description="digests of the training windows to use; none: the tool chooses"
    )


def find_places(
    lab: FeatureLab, where: Where, count: int, *, before: int = 0, windows: Sequence[str] = (), seed: int = 0
) -> list[Place]:
    """Up to `count` places with at least `before` tokens before them, of as many different tokens as there are.

    With `windows` (digests) one place of each of these. Raises RejectedError where there is no place.
    """
    if windows:
        return [_in_window(lab, lab.window(digest), where, before, seed) for digest in windows]
    drawn = {"active": find_active, "near_miss": find_near_misses, "silent": find_silent}
    chosen = drawn[where](lab, count, before, seed)
    if not chosen:
        raise RejectedError(
            "no_place",
            f"{lab.target} has no {where} place with {before} tokens before it in its training windows; "
            f"use {'silent' if where != 'silent' else 'active'} places, or fewer tokens before",
            where=where,
        )
    return chosen


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
        message = f"window {example.window} has no {where} place with {before} tokens before it"
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
