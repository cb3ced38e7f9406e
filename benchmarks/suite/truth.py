"""The truth about a planted unit, as data that is its own predicate.

A unit fires at a token where one of its causes holds and none of its exceptions does. A cause is a
conjunction of conditions on the window up to that token. The data has two uses: `holds` tests whether
a condition is met, `write` edits a window so that it is. A rule is examined by running it on windows that
were written so, never by comparing its syntax.

Predicates take the tokens of a window of at most LONGEST tokens, `<bos>` not counted; a token's leading space
does not matter.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .words import BOS, QUOTE, UNKNOWN

LONGEST = 64
REACH = 4
"""How many tokens before the current one are near."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Conditions that hold together; an empty field is no condition. Words are given without their space."""

    here: tuple[str, ...] = ()
    """The token is one of these."""
    before: tuple[str, ...] = ()
    """The token directly before it is one of these."""
    two_before: tuple[str, ...] = ()
    """The token before that is one of these."""
    near: tuple[str, ...] = ()
    """One of these is among the four tokens before it."""
    quoted: bool = False
    """An odd number of quotation marks stands before it, and it is none itself."""
    seen: bool = False
    """The same token stands earlier in the window."""
    places: tuple[int, ...] = ()
    """Its position in the window, from 0, is one of these."""

    def holds(self, words: Sequence[str], at: int) -> bool:
        """Whether the cause is met at a position of a window; words without their space."""
        return (
            (not self.here or words[at] in self.here)
            and (not self.before or (at > 0 and words[at - 1] in self.before))
            and (not self.two_before or (at > 1 and words[at - 2] in self.two_before))
            and (not self.near or any(word in self.near for word in words[max(0, at - REACH) : at]))
            and (not self.quoted or (words[at] != QUOTE and words[:at].count(QUOTE) % 2 == 1))
            and (not self.seen or words[at] in words[:at])
            and (not self.places or at in self.places)
        )

    def write(self, tokens: list[str], at: int, rng: random.Random) -> bool:
        """Edit tokens so that the cause holds at a position; False, after edits or none, where it cannot."""
        far = at - REACH - 1
        if (self.places and at not in self.places) or (far < 0 and (self.quoted or self.seen)) or at < 2:
            return False
        for offset, words in ((0, self.here), (1, self.before), (2, self.two_before)):
            if words:
                tokens[at - offset] = f" {rng.choice(words)}"
        if self.near:
            tokens[max(0, at - rng.randint(2 if self.before else 1, REACH))] = f" {rng.choice(self.near)}"
        if self.seen:
            tokens[rng.randint(0, far)] = tokens[at]
        if self.quoted and [word.strip() for word in tokens[:at]].count(QUOTE) % 2 == 0:
            tokens[rng.randint(0, far)] = f" {QUOTE}"
        return self.holds([word.strip() for word in tokens], at)

    @property
    def mentions(self) -> tuple[str, ...]:
        """The words that the cause reads before the token, the quotation mark included."""
        return (*self.before, *self.two_before, *self.near, *((QUOTE,) if self.quoted else ()))


@dataclass(frozen=True, slots=True)
class Predicate:
    """The causes, any of which is enough, and the exceptions, any of which silences all of them."""

    causes: tuple[Cause, ...] = ()
    exceptions: tuple[Cause, ...] = ()
    grades: Mapping[str, float] = field(default_factory=dict)
    """By current word, the fraction of the unit's scale; 1 for words that are not here."""

    def __call__(self, words: Sequence[str], at: int) -> float:
        """The activation at a position, as a fraction of the unit's scale."""
        if not any(cause.holds(words, at) for cause in self.causes):
            return 0.0
        silenced = any(exception.holds(words, at) for exception in self.exceptions)
        return 0.0 if silenced else self.grades.get(words[at], 1.0)


@dataclass(frozen=True, slots=True)
class Sum:
    """A random dense unit: `max(0, here[word] + before[word before] - threshold)`; it has no pattern."""

    here: Mapping[str, float]
    before: Mapping[str, float]
    """Of a word that is not here, 0."""
    threshold: float

    def __call__(self, words: Sequence[str], at: int) -> float:
        """The activation at a position, as a fraction of the unit's scale."""
        word = words[at] if words[at] in self.here else UNKNOWN
        return max(0.0, self.here[word] + self.before.get(words[at - 1] if at else BOS, 0.0) - self.threshold)


@dataclass(frozen=True, slots=True)
class Unit:
    """A neuron, or a feature of a dictionary, of which everything is known."""

    name: str
    """The kind and a number; for reports, never to be shown to an explainer."""
    kind: str
    level: int
    address: str
    """The feature, as MODEL:SITE:INDEX."""
    index: int
    description: str
    condition: Callable[[Sequence[str], int], float]
    """The activation at a position as a fraction of `scale`, from words without their space."""
    scale: float
    """The activation where a cause holds."""
    causes: tuple[Cause, ...] = ()
    """The first is the main one."""
    exceptions: tuple[Cause, ...] = ()
    second: tuple[Cause, ...] = ()
    """Those of the causes that are second meanings."""
    promotes: tuple[str, ...] = ()
    """Tokens whose logits it raises, by 4 at its scale; with their leading spaces."""
    suppresses: tuple[str, ...] = ()
    """Tokens whose logits it lowers, by 3 at its scale."""
    upstream: tuple[str, ...] = ()
    """Heads as "head.0:2" and MLPs as "mlp_out.0" that the unit depends on; none where it reads the token or the place
    alone."""
    abstain: bool = False
    """Whether the right answer is that there is nothing to explain."""

    @property
    def inert(self) -> bool:
        """Whether the unit has no effect on logits."""
        return not self.promotes and not self.suppresses

    @property
    def half(self) -> float:
        """The activation above which the unit counts as active."""
        return self.scale / 2

    def at(self, tokens: Sequence[str], place: int) -> float:
        """The activation at one position of a window."""
        return self.scale * self.condition([token.strip() for token in tokens[: place + 1]], place)

    def truth(self, tokens: Sequence[str]) -> list[float]:
        """The activation at every token of a window."""
        words = [token.strip() for token in tokens]
        return [self.scale * self.condition(words, at) for at in range(len(words))]
