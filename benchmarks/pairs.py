"""Counterfactual pairs for the planted neurons, drawn in knowledge of the truth and in ignorance of every rule.

A window is edited once: a token swapped, put in, taken out, pushed away from the pivot, or cleared away
before it, with a preference for the words that the neuron's predicate reads. The predicate says what the
neuron does at the pivot before and after. Pairs are kept until each of the four transitions (silent or
active, before and after) has its share, so that half of the edits flip the truth. Nothing here is shared
with data/counterfactual.py, which makes the explainer's and the scorer's pairs.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from ..tests.planted import CLASSES, LONGEST, WORDS, PlantedNeuron

_NAMES, _QUOTE = CLASSES["name"], ('"',)
READS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "day": (CLASSES["day"], ()),
    "colour": (CLASSES["colour"], ()),
    "new_haven": (("Haven",), ("New",)),
    "river_not_dry": (("river",), ("dry",)),
    "bell_after_storm": (("bell",), ("storm",)),
    "price": (CLASSES["digit"], CLASSES["currency"]),
    "quoted": ((), _QUOTE),
    "three_causes": (("piano", "7"), ("Mister",)),
    "quoted_city": (CLASSES["city"], _QUOTE),
    "river": (("river",), ("dry",)),
    "name_again": (_NAMES, _NAMES),
}
"""By neuron, the words that its predicate reads at the token and before it. Others read places or repeats."""

VOCABULARY = tuple(f" {word}" for word in WORDS if not word.startswith("<"))
Words = list[str]
"""Tokens of a window, with their leading spaces."""


class Reads(NamedTuple):
    """What may be put in at a pivot and before it."""

    here: Sequence[str]
    before: Sequence[str]

    @classmethod
    def of(cls, neuron: PlantedNeuron, pivot: str) -> "Reads":
        here, before = READS.get(neuron.name, ((), ()))
        return cls([f" {word}" for word in here], [*(f" {word}" for word in before), pivot])


class Pair(NamedTuple):
    """A window, an edit of it, and the truth at the pivot in both."""

    original: tuple[str, ...]
    edited: tuple[str, ...]
    pivot: int
    """Position of the pivot in the edited window."""
    was: float
    now: float


Edit = Callable[[Words, int, Reads, random.Random], int]
"""Changes the words in place and gives the pivot's new position; a window too short for the edit stays as it is."""


def _some(preferred: Sequence[str], rng: random.Random) -> str:
    return rng.choice(preferred) if preferred and rng.random() < 0.7 else rng.choice(VOCABULARY)


def _back(pivot: int, rng: random.Random) -> int:
    """A position before the pivot, the nearest ones most often, any of them sometimes."""
    near = rng.random() < 0.7
    return pivot - (min(pivot, 1 + int(rng.expovariate(0.6))) if near else rng.randint(1, pivot))


def _swap_pivot(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[pivot] = _some(reads.here, rng)
    return pivot


def _swap_before(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    if pivot:
        words[_back(pivot, rng)] = _some(reads.before, rng)
    return pivot


def _swap_anywhere(words: Words, pivot: int, _: Reads, rng: random.Random) -> int:
    words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
    return pivot


def _insert(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One more token before the pivot, which moves on; the window's last token makes room."""
    words.insert(_back(pivot, rng) + 1 if pivot else 0, _some(reads.before, rng))
    words.pop()
    return pivot + 1


def _push(words: Words, pivot: int, _: Reads, rng: random.Random) -> int:
    """A few tokens directly before the pivot, which carry it out of the reach of what stood there."""
    count = rng.randint(1, 5)
    words[pivot:pivot] = rng.choices(VOCABULARY, k=count)
    del words[LONGEST:]
    return pivot + count


def _delete(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One of the causes before the pivot, or any token there, taken out; another is added at the end."""
    if not pivot:
        return pivot
    causes = [place for place in range(pivot) if words[place] in reads.before]
    words.pop(rng.choice(causes) if causes and rng.random() < 0.7 else _back(pivot, rng))
    words.append(rng.choice(VOCABULARY))
    return pivot - 1


def _clear(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """Other tokens wherever one of the causes stood before the pivot."""
    cause = rng.choice(reads.before)
    for place in range(pivot):
        if words[place] == cause:
            words[place] = rng.choice(VOCABULARY)
    return pivot


EDITS: tuple[Edit, ...] = (_swap_pivot, _swap_before, _swap_anywhere, _insert, _push, _delete, _clear)


def counterfactuals(
    neuron: PlantedNeuron, windows: Sequence[Sequence[str]], *, each: int = 50, seed: int = 0
) -> list[Pair]:
    """Pairs of every transition of the truth, equally many of each and at most `each`; windows are of LONGEST tokens.

    Where both exist, every other pair of a transition keeps the token at the pivot: only its context differs.
    """
    rng = random.Random(f"{seed}:{neuron.name}")
    truths = [neuron.truth(words) for words in windows]
    half = max(map(max, truths)) / 2
    found: dict[tuple[bool, bool], tuple[dict[tuple[str, ...], Pair], ...]] = defaultdict(lambda: ({}, {}))
    for _ in range(400 * each):
        row = rng.randrange(len(windows))
        was = _pivot(neuron, windows[row], truths[row], half, rng)
        words = list(windows[row])
        pivot = rng.choice(EDITS)(words, was, Reads.of(neuron, words[was]), rng)
        if pivot >= LONGEST or words == list(windows[row]):
            continue
        before, now = truths[row][was], neuron.truth(words[: pivot + 1])[-1]
        kept = found[before > half, now > half][words[pivot] == windows[row][was]]
        if len(kept) < each:
            kept[*words, str(pivot)] = Pair(tuple(windows[row]), tuple(words), pivot, before, now)
    mixed = [_alternating(*(list(kept.values()) for kept in kinds)) for kinds in found.values()]
    fewest = min(each, *map(len, mixed))
    return [pair for pairs in mixed for pair in pairs[:fewest]]


def _alternating(first: Sequence[Pair], second: Sequence[Pair]) -> list[Pair]:
    """One of each in turn; the rest of the longer comes last."""
    return [pair for both in zip_longest(first, second) for pair in both if pair is not None]


def _pivot(neuron: PlantedNeuron, words: Sequence[str], truth: Sequence[float], half: float, rng: random.Random) -> int:
    """A position at which an edit may tell: active, of a word that the predicate reads, near one of these, or any."""
    here = {f" {word}" for word in READS.get(neuron.name, ((), ()))[0]}
    active = [place for place, value in enumerate(truth) if value > half]
    read = [place for place, word in enumerate(words) if word in here]
    places = rng.choice([active, read, range(len(words))]) or range(len(words))
    place = rng.choice(places)
    return place if rng.random() < 0.7 else min(max(place + rng.randint(-4, 4), 0), len(words) - 1)
