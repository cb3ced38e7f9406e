"""Counterfactual pairs for planted units, drawn in knowledge of the truth and in ignorance of every rule.

A window is edited once: a token swapped, put in, taken out, pushed away from the pivot, or cleared away
before it, with a preference for the words that the unit's truth reads; or one of its causes or exceptions is
written there. The predicate says what the unit does at the pivot before and after. Every other window has had a
cause or exception written at the pivot beforehand, so that meanings that are rare in text count as much as common ones.
Pairs are kept until each of the four transitions (silent or active, before and after) has its share, so that half of
the edits flip the truth. Nothing here is shared with data/counterfactual.py, which makes the explainer's and the
scorer's pairs.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule
from .truth import LONGEST, Cause, Unit

Words = list[str]
"""Tokens of a window, with their leading spaces."""


class Pair(NamedTuple):
    """A window, an edit of it, and the truth at the pivot in both."""

    original: tuple[str, ...]
    edited: tuple[str, ...]
    pivot: int
    """Position of the pivot in the edited window."""
    was: float
    now: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be told right: a truth, and the words that it reads, with their leading spaces."""

    name: str
    truth: Callable[[Sequence[str]], list[float]]
    at: Callable[[Sequence[str], int], float]
    """The truth at one position."""
    half: float
    here: Sequence[str]
    before: Sequence[str]
    vocabulary: Sequence[str]
    writes: Sequence[Cause] = ()
    """Causes and exceptions that may be written into a window."""

    @classmethod
    def of(cls, unit: Unit, vocabulary: Sequence[str]) -> "Target":
        writes = (*unit.causes, *unit.exceptions)
        here = [f" {word}" for cause in writes for word in cause.here]
        before = [f" {word}" for cause in writes for word in cause.mentions]
        return cls(
            name=unit.name,
            truth=unit.truth,
            at=unit.at,
            half=unit.half,
            here=here,
            before=before,
            vocabulary=vocabulary,
            writes=writes,
        )


class Reads(NamedTuple):
    """What may be put in at a pivot, before it, and anywhere."""

    here: Sequence[str]
    before: Sequence[str]
    vocabulary: Sequence[str]
    writes: Sequence[Cause]

    @classmethod
    def of(cls, target: Target, pivot: str) -> "Reads":
        return cls(target.here, [*target.before, pivot], target.vocabulary, target.writes)


Edit = Callable[[Words, int, Reads, random.Random], int]
"""Changes the words in place and gives the pivot's new position; a window too short for the edit stays as it is."""


def _some(preferred: Sequence[str], reads: Reads, rng: random.Random) -> str:
    return rng.choice(preferred) if preferred and rng.random() < 0.7 else rng.choice(reads.vocabulary)


def _back(pivot: int, rng: random.Random) -> int:
    """A position before the pivot, the nearest ones most often, any of them sometimes."""
    near = rng.random() < 0.7
    return pivot - (min(pivot, 1 + int(rng.expovariate(0.6))) if near else rng.randint(1, pivot))


