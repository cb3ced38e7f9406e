"""The kinds of planted units, level by level: each draws its words, its condition, and the phrases that show it.

    1  a set of tokens; a band of positions, the later part, every n-th
    2  a word directly after another; a class directly after a class; grades
    3  an exception; anything in quotes; a class in quotes; a word seen before
    4  hidden by the corpus (hidden.py): rare exceptions, second conditions that hardly ever fail, rare second
       meanings, a word that comes along and is no cause, a twin that agrees with its sister on 99% of tokens
    5  features of a dictionary (graft.py): a chain through three layers, a class of which another feature has
       absorbed a word, a class split in two
    6  kinds of the levels before, grafted into a trained model (graft.py)

A kind that is listed twice is drawn twice as often. Abstention units have no answer: dead, always on, dense noise.
"""

from collections.abc import Callable, Mapping, Sequence

from ...subject.errors import NeuronautError
from .drafts import Draft, Kind, Supply, alone, each, either, pairs, unless
from .grammar import Phrase
from .hidden import (
    companion,
    hidden_condition,
    hidden_quotes,
    polysemantic,
    rare_both,
    rare_exception,
    rare_near,
    rare_second,
    twins,
)
from .truth import LONGEST, Cause, Predicate

NOISE = "noise"
"""The kind whose drafts are still to be given a dense sum."""


def build(level: int, supply: Supply, *, units: int) -> list[Draft]:
    """So many drafts of a level, its kinds in turn; every eighth is an abstention unit."""
    if level not in LEVELS:
        raise NeuronautError(f"there is no level {level}; the levels are 1 to {max(LEVELS)}")
    silent = max(1, units // 8) if units > 1 else 0
    drafts: list[Draft] = []
    for turn in range(units):
        if len(drafts) < units - silent:
            drafts += LEVELS[level][turn % len(LEVELS[level])](supply)
    first = supply.rng.randrange(len(SILENT))
    drafts = drafts[: units - silent]
    return drafts + [SILENT[(first + number) % len(SILENT)](supply) for number in range(silent)]


# Level 1


def _token_set(supply: Supply) -> list[Draft]:
    words = supply.take(2, 5)
    return [Draft("token_set", f"the words {either(words)}", Predicate((Cause(here=words),)), tuple(each(words)))]


def _position(supply: Supply) -> list[Draft]:
    rng = supply.rng
    # Half of the places at most: a unit that is active on more would count as dense.
    first, step, late = rng.randint(2, 40), rng.randint(3, 5), rng.randint(34, 56)
    text, places = rng.choice(
        [
            (f"positions {first} to {first + step + 2}", range(first, first + step + 3)),
            (f"every position from {late}", range(late, LONGEST)),
            (f"one position in {step}, from {first % step}", range(first % step, LONGEST, step)),
        ]
    )
    return [Draft("position", f"{text}, counted from 0", Predicate((Cause(places=tuple(places)),)))]


# Level 2


def _bigram(supply: Supply) -> list[Draft]:
    first, word = supply.take(1), supply.take(1)
    phrases = (*pairs(first, word, weight=0.4), *each(word, weight=0.4), *alone(first, weight=0.4))
    cause = Cause(here=word, before=first)
    return [Draft("bigram", f"{either(word)} directly after {either(first)}", Predicate((cause,)), phrases)]


def _class_after_class(supply: Supply) -> list[Draft]:
    firsts, words = supply.take(3), supply.take(5, 7)
    phrases = (*pairs(firsts, words, weight=0.6), *each(words, weight=0.6), *alone(firsts, weight=0.4))
    text = f"one of {', '.join(words)} directly after {either(firsts)}"
    return [Draft("class_after_class", text, Predicate((Cause(here=words, before=firsts),)), phrases)]


def _graded(supply: Supply) -> list[Draft]:
    words = supply.take(3)
    grades = dict(zip(words, (1.0, 0.7, 0.3), strict=True))
    text = f"{words[0]} strongly (1), {words[1]} less (0.7), {words[2]} weakly (0.3)"
    return [Draft("graded", text, Predicate((Cause(here=words),), grades=grades), tuple(each(words)))]


# Level 3


def _exception(supply: Supply) -> list[Draft]:
    return [unless(supply, "exception", share=0.25, others=supply.take(1, 2), near=supply.rng.random() < 0.3)]


def _in_quotes(supply: Supply) -> list[Draft]:
    others = supply.take(1)
    text = f"every token between quotation marks, unless directly after {either(others)}"
    condition = Predicate((Cause(quoted=True),), (Cause(before=others),))
    return [Draft("in_quotes", text, condition, tuple(alone(others, weight=1)))]


def _quoted_class(supply: Supply) -> list[Draft]:
    words = supply.take(2, 4)
    text = f"{either(words)} between quotation marks"
    return [Draft("quoted_class", text, Predicate((Cause(here=words, quoted=True),)), tuple(each(words)))]


def _seen_before(supply: Supply) -> list[Draft]:
    words = supply.take(2, 3)
    text = f"{either(words)}, where the same word stands earlier in the text"
    return [Draft("seen_before", text, Predicate((Cause(here=words, seen=True),)), tuple(each(words)))]


# Level 5


def _chain(supply: Supply) -> list[Draft]:
    first, word = supply.take(1), supply.take(1)
    phrases = [
        Phrase((None, *first, *word, None), 0.5),
        Phrase((*word, None, None), 0.3),
        Phrase((*first, None, None), 0.3),
    ]
    text = f"any token directly after {first[0]} {word[0]}"
    return [Draft("chain", text, Predicate((Cause(before=word, two_before=first),)), tuple(phrases))]


def _absorbed(supply: Supply) -> list[Draft]:
    """A class without one of its words, and the feature of that word alone, which has absorbed it."""
    words = supply.take(3, 5)
    parent = Predicate((Cause(here=words),), (Cause(here=words[-1:]),))
    text = f"{either(words[:-1])}; not {words[-1]}, which is of their class but absorbed by another feature"
    child = Draft("absorbing", f"the word {words[-1]}", Predicate((Cause(here=words[-1:]),)))
    return [Draft("absorbed", text, parent, tuple(each(words))), child]


def _split(supply: Supply) -> list[Draft]:
    """A class in two features: one directly after certain words, the other wherever else."""
    words, firsts = supply.take(2, 3), supply.take(2)
    after, others = (
        Predicate((Cause(here=words, before=firsts),)),
        Predicate((Cause(here=words),), (Cause(before=firsts),)),
    )
    phrases = (*pairs(firsts, words, weight=0.4), *each(words, weight=0.6), *alone(firsts, weight=0.3))
    return [
        Draft("split", f"{either(words)} directly after {either(firsts)}", after, phrases),
        Draft("split", f"{either(words)}, unless directly after {either(firsts)}", others),
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
        rare_both,
        rare_exception,
        hidden_condition,
        twins,
        companion,
        rare_second,
        hidden_quotes,
        rare_near,
        polysemantic,
    ),
    5: (_chain, _absorbed, _split, _exception),
    6: (_exception, _bigram, _quoted_class, rare_second, _position, _seen_before, _graded, rare_exception, _in_quotes),
}
SILENT: Sequence[Callable[[Supply], Draft]] = (_dead, _noise, _always)
