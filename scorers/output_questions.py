"""What is asked about a feature's output side: questions that set it against rivals drawn at random.

Each question shows two of a kind, A and B: one is the feature's, the other a rival's, made in the same way. A rival is
another feature of the source, of the same tail, held so high that it writes as much into the residual stream (in
norm) as the feature does at a multiple of its peak, so that strength tells nothing.

One prompt holds questions about one rival only, each about other tokens or another beginning. So the two
features play the same part in it, and the one that is asked about stands first in exactly half of the questions:
whatever is concluded from the texts alone is right half of the time on average. (With several rivals in one prompt,
what comes up in every question would be the feature's.)
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from ..causal.clamping import Clamp, steer
from ..data.records import Example
from ..explainers.output import LENGTH, STRENGTH, WRITTEN, quoted
from ..subject.address import Feature
from ..subject.directions import direction, promoted
from ..subject.model import Subject
from ..subject.sources import Source
from .holdout import Holdout

LISTS, LISTED = 2, 8
"""Token questions about a rival, and the tokens in each list: the highest ones, dealt out in turn."""
BEGINNINGS = 4
"""Continuation questions about a rival, each of another holdout window's beginning."""
SETTINGS = {
    "strength": STRENGTH, "lists": LISTS, "listed": LISTED, "beginnings": BEGINNINGS, "length": LENGTH,
    "written": WRITTEN,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sheet:
    """The questions of one prompt, all about one rival."""

    questions: tuple[tuple[str, ...], ...]
    """The lines of each question."""
    first: tuple[int, ...]
    """1 where A is the feature's, 0 where B is."""


class Sheets(NamedTuple):
    """What is asked about one set of examples, a sheet for each rival."""

    sheets: Sequence[Sheet] = ()
    windows: tuple[str, ...] = ()
    """Digests of the windows whose beginnings are continued."""
    shortage: Mapping[str, int] = {}
    """Why nothing is asked: how many there are of what there is too little of."""


class _Writer(NamedTuple):
    """A feature that writes something."""

    feature: Feature
    norm: float
    """Of its direction in the residual stream."""
    lists: list[str]
    """Its promoted tokens in LISTS lists of equal rank."""


def sheets(subject: Subject, source: Source, holdout: Holdout, *, rivals: int, seed: int) -> dict[str, Sheets]:
    """Questions about the "tokens" and the "continuations" of a feature; no sheet, and why, where there are none.

    Forwards: 12 * ceil((rivals + 2) / 4), of 16 short rows each.
    """
    rng = np.random.default_rng([seed, zlib.crc32(str(holdout.feature).encode())])
    own = _writer(subject, source, holdout.feature) if holdout.peak > 0 else None
    if own is None:
        return dict.fromkeys(("tokens", "continuations"), Sheets(shortage={"the feature writes nothing": 0}))
    others = list(islice(_rivals(subject, source, holdout.feature, rng), rivals))
    if not others:
        return dict.fromkeys(("tokens", "continuations"), Sheets(shortage={"other features that write": 0}))
    tokens = [_sheet([()] * LISTS, own.lists, other.lists, rng) for other in others]
    held = [Clamp(other.feature, STRENGTH * holdout.peak * own.norm / other.norm) for other in others]
    clamps = [Clamp(own.feature, STRENGTH * holdout.peak), *held]
    return {"tokens": Sheets(tokens), "continuations": _continued(subject, source, clamps, holdout, rng)}


def _continued(
    subject: Subject, source: Source, clamps: Sequence[Clamp], holdout: Holdout, rng: np.random.Generator
) -> Sheets:
    """Questions about the beginnings of holdout windows; the first clamp is the feature's."""
    begun = _beginnings(holdout)
    if not begun:
        return Sheets(shortage={"holdout windows (2 are wanted)": len(holdout.examples)})
    steered = steer(subject, source, clamps, [e.ids[:LENGTH].tolist() for e in begun], tokens=WRITTEN).steered
    own, *others = ([quoted("".join(subject.decode_tokens(row))) for row in rows] for rows in steered)
    heads = [(quoted("".join(example.tokens[:LENGTH])),) for example in begun]
    return Sheets([_sheet(heads, own, other, rng) for other in others], tuple(example.window for example in begun))


def _beginnings(holdout: Holdout) -> list[Example]:
    """An even number of windows, so that the feature can stand first in half of them; random ones where there are."""
    known = sorted(holdout.examples, key=lambda example: (example.kind != "random", example.window))
    return known[: min(BEGINNINGS, len(known)) // 2 * 2]


def _rivals(subject: Subject, source: Source, feature: Feature, rng: np.random.Generator) -> Iterator[_Writer]:
    """Other features that write something, in random order."""
    for index in rng.permutation(source.width).tolist():
        if index != feature.index:
            rival = _writer(subject, source, Feature(feature.source, index, feature.negative))
            if rival is not None:
                yield rival


def _writer(subject: Subject, source: Source, feature: Feature) -> _Writer | None:
    tokens = promoted(subject, source, feature, count=LISTS * LISTED)
    if not tokens.top:
        return None
    shown = [quoted(effect.token) for effect in tokens.top]
    norm = float(direction(subject, source, feature).vector.norm())
    return _Writer(feature, norm, [" ".join(shown[start::LISTS]) for start in range(LISTS)])


def _sheet(
    heads: Sequence[tuple[str, ...]], own: Sequence[str], other: Sequence[str], rng: np.random.Generator
) -> Sheet:
    """Questions in which the feature stands first exactly half of the time."""
    first = tuple(int(flag) for flag in rng.permutation(np.arange(len(own)) % 2))
    sides = [(a, b) if flag else (b, a) for flag, a, b in zip(first, own, other, strict=True)]
    return Sheet(tuple((*head, f"A: {a}", f"B: {b}") for head, (a, b) in zip(heads, sides, strict=True)), first)
