"""The text of a world: sentences of filler, among which every unit has its own phrases.

A sentence is a run of items, some sentences stand in quotation marks. An item is either filler (a template of
word classes, filled in) or a phrase of one of the units, drawn by weight. A phrase's words stand together; a
gap in it is filled with a filler word, so that a word at a phrase's edge meets others only by its own phrases. How
often an exception, a second condition or a second meaning occurs is so a matter of weights.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .words import QUOTE

QUOTED = 0.3
"""Share of sentences in quotation marks."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that stand together, None for any filler word."""

    words: tuple[str | None, ...]
    weight: float
    """How often it is chosen outside of quotation marks; the phrases of a unit sum to about 1."""
    quoted: float | None = None
    """The same inside of them, where that differs."""


class Grammar:
    """Writes documents of 200 to 400 tokens."""

    def __init__(self, fillers: Sequence[str], phrases: Sequence[Phrase], rng: random.Random, *, filler: float) -> None:
        """`fillers` are in the order of their frequency; `filler` is the share of items that belong to no unit."""
        self._filler_share = filler
        self._fillers, self._zipf = fillers, list(accumulate(1 / (rank + 4) for rank in range(len(fillers))))
        classes = [rng.sample(fillers, 6) for _ in range(8)]
        self._templates = [rng.choices(classes, k=rng.randint(1, 3)) for _ in range(16)]
        self._phrases = [phrase.words for phrase in phrases]
        self._weights = {
            False: list(accumulate(phrase.weight for phrase in phrases)),
            True: list(accumulate(phrase.weight if phrase.quoted is None else phrase.quoted for phrase in phrases)),
        }

    def documents(self, count: int, *, seed: str) -> tuple[str, ...]:
        """So many documents, each of which depends on the seed and its number alone."""
        return tuple(self._document(random.Random(f"{seed}:{number}")) for number in range(count))

    def _document(self, rng: random.Random) -> str:
        words: list[str] = []
        length = rng.randint(200, 370)
        while len(words) < length:
            words += self._sentence(rng)
        return "".join(f" {word}" for word in words)

    def _sentence(self, rng: random.Random) -> list[str]:
        quoted = rng.random() < QUOTED
        words = [word for _ in range(rng.randint(3, 8)) for word in self._item(quoted, rng)]
        return [QUOTE, *words, QUOTE] if quoted else words

    def _item(self, quoted: bool, rng: random.Random) -> list[str]:
        if not self._phrases or rng.random() < self._filler_share:
            return [rng.choice(words) for words in rng.choice(self._templates)]
        (chosen,) = rng.choices(self._phrases, cum_weights=self._weights[quoted])
        return [self._filler(rng) if word is None else word for word in chosen]

    def _filler(self, rng: random.Random) -> str:
        return rng.choices(self._fillers, cum_weights=self._zipf)[0]
