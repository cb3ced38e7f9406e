"""Counterfactual pairs for planted units, drawn in knowledge of the truth and in ignorance of every rule.

A window is edited once: a token swapped, put in, taken out, pushed away from the pivot, or cleared away
before it, with a preference for the words that the unit's truth reads; or one of its causes or exceptions is
written there. The predicate gives the unit's activation at the pivot before and after. Every other window has had a
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
    """A truth to be predicted, and the words that it reads, with their leading spaces."""

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
        """The target of a unit, whose edits draw from the vocabulary."""
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
    """The words that may be put in at a pivot, before it, and anywhere."""

    here: Sequence[str]
    before: Sequence[str]
    vocabulary: Sequence[str]
    writes: Sequence[Cause]

    @classmethod
    def of(cls, target: Target, pivot: str) -> "Reads":
        """The words for a target and the token at the pivot."""
        return cls(target.here, [*target.before, pivot], target.vocabulary, target.writes)


Edit = Callable[[Words, int, Reads, random.Random], int]
"""Changes the words in place and gives the pivot's new position; a window too short for the edit stays as it is."""


def _draw_word(preferred: Sequence[str], reads: Reads, rng: random.Random) -> str:
    return rng.choice(preferred) if preferred and rng.random() < 0.7 else rng.choice(reads.vocabulary)


def _draw_before(pivot: int, rng: random.Random) -> int:
    """A position before the pivot, the nearest ones most often, any of them sometimes."""
    near = rng.random() < 0.7
    return pivot - (min(pivot, 1 + int(rng.expovariate(0.6))) if near else rng.randint(1, pivot))


def _swap_pivot(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[pivot] = _draw_word(reads.here, reads, rng)
    return pivot


def _swap_before(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    if pivot:
        words[_draw_before(pivot, rng)] = _draw_word(reads.before, reads, rng)
    return pivot


def _swap_anywhere(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[rng.randrange(len(words))] = rng.choice(reads.vocabulary)
    return pivot


def _insert(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One more token before the pivot, which moves on; the window's last token makes room."""
    words.insert(_draw_before(pivot, rng) + 1 if pivot else 0, _draw_word(reads.before, reads, rng))
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
    words.pop(rng.choice(causes) if causes and rng.random() < 0.7 else _draw_before(pivot, rng))
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
    """Everything that one of the causes or exceptions wants."""
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
    by_transition: dict[tuple[bool, bool], tuple[dict[tuple[str, ...], Pair], ...]] = defaultdict(lambda: ({}, {}))
    for _ in range(400 * each):
        row = rng.randrange(len(windows))
        place = _draw_pivot(target, windows[row], truths[row], rng)
        original = list(windows[row])
        if target.writes and rng.random() < 0.5:
            rng.choice(target.writes).write(original, place, rng)
        words = list(original)
        pivot = rng.choice(edits)(words, place, Reads.of(target, words[place]), rng)
        if pivot >= LONGEST or words == original:
            continue
        was, now = target.at(original, place), target.at(words, pivot)
        pairs = by_transition[was > target.half, now > target.half][words[pivot] == original[place]]
        if len(pairs) < each:
            pairs[*words, str(pivot)] = Pair(tuple(original), tuple(words), pivot, was, now)
        elif len(by_transition) == 4 and all(len(part) == each for both in by_transition.values() for part in both):
            break
    mixed = [_alternate(*(list(part.values()) for part in both)) for both in by_transition.values()]
    fewest = min(each, *map(len, mixed)) if len(mixed) == 4 else 0
    return [pair for pairs in mixed for pair in pairs[:fewest]]


def _alternate(first: Sequence[Pair], second: Sequence[Pair]) -> list[Pair]:
    """One of each in turn; the rest of the longer comes last."""
    return [pair for both in zip_longest(first, second) for pair in both if pair is not None]


def _draw_pivot(target: Target, words: Sequence[str], truth: Sequence[float], rng: random.Random) -> int:
    """A position at which an edit may matter: active, of a word that the truth reads, near one of these, or any."""
    active = [place for place, value in enumerate(truth) if value > target.half]
    read = [place for place, word in enumerate(words) if word in target.here]
    places = rng.choice([active, read, range(len(words))]) or range(len(words))
    place = rng.choice(places)
    return place if rng.random() < 0.7 else min(max(place + rng.randint(-4, 4), 0), len(words) - 1)


def at_pivots(rule: Rule, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """The rule's predictions at the edited pivots, shape (pair,)."""
    predicted = predict(rule, TokenGrid.of([pair.edited for pair in pairs]))
    return predicted[np.arange(len(pairs)), [pair.pivot for pair in pairs]]


def pair_accuracy(pairs: Sequence[Pair], predicted: NDArray[np.float32], *, half: float) -> float:
    """The share of edited pivots at which the prediction is on the truth's side of `half`."""
    return float(((predicted > half) == (np.array([pair.now for pair in pairs]) > half)).mean())
