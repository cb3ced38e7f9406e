"""The kinds of planted units, level by level: each draws its words, says when it fires, and how text shows it.

    1  a set of tokens; a band of positions, the later part, every n-th
    2  a word directly after another; a class directly after a class; grades
    3  an exception; anything in quotes; a class in quotes; a word seen before
    4  what the corpus hides: an exception or a missing second condition at a probability of 0.02 to 0.05, a second
       meaning in 0.2% of the firings, unrelated meanings, a word that comes along and is no cause, a twin that
       agrees with its sister on 99% of tokens
    5  features of a dictionary (superposed.py): a chain through three layers, a class of which another feature has
       absorbed a word, a class split in two
    6  kinds of the levels before, grafted into a trained model (graft.py)

A kind that is listed twice is drawn twice as often. Abstention units have no answer: dead, always on, dense noise.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...subject.errors import NeuronautError
from .grammar import Phrase
from .truth import LONGEST, Cause, Predicate, Sum

RARE = (0.02, 0.05)
"""Bounds of the probability of what a corpus of level 4 hides."""
NOISE = "noise"
"""The kind whose drafts are still to be given a dense sum."""
SECOND = 0.002
"""Share of a unit's firings that a rare second meaning has."""


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
    """Where given, what the unit computes instead of the condition."""


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
        return self._words[self._next :]

    def rare(self) -> float:
        return self.rng.uniform(*RARE)


Kind = Callable[[Supply], Sequence[Draft]]


