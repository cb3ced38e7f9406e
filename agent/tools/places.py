"""Places in training windows, where a feature is asked, and arguments that causal tools share.

A place is a position in a training window with its harvested activation. Active places are where the feature is at
least half as strong as its strongest examples; near misses are silent ones that hold a token on which it fires
elsewhere; silent places hold another token. Places are taken in turn from different tokens, since one token may be
special. Windows keep their length, so that rules can be learned from whatever is made of them, and nothing here comes
from any split but training.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...data.padding import pad_activations, pad_ids
from ...data.records import Example
from ..loop.feature_lab import FeatureLab
from ..loop.hypotheses import StrictModel
from ..loop.levels import EDGES
from ..loop.rejections import RejectedError

SILENT, ACTIVE = EDGES[1], EDGES[2]
"""Below the one a place is silent, from the other on it is active; in units of the scale."""
NEAR_PEAK = 0.8
"""Of a window's peak: a pivot is drawn among the places that are as strong as this."""
T = TypeVar("T")

Where = Literal["active", "near_miss", "silent"]


class Drawn(StrictModel, frozen=True):
    """Arguments of tools that draw something."""

    seed: int = Field(0, ge=0, description="another number gives another draw of whatever is random")


class Carried(Drawn, frozen=True):
    """Arguments of tools that change training windows."""

    windows: tuple[str, ...] = Field(
        (), max_length=16, description="digests of the training windows to use; none: the tool chooses"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a training window."""

    ids: tuple[int, ...]
    pivot: int
    value: float
    """The harvested activation at the pivot, in units of the scale."""

    @property
    def token(self) -> int:
        """The token at the pivot."""
        return self.ids[self.pivot]

    def put(self, position: int, token: int) -> tuple[int, ...]:
        """The window with another token at one position."""
        return (*self.ids[:position], token, *self.ids[position + 1 :])

    def change(self, tokens: dict[int, int]) -> tuple[int, ...]:
        """The window with other tokens at some positions."""
        return tuple(tokens.get(position, token) for position, token in enumerate(self.ids))


class Windows(NamedTuple):
    """All training windows of a feature, each once."""

    ids: NDArray[np.int64]
    """(row, position), filled up to full width."""
    values: NDArray[np.float32]
    """(row, position), in units of the scale; NaN where a shorter window has no token of its own."""


def training_windows(lab: FeatureLab) -> Windows:
    """The training examples, the strongest first, and the background."""
    digests = {example.window for example in lab.examples}
    rows = [row for row, digest in enumerate(lab.batch.background.digests) if digest not in digests]
    back = lab.batch.background.ids[rows]
    ids = np.concatenate([pad_ids([e.ids for e in lab.examples], width=lab.width), back])
    own = pad_activations([e.activations for e in lab.examples], width=lab.width)
    values = np.concatenate([own, lab.evidence.background[rows]]) / lab.scale
    filled = np.stack([lab.fill(row) for row in ids])
    return Windows(filled, np.where(ids >= 0, values, np.nan).astype(np.float32))


def find_places(
    lab: FeatureLab, where: Where, count: int, *, before: int = 0, windows: Sequence[str] = (), seed: int = 0
) -> list[Place]:
    """Up to `count` places with at least `before` tokens before them, of as many different tokens as there are.

    With `windows` (digests) one place of each of these. Raises RejectedError where there is no place.
    """
    if windows:
        return [_in_window(lab, lab.window(digest), where, before, seed) for digest in windows]
    drawn = {"active": _active, "near_miss": find_near_misses, "silent": _silent}
    chosen = drawn[where](lab, count, before, seed)
    if not chosen:
        raise RejectedError(
            "no_place",
            f"{lab.target} has no {where} place with {before} tokens before it in its training windows; "
            f"use {'silent' if where != 'silent' else 'active'} places, or fewer tokens before",
            where=where,
        )
    return chosen


def find_near_misses(lab: FeatureLab, count: int, before: int = 0, seed: int = 0) -> list[Place]:
    """Random silent places of the tokens on which it fires, of those on which it fires most often first."""
    windows, fires = training_windows(lab), fires_on(lab)
    rank = np.full(len(lab.vocabulary), -1)
    rank[list(fires)] = np.arange(len(fires))
    silent = (rank[windows.ids] >= 0) & (windows.values < SILENT)
    silent[:, :before] = False
    rows, positions = np.nonzero(silent)
    drawn = generator(lab, seed, "near misses").permutation(len(rows))
    order = drawn[np.argsort(rank[windows.ids[rows[drawn], positions[drawn]]], kind="stable")]
    pairs = zip(rows[order].tolist(), positions[order].tolist(), strict=True)
    return [
        Place(tuple(windows.ids[row].tolist()), pivot, float(windows.values[row, pivot]))
        for row, pivot in in_turn(pairs, lambda at: int(windows.ids[at]))[:count]
    ]


def _silent(lab: FeatureLab, count: int, before: int, seed: int) -> list[Place]:
    """Random silent places, of different windows, of tokens on which it does not fire."""
    windows = training_windows(lab)
    quiet = (windows.values < SILENT) & ~np.isin(windows.ids, list(fires_on(lab)))
    quiet[:, :before] = False
    rng = generator(lab, seed, "silent places")
    rows = rng.permutation(np.flatnonzero(quiet.any(axis=1)))[:count].tolist()
    pivots = [int(rng.choice(np.flatnonzero(quiet[row]))) for row in rows]
    pairs = zip(rows, pivots, strict=True)
    return [Place(tuple(windows.ids[row].tolist()), at, float(windows.values[row, at])) for row, at in pairs]


def fires_on(lab: FeatureLab) -> dict[int, float]:
    """By token id, the share of its occurrences that are active, of tokens that ever are; the highest first."""
    windows = training_windows(lab)
    size = len(lab.vocabulary)
    counts = np.bincount(windows.ids[np.isfinite(windows.values)], minlength=size)
    active = np.bincount(windows.ids[windows.values >= ACTIVE], minlength=size)
    tokens = np.flatnonzero(active)
    shares = {int(token): float(active[token] / counts[token]) for token in tokens}
    return dict(sorted(shares.items(), key=lambda pair: (-pair[1], -int(active[pair[0]]), pair[0])))


def silent_window(lab: FeatureLab, rng: np.random.Generator, *, position: int) -> NDArray[np.int64]:
    """A random background window in which the feature is silent at this position; any where there is none such."""
    ids = lab.batch.background.ids
    quiet = np.flatnonzero((lab.evidence.background[:, position] < SILENT * lab.scale) & (ids[:, position] >= 0))
    rows = quiet if len(quiet) else np.arange(len(ids))
    return lab.fill(ids[int(rng.choice(rows))])


def special_tokens(lab: FeatureLab) -> set[int]:
    """Ids that stand for no text."""
    return set(lab.subject.tokenizer.all_special_ids)


def count_tokens(lab: FeatureLab) -> NDArray[np.int64]:
    """How often each token stands in the background, by id."""
    ids = lab.batch.background.ids
    return np.bincount(ids[ids >= 0], minlength=len(lab.vocabulary))


def common_tokens(lab: FeatureLab) -> list[int]:
    """The tokens of the background that stand for text, the most frequent first."""
    counts = count_tokens(lab)
    special = special_tokens(lab)
    return [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and int(i) not in special]


def generator(lab: FeatureLab, seed: int, use: str) -> np.random.Generator:
    """Random numbers that depend on the investigation, the draw and what they are for."""
    return np.random.default_rng([lab.seed, seed, zlib.crc32(use.encode())])


def in_turn(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """Reorders so that the first of every group come first, then the second of every group, and so on."""
    met: Counter[Hashable] = Counter()
    ranked: list[tuple[int, T]] = []
    for item in items:
        group = key(item)
        ranked.append((met[group], item))
        met[group] += 1
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]


def excerpt(lab: FeatureLab, ids: Sequence[int], pivot: int, *, before: int = 8) -> str:
    """The text up to the pivot, the pivot's token in «»."""
    words = [lab.vocabulary[i] for i in ids[max(0, pivot - before) : pivot]]
    return f"{''.join(words)}«{lab.vocabulary[ids[pivot]]}»"


def _active(lab: FeatureLab, count: int, before: int, seed: int) -> list[Place]:
    """Of every example that has one, one place; the strongest examples first."""
    candidates = (_active_in(lab, example, before, seed) for example in lab.examples)
    return in_turn([place for place in candidates if place is not None], lambda place: place.token)[:count]


def _active_in(lab: FeatureLab, example: Example, before: int, seed: int) -> Place | None:
    """A random one of the places at which the window is nearly at its peak: the first may be special."""
    values = example.activations / lab.scale
    top = float(values[before:].max(initial=0))
    if top < ACTIVE:
        return None
    near = before + np.flatnonzero(values[before:] >= max(NEAR_PEAK * top, ACTIVE))
    pivot = int(generator(lab, seed, example.window).choice(near))
    return Place(tuple(lab.fill(example.ids).tolist()), pivot, float(values[pivot]))


def _in_window(lab: FeatureLab, example: Example, where: Where, before: int, seed: int) -> Place:
    """The place of one window that was named."""
    if where == "active":
        place = _active_in(lab, example, before, seed)
    else:
        fires, values = fires_on(lab), example.activations / lab.scale
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