def _swap_pivot(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[pivot] = _some(reads.here, reads, rng)
    return pivot


def _swap_before(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    if pivot:
        words[_back(pivot, rng)] = _some(reads.before, reads, rng)
    return pivot


def _swap_anywhere(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[rng.randrange(len(words))] = rng.choice(reads.vocabulary)
    return pivot


def _insert(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One more token before the pivot, which moves on; the window's last token makes room."""
    words.insert(_back(pivot, rng) + 1 if pivot else 0, _some(reads.before, reads, rng))
    words.pop()
    return pivot + 1


def _push(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """A few tokens directly before the pivot, which carry it out of the reach of what stood there."""
    count = rng.randint(1, 5)
    words[pivot:pivot] = rng.choices(reads.vocabulary, k=count)
    del words[LONGEST:]
    return pivot + count


def _delete(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One of the causes before the pivot, or any token there, taken out; another is added at the end."""
    if not pivot:
        return pivot
    causes = [place for place in range(pivot) if words[place] in reads.before]
    words.pop(rng.choice(causes) if causes and rng.random() < 0.7 else _back(pivot, rng))
    words.append(rng.choice(reads.vocabulary))
    return pivot - 1


def _clear(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """Other tokens wherever one of the causes stood before the pivot."""
    cause = rng.choice(reads.before)
    for place in range(pivot):
        if words[place] == cause:
            words[place] = rng.choice(reads.vocabulary)
    return pivot


def _write(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """All that one of the causes or exceptions asks for."""
    rng.choice(reads.writes).write(words, pivot, rng)
    return pivot


EDITS: tuple[Edit, ...] = (_swap_pivot, _swap_before, _swap_anywhere, _insert, _push, _delete, _clear)


def counterfactuals(target: Target, windows: Sequence[Sequence[str]], *, each: int = 50, seed: int = 0) -> list[Pair]:
    """Pairs of every transition of the truth, equally many of each and at most `each`; windows are of LONGEST tokens.

    Where both exist, every other pair of a transition keeps the token at the pivot: only its context differs.
    """
    rng = random.Random(f"{seed}:{target.name}")
    truths = [target.truth(words) for words in windows]
    edits = (*EDITS, _write) if target.writes else EDITS
    found: dict[tuple[bool, bool], tuple[dict[tuple[str, ...], Pair], ...]] = defaultdict(lambda: ({}, {}))
    for _ in range(400 * each):
        row = rng.randrange(len(windows))
        was = _pivot(target, windows[row], truths[row], rng)
        original = list(windows[row])
        if target.writes and rng.random() < 0.5:
            rng.choice(target.writes).write(original, was, rng)
        words = list(original)
        pivot = rng.choice(edits)(words, was, Reads.of(target, words[was]), rng)
        if pivot >= LONGEST or words == original:
            continue
        before, now = target.at(original, was), target.at(words, pivot)
        kept = found[before > target.half, now > target.half][words[pivot] == original[was]]
        if len(kept) < each:
            kept[*words, str(pivot)] = Pair(tuple(original), tuple(words), pivot, before, now)
        elif len(found) == 4 and all(len(kind) == each for kinds in found.values() for kind in kinds):
            break
    mixed = [_alternating(*(list(kept.values()) for kept in kinds)) for kinds in found.values()]
    fewest = min(each, *map(len, mixed)) if len(mixed) == 4 else 0
    return [pair for pairs in mixed for pair in pairs[:fewest]]


def _alternating(first: Sequence[Pair], second: Sequence[Pair]) -> list[Pair]:
    """One of each in turn; the rest of the longer comes last."""
    return [pair for both in zip_longest(first, second) for pair in both if pair is not None]


def _pivot(target: Target, words: Sequence[str], truth: Sequence[float], rng: random.Random) -> int:
    """A position at which an edit may tell: active, of a word that the truth reads, near one of these, or any."""
    active = [place for place, value in enumerate(truth) if value > target.half]
    read = [place for place, word in enumerate(words) if word in target.here]
    places = rng.choice([active, read, range(len(words))]) or range(len(words))
    place = rng.choice(places)
    return place if rng.random() < 0.7 else min(max(place + rng.randint(-4, 4), 0), len(words) - 1)


def at_pivots(rule: Rule, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """What the rule predicts at the edited pivots, shape (pair,)."""
    said = predict(rule, TokenGrid.of([pair.edited for pair in pairs]))
    return said[np.arange(len(pairs)), [pair.pivot for pair in pairs]]


def pair_accuracy(pairs: Sequence[Pair], said: NDArray[np.float32], *, half: float) -> float:
    """The share of edited pivots at which the prediction is on the truth's side of `half`."""
    return float(((said > half) == (np.array([pair.now for pair in pairs]) > half)).mean())