def build(level: int, supply: Supply, *, units: int) -> list[Draft]:
    """So many drafts of a level, its kinds in turn; every eighth is an abstention unit."""
    if level not in LEVELS:
        raise NeuronautError(f"there is no level {level}; the levels are 1 to {max(LEVELS)}")
    silent = max(1, units // 8) if units > 1 else 0
    made: list[Draft] = []
    for turn in range(units):
        if len(made) < units - silent:
            made += LEVELS[level][turn % len(LEVELS[level])](supply)
    first = supply.rng.randrange(len(SILENT))
    made = made[: units - silent]
    return made + [SILENT[(first + number) % len(SILENT)](supply) for number in range(silent)]


def _each(words: Sequence[str], *, weight: float = 1.0, quoted: float | None = None) -> list[Phrase]:
    """Each of some words among fillers, together of the weight."""
    inside = None if quoted is None else quoted / len(words)
    return [Phrase((None, word), weight / len(words), inside) for word in words]


def _pairs(firsts: Sequence[str], words: Sequence[str], *, weight: float) -> list[Phrase]:
    """Each of the first words directly before each of the others."""
    share = weight / len(firsts) / len(words)
    return [Phrase((None, first, word), share) for first in firsts for word in words]


def _alone(words: Sequence[str], *, weight: float) -> list[Phrase]:
    """Each of some words before a filler."""
    return [Phrase((word, None), weight / len(words)) for word in words]


def _or(words: Sequence[str]) -> str:
    return " or ".join(words)


# Level 1


def _token_set(supply: Supply) -> list[Draft]:
    words = supply.take(2, 5)
    return [Draft("token_set", f"the words {_or(words)}", Predicate((Cause(here=words),)), tuple(_each(words)))]


def _position(supply: Supply) -> list[Draft]:
    rng = supply.rng
    first, step = rng.randint(2, 40), rng.randint(3, 5)
    text, places = rng.choice([
        (f"positions {first} to {first + step + 2}", range(first, first + step + 3)),
        (f"every position from {first + 16}", range(first + 16, LONGEST)),
        (f"every {step}th position from {first % step}", range(first % step, LONGEST, step)),
    ])  # fmt: skip
    return [Draft("position", f"{text}, counted from 0", Predicate((Cause(places=tuple(places)),)))]


# Level 2


def _bigram(supply: Supply) -> list[Draft]:
    first, word = supply.take(1), supply.take(1)
    phrases = (*_pairs(first, word, weight=0.4), *_each(word, weight=0.4), *_alone(first, weight=0.4))
    cause = Cause(here=word, before=first)
    return [Draft("bigram", f"{_or(word)} directly after {_or(first)}", Predicate((cause,)), phrases)]


def _class_after_class(supply: Supply) -> list[Draft]:
    firsts, words = supply.take(3), supply.take(5, 7)
    phrases = (*_pairs(firsts, words, weight=0.6), *_each(words, weight=0.6), *_alone(firsts, weight=0.4))
    text = f"one of {', '.join(words)} directly after {_or(firsts)}"
    return [Draft("class_after_class", text, Predicate((Cause(here=words, before=firsts),)), phrases)]


def _graded(supply: Supply) -> list[Draft]:
    words = supply.take(3)
    grades = dict(zip(words, (1.0, 0.7, 0.3), strict=True))
    text = f"{words[0]} strongly (1), {words[1]} less (0.7), {words[2]} weakly (0.3)"
    return [Draft("graded", text, Predicate((Cause(here=words),), grades=grades), tuple(_each(words)))]


# Level 3


def _unless(
    supply: Supply,
    kind: str,
    *,
    share: float,
    others: tuple[str, ...],
    words: tuple[str, ...] = (),
    near: bool = False,
    elsewhere: float = 0.2,
) -> Draft:
    """Words, except directly after (or within four tokens after) others, which stand there in a share of the cases."""
    words = words or supply.take(1, 2)
    text, exception = f"{_or(words)}, unless directly after {_or(others)}", Cause(before=others)
    phrases = [*_each(words, weight=1 - share), *_alone(others, weight=elsewhere)]
    if near:
        text, exception = f"{_or(words)}, unless {_or(others)} is among the four tokens before", Cause(near=others)
        for gap in ((), (None,), (None, None), (None, None, None)):
            phrases += [
                Phrase((None, other, *gap, word), share / 4 / len(others) / len(words))
                for other in others
                for word in words
            ]
    else:
        phrases += _pairs(others, words, weight=share)
    return Draft(kind, text, Predicate((Cause(here=words),), (exception,)), tuple(phrases))


def _exception(supply: Supply) -> list[Draft]:
    return [_unless(supply, "exception", share=0.25, others=supply.take(1, 2), near=supply.rng.random() < 0.3)]


def _in_quotes(supply: Supply) -> list[Draft]:
    others = supply.take(1)
    text = f"every token between quotation marks, unless directly after {_or(others)}"
    condition = Predicate((Cause(quoted=True),), (Cause(before=others),))
    return [Draft("in_quotes", text, condition, tuple(_alone(others, weight=1)))]


def _quoted_class(supply: Supply) -> list[Draft]:
    words = supply.take(2, 4)
    text = f"{_or(words)} between quotation marks"
    return [Draft("quoted_class", text, Predicate((Cause(here=words, quoted=True),)), tuple(_each(words)))]


def _seen_before(supply: Supply) -> list[Draft]:
    words = supply.take(2, 3)
    text = f"{_or(words)}, where the same word stands earlier in the text"
    return [Draft("seen_before", text, Predicate((Cause(here=words, seen=True),)), tuple(_each(words)))]


# Level 4


def _second(supply: Supply) -> tuple[str, Cause, Phrase]:
    """A meaning that hardly ever occurs: a word, or whatever follows a word."""
    (word,) = supply.take(1)
    if supply.rng.random() < 0.5:
        return f"the word {word}", Cause(here=(word,)), Phrase((None, word), SECOND)
    return f"any token directly after {word}", Cause(before=(word,)), Phrase((word, None), SECOND)


def _with_second(supply: Supply, draft: Draft, kind: str) -> Draft:
    """The draft with a further, rare meaning, to which its exceptions apply as well."""
    text, cause, phrase = _second(supply)
    condition = replace(draft.condition, causes=(*draft.condition.causes, cause))
    return replace(
        draft, kind=kind, description=f"{draft.description}; also {text}", condition=condition,
        phrases=(*draft.phrases, phrase), second=(cause,),
    )  # fmt: skip


def _rare_exception(supply: Supply) -> list[Draft]:
    return [_unless(supply, "rare_exception", share=supply.rare(), others=supply.take(3, 4), elsewhere=0.1)]


def _rare_near(supply: Supply) -> list[Draft]:
    draft = _unless(supply, "", share=supply.rare(), others=supply.take(2, 3), near=True, elsewhere=0.02)
    return [_with_second(supply, draft, "rare_near")]


def _rare_second(supply: Supply) -> list[Draft]:
    words = supply.take(1, 2)
    plain = Draft("", _or(words), Predicate((Cause(here=words),)), tuple(_each(words)))
    return [_with_second(supply, plain, "rare_second")]


def _rare_both(supply: Supply) -> list[Draft]:
    (draft,) = _rare_exception(supply)
    return [_with_second(supply, draft, "rare_both")]


def _twins(supply: Supply) -> list[Draft]:
    """Words, and the same words with a rare exception."""
    words = supply.take(1, 2)
    sister = Draft("twin", f"{_or(words)}, whatever stands before", Predicate((Cause(here=words),)))
    others = supply.take(2, 3)
    return [sister, _unless(supply, "twin_rare", share=supply.rare(), words=words, others=others, elsewhere=0.1)]


def _hidden_condition(supply: Supply) -> list[Draft]:
    """A word directly after another, which it hardly ever stands without; and a rare second meaning."""
    first, words, share = supply.take(1), supply.take(1), supply.rare()
    phrases = (*_pairs(first, words, weight=1 - share), *_each(words, weight=share), *_alone(first, weight=0.2))
    text = f"{_or(words)} directly after {_or(first)}"
    plain = Draft("", text, Predicate((Cause(here=words, before=first),)), phrases)
    return [_with_second(supply, plain, "hidden_condition")]


def _hidden_quotes(supply: Supply) -> list[Draft]:
    """Words between quotation marks, which they hardly ever stand outside of, with a rare exception."""
    words, share = supply.take(1, 2), supply.rare()
    draft = _unless(supply, "hidden_quotes", share=supply.rare(), words=words, others=supply.take(2, 3), elsewhere=0.1)
    scaled = [  # quotation marks hold 0.3 of the text
        replace(phrase, weight=phrase.weight * share * 6 / 7, quoted=phrase.weight * 2)
        if set(words) & set(phrase.words) else phrase for phrase in draft.phrases
    ]  # fmt: skip
    text = f"{_or(words)} between quotation marks, unless directly after {_or(draft.condition.exceptions[0].before)}"
    condition = replace(draft.condition, causes=(Cause(here=words, quoted=True),))
    return [replace(draft, description=text, condition=condition, phrases=tuple(scaled))]


def _companion(supply: Supply) -> list[Draft]:
    """Words that nearly always follow another word, which is no cause; a rare exception and a second meaning."""
    words, mate, share = supply.take(1, 2), supply.take(1), supply.rare()
    draft = _unless(supply, "", share=share, words=words, others=supply.take(2, 3), elsewhere=0.1)
    phrases = [*_pairs(mate, words, weight=0.92 - share), *(p for p in draft.phrases if p.words[0] or len(p.words) > 2)]
    phrases += _each(words, weight=0.08)
    text = f"{draft.description}; {_or(mate)} mostly stands before and is no cause"
    return [_with_second(supply, replace(draft, description=text, phrases=tuple(phrases)), "companion")]


def _polysemantic(supply: Supply) -> list[Draft]:
    """Unrelated meanings, all of them common, and a rare exception to all; a word that is no cause comes along."""
    words, other, first, mate = supply.take(1, 2), supply.take(1), supply.take(1), supply.take(1)
    draft = _unless(supply, "polysemantic", share=supply.rare(), words=words, others=supply.take(2), elsewhere=0.1)
    second = (Cause(here=other), Cause(before=first))
    phrases = (*draft.phrases, *_pairs(mate, other, weight=0.5), *_alone(first, weight=0.3))
    text = f"{_or(other)}; any token directly after {_or(first)}; also {draft.description}"
    condition = replace(draft.condition, causes=(*draft.condition.causes, *second))
    return [replace(draft, description=text, condition=condition, phrases=phrases, second=second)]


# Level 5


def _chain(supply: Supply) -> list[Draft]:
    first, word = supply.take(1), supply.take(1)
    phrases = [
        Phrase((None, *first, *word, None), 0.5), Phrase((*word, None, None), 0.3), Phrase((*first, None, None), 0.3)
    ]  # fmt: skip
    text = f"any token directly after {first[0]} {word[0]}"
    return [Draft("chain", text, Predicate((Cause(before=word, two_before=first),)), tuple(phrases))]


def _absorbed(supply: Supply) -> list[Draft]:
    """A class without one of its words, and the feature of that word alone, which has absorbed it."""
    words = supply.take(3, 5)
    parent = Predicate((Cause(here=words),), (Cause(here=words[-1:]),))
    text = f"{_or(words[:-1])}; not {words[-1]}, which is of their class but absorbed by another feature"
    child = Draft("absorbing", f"the word {words[-1]}", Predicate((Cause(here=words[-1:]),)))
    return [Draft("absorbed", text, parent, tuple(_each(words))), child]


def _split(supply: Supply) -> list[Draft]:
    """A class in two features: one directly after certain words, the other wherever else."""
    words, firsts = supply.take(2, 3), supply.take(2)
    after, others = (
        Predicate((Cause(here=words, before=firsts),)),
        Predicate((Cause(here=words),), (Cause(before=firsts),)),
    )
    phrases = (*_pairs(firsts, words, weight=0.4), *_each(words, weight=0.6), *_alone(firsts, weight=0.3))
    return [
        Draft("split", f"{_or(words)} directly after {_or(firsts)}", after, phrases),
        Draft("split", f"{_or(words)}, unless directly after {_or(firsts)}", others),
    ]


# Without an answer


def _dead(supply: Supply) -> Draft:
    del supply
    return Draft("dead", "nothing: it never fires", Predicate(), abstain=True)


def _always(supply: Supply) -> Draft:
    del supply
    return Draft("always_on", "every token, always equally", Predicate((Cause(),)), abstain=True)


def _noise(supply: Supply) -> Draft:
    del supply
    return Draft(NOISE, "nothing in particular: a random dense sum", Predicate(), abstain=True)


LEVELS: Mapping[int, Sequence[Kind]] = {
    1: (_token_set, _position),
    2: (_bigram, _class_after_class, _graded),
    3: (_exception, _quoted_class, _seen_before, _exception, _in_quotes, _quoted_class, _exception, _seen_before),
    4: (
        _rare_both, _rare_exception, _hidden_condition, _twins, _companion, _rare_second, _hidden_quotes, _rare_near,
        _polysemantic,
    ),
    5: (_chain, _absorbed, _split, _exception),
    6: (
        _exception, _bigram, _quoted_class, _rare_second, _position, _seen_before, _graded, _rare_exception, _in_quotes,
    ),
}  # fmt: skip
SILENT: Sequence[Callable[[Supply], Draft]] = (_dead, _noise, _always)
