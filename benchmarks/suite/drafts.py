"""The parts of kinds of units: words that no unit has yet, phrases that show them, and a class with an exception."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...subject.errors import NeuronautError
from .grammar import Phrase
from .truth import Cause, Predicate, Sum


@dataclass(frozen=True, slots=True)
class Draft:
    """A unit before it has a place in a model."""

    kind: str
    description: str
    condition: Predicate
    phrases: tuple[Phrase, ...] = ()
    second: tuple[Cause, ...] = ()
    abstain: bool = False
    dense: Sum | None = None
    """Where given, the sum that the unit computes instead of the condition."""


class Supply:
    """Words that no unit has yet."""

    def __init__(self, words: Sequence[str], rng: random.Random) -> None:
        self.rng, self._words, self._next = rng, words, 0

    def take(self, least: int, most: int | None = None) -> tuple[str, ...]:
        """So many words, between the two bounds where there are two."""
        count = self.rng.randint(least, most or least)
        self._next += count
        if self._next > len(self._words):
            raise NeuronautError(f"{len(self._words)} words are too few for so many units; ask for at most 20 a world")
        return tuple(self._words[self._next - count : self._next])

    @property
    def left(self) -> Sequence[str]:
        """Those that are still there."""
        return self._words[self._next :]


Kind = Callable[[Supply], Sequence[Draft]]
"""Draws one unit, or several that belong together, of which the first brings the phrases of all."""


def each(words: Sequence[str], *, weight: float = 1.0, quoted: float | None = None) -> list[Phrase]:
    """Each of some words among fillers, together of the weight."""
    inside = None if quoted is None else quoted / len(words)
    return [Phrase((None, word), weight / len(words), inside) for word in words]


def pairs(firsts: Sequence[str], words: Sequence[str], *, weight: float) -> list[Phrase]:
    """Each of the first words directly before each of the others."""
    share = weight / len(firsts) / len(words)
    return [Phrase((None, first, word), share) for first in firsts for word in words]


def alone(words: Sequence[str], *, weight: float) -> list[Phrase]:
    """Each of some words before a filler."""
    return [Phrase((word, None), weight / len(words)) for word in words]


def either(words: Sequence[str]) -> str:
    """The words, for a description."""
    return " or ".join(words)


def unless(
    supply: Supply,
    kind: str,
    *,
    share: float,
    others: tuple[str, ...],
    words: tuple[str, ...] = (),
    near: bool = False,
    lone: float = 0.2,
) -> Draft:
    """Words, except directly after (or within four tokens after) others, which stand there in a share of the cases."""
    words = words or supply.take(1, 2)
    text, exception = f"{either(words)}, unless directly after {either(others)}", Cause(before=others)
    phrases = [*each(words, weight=1 - share), *alone(others, weight=lone)]
    if near:
        text, exception = (
            f"{either(words)}, unless {either(others)} is among the four tokens before",
            Cause(near=others),
        )
        for gap in ((), (None,), (None, None), (None, None, None)):
            phrases += [
                Phrase((None, other, *gap, word), share / 4 / len(others) / len(words))
                for other in others
                for word in words
            ]
    else:
        phrases += pairs(others, words, weight=share)
    return Draft(kind, text, Predicate((Cause(here=words),), (exception,)), tuple(phrases))
