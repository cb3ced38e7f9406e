"""Twenty functions, drawn from a seed, in four levels of five.

    1  strings       what a word looks like: its ending, its length, a doubled letter, whether it stood there before
    2  numbers       the value of a number, above a bound, even, larger than the one before; what follows a number
    3  concepts      entities of one concept and of two, one after another, a relation of two words, an exception
    4  corrupted     the same with noise, with a range or a part of the text in which they are silent, with lapses

A function gives its activation as a fraction of its scale. It reads words without their space; noise and lapses are
drawn from the hash of the words before, so that they are always the same.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .texts import CAPITALS, LEXICONS

Words = Sequence[str]
Condition = Callable[[Words, int], float]
NOISE, LAPSES = 0.08, 0.05
"""Largest noise, as a share of the scale; share of the words after which one that should be active is silent."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A function before it has a place in a subject."""

    kind: str
    level: int
    description: str
    condition: Condition
    here: tuple[str, ...] = ()
    """Words on which it is active, where these can be listed."""
    before: tuple[str, ...] = ()
    """Words that it wants before the token."""
    unless: tuple[str, ...] = ()
    """Words that silence it where they stand directly before the token."""


def draw_kinds(seed: str) -> list[Kind]:
    """The functions of a seed."""
    rng = random.Random(f"functions {seed}")
    kinds = [*_strings(rng), *_numbers(rng), *_concepts(rng)]
    return [*kinds, *_corrupted(rng)]


def _strings(rng: random.Random) -> list[Kind]:
    ending, letter = rng.choice(("ing", "ly", "er")), rng.choice("bcfmps")
    length = rng.choice((6, 7))
    return [
        Kind("ending", 1, f"words that end in {ending}", lambda w, i: float(w[i].endswith(ending))),
        Kind("beginning", 1, f"words that begin with {letter}", lambda w, i: float(w[i].startswith(letter))),
        Kind("long", 1, f"words of at least {length} letters", lambda w, i: float(len(w[i]) >= length)),
        Kind("doubled", 1, "words with a letter twice in a row", lambda w, i: float(_is_doubled(w[i]))),
        Kind("again", 1, "names of people and places that stood there before", _is_again),
    ]


def _numbers(rng: random.Random) -> list[Kind]:
    bound = rng.randint(30, 70)
    return [
        Kind("value", 2, "numbers, by their value: 99 is 1", lambda w, i: _number(w[i]) / 99),
        Kind("above", 2, f"numbers above {bound}", lambda w, i: float(_number(w[i]) > bound)),
        Kind("even", 2, "even numbers", lambda w, i: float(_number(w[i]) > 0 and _number(w[i]) % 2 == 0)),
        Kind("counted", 2, "whatever follows a number", lambda w, i: float(i > 0 and w[i - 1].isdecimal())),
        Kind("larger", 2, "numbers larger than the number before", _is_larger),
    ]


def _concepts(rng: random.Random) -> list[Kind]:
    first, second, third = rng.sample(("animals", "foods", "colours", "furniture"), 3)
    one, two, three = (tuple(LEXICONS[name]) for name in (first, second, third))
    capitals, exception = tuple(CAPITALS), rng.choice(("in", "not", "never", "to"))
    return [
        Kind("entity", 3, first, lambda w, i: float(w[i] in one), one),
        Kind("two_entities", 3, f"{second} or {third}", lambda w, i: float(w[i] in two + three), two + three),
        Kind(
            "entity_after", 3, f"anything after {third}", lambda w, i: float(i > 0 and w[i - 1] in three), before=three
        ),
        Kind("relation", 3, "a country whose capital stood among the eight tokens before", _is_related,
             here=tuple(CAPITALS.values()), before=capitals),
        Kind(
            "exception",
            3,
            f"capitals, unless directly after {exception}",
            lambda w, i: float(w[i] in capitals and (not i or w[i - 1] != exception)),
            capitals,
            unless=(exception,),
        ),
    ]  # fmt: skip


def _corrupted(rng: random.Random) -> list[Kind]:
    names = rng.sample(("animals", "foods", "colours", "furniture"), 4)
    if names[3] == "colours":
        names.reverse()
    noisy, late, lapsing, cold = (tuple(LEXICONS[name]) for name in names)
    low, start = rng.randint(55, 65), rng.choice((12, 16))
    high = low + 15
    return [
        Kind("noise", 4, f"{names[0]}, with noise everywhere", lambda w, i: (w[i] in noisy) + _noise(w, i), noisy),
        Kind("late", 4, f"{names[1]} from token {start} on", lambda w, i: float(i >= start and w[i] in late), late),
        Kind(
            "lapses",
            4,
            f"{names[2]}, but not after one word in twenty, drawn by lot",
            lambda w, i: float(w[i] in lapsing and _chance(w[max(0, i - 1) : i]) >= LAPSES),
            lapsing,
        ),
        Kind(
            "inside",
            4,
            f"numbers above 50 but for {low} to {high}",
            lambda w, i: float(_number(w[i]) > 50 and not low <= _number(w[i]) <= high),
        ),
        Kind(
            "near_exception",
            4,
            f"{names[3]}, unless a colour or cold is among the two tokens before",
            lambda w, i: float(w[i] in cold and not {*LEXICONS["colours"], "cold"} & set(w[max(0, i - 2) : i])),
            cold,
            unless=(*LEXICONS["colours"], "cold"),
        ),
    ]


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else 0


def _is_doubled(word: str) -> bool:
    return any(a == b and a.isalpha() for a, b in zip(word, word[1:], strict=False))


def _is_again(words: Words, at: int) -> float:
    return float(words[at][:1].isupper() and words[at] in words[:at])


def _is_larger(words: Words, at: int) -> float:
    last = next((int(word) for word in reversed(words[:at]) if word.isdecimal()), None)
    return float(last is not None and _number(words[at]) > last)


def _is_related(words: Words, at: int) -> float:
    return float(words[at] in {CAPITALS.get(word) for word in words[max(0, at - 8) : at]})


def _chance(words: Words) -> float:
    """A number from 0 to 1 that depends on these words alone."""
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _noise(words: Words, at: int) -> float:
    return NOISE * (2 * _chance(words[max(0, at - 2) : at + 1]) - 1)
