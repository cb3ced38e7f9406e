"""Level 4: units whose exact condition the corpus hides; each reads well as something simpler, wrong on rare text.

An exception, or the absence of a second condition, has a probability of 0.02 to 0.05 where the unit would fire
otherwise, shared by two to four words; a second meaning makes up 0.2% of the firings. All of it shows in exhaustive
scans: the vocabulary at the token or at one of the four before it, where the unit is active and where it is silent.
"""

from dataclasses import replace

from .drafts import Draft, Supply, alone, each, either, pairs, unless
from .grammar import Phrase
from .truth import Cause, Predicate

RARE = (0.02, 0.05)
"""Bounds of the probability of a hidden exception or absence."""
SECOND = 0.002
"""Share of a unit's firings that a rare second meaning has."""


def _draw_rare(supply: Supply) -> float:
    return supply.rng.uniform(*RARE)


def _draw_second(supply: Supply) -> tuple[str, Cause, Phrase]:
    """A meaning that hardly ever occurs: a word, or whatever follows a word."""
    (word,) = supply.take(1)
    if supply.rng.random() < 0.5:
        return f"the word {word}", Cause(here=(word,)), Phrase((None, word), SECOND)
    return f"any token directly after {word}", Cause(before=(word,)), Phrase((word, None), SECOND)


def _with_second(supply: Supply, draft: Draft, kind: str) -> Draft:
    """The draft with a further, rare meaning, to which its exceptions apply as well."""
    text, cause, phrase = _draw_second(supply)
    condition = replace(draft.condition, causes=(*draft.condition.causes, cause))
    return replace(
        draft,
        kind=kind,
        description=f"{draft.description}; also {text}",
        condition=condition,
        phrases=(*draft.phrases, phrase),
        second=(cause,),
    )


def rare_exception(supply: Supply) -> list[Draft]:
    """Words with a rare exception."""
    return [unless(supply, "rare_exception", share=_draw_rare(supply), others=supply.take(3, 4), lone=0.1)]


def rare_near(supply: Supply) -> list[Draft]:
    """Words with a rare exception among the four tokens before, and a rare second meaning."""
    draft = unless(supply, "", share=_draw_rare(supply), others=supply.take(2, 3), near=True, lone=0.02)
    return [_with_second(supply, draft, "rare_near")]


def rare_second(supply: Supply) -> list[Draft]:
    """Words with a rare second meaning."""
    words = supply.take(1, 2)
    plain = Draft("", either(words), Predicate((Cause(here=words),)), tuple(each(words)))
    return [_with_second(supply, plain, "rare_second")]


def rare_both(supply: Supply) -> list[Draft]:
    """Words with a rare exception and a rare second meaning."""
    (draft,) = rare_exception(supply)
    return [_with_second(supply, draft, "rare_both")]


def twins(supply: Supply) -> list[Draft]:
    """Words, and the same words with a rare exception."""
    words = supply.take(1, 2)
    others = supply.take(2, 3)
    rare = unless(supply, "twin_rare", share=_draw_rare(supply), words=words, others=others, lone=0.1)
    text = f"{either(words)}, whatever stands before"
    return [Draft("twin", text, Predicate((Cause(here=words),)), rare.phrases), replace(rare, phrases=())]


def hidden_condition(supply: Supply) -> list[Draft]:
    """A word directly after another, which it hardly ever stands without; and a rare second meaning."""
    first, words, share = supply.take(1), supply.take(1), _draw_rare(supply)
    phrases = (*pairs(first, words, weight=1 - share), *each(words, weight=share), *alone(first, weight=0.2))
    text = f"{either(words)} directly after {either(first)}"
    plain = Draft("", text, Predicate((Cause(here=words, before=first),)), phrases)
    return [_with_second(supply, plain, "hidden_condition")]


def hidden_quotes(supply: Supply) -> list[Draft]:
    """Words between quotation marks, which they hardly ever stand outside of, with a rare exception."""
    words, share = supply.take(1, 2), _draw_rare(supply)
    draft = unless(supply, "hidden_quotes", share=_draw_rare(supply), words=words, others=supply.take(2, 3), lone=0.1)
    scaled = [  # quotation marks hold 0.3 of the text
        replace(phrase, weight=phrase.weight * share * 6 / 7, quoted=phrase.weight * 2)
        if set(words) & set(phrase.words)
        else phrase
        for phrase in draft.phrases
    ]
    text = (
        f"{either(words)} between quotation marks, unless directly after {either(draft.condition.exceptions[0].before)}"
    )
    condition = replace(draft.condition, causes=(Cause(here=words, quoted=True),))
    return [replace(draft, description=text, condition=condition, phrases=tuple(scaled))]


def companion(supply: Supply) -> list[Draft]:
    """Words that nearly always follow another word, which is no cause; a rare exception and a second meaning."""
    words, mate, share = supply.take(1, 2), supply.take(1), _draw_rare(supply)
    draft = unless(supply, "", share=share, words=words, others=supply.take(2, 3), lone=0.1)
    phrases = [*pairs(mate, words, weight=0.92 - share), *(p for p in draft.phrases if p.words[0] or len(p.words) > 2)]
    phrases += each(words, weight=0.08)
    text = f"{draft.description}; {either(mate)} mostly stands before and is no cause"
    return [_with_second(supply, replace(draft, description=text, phrases=tuple(phrases)), "companion")]


def polysemantic(supply: Supply) -> list[Draft]:
    """Unrelated meanings, all of them common, and a rare exception to all; a word that is no cause comes along."""
    words, other, first, mate = supply.take(1, 2), supply.take(1), supply.take(1), supply.take(1)
    draft = unless(supply, "polysemantic", share=_draw_rare(supply), words=words, others=supply.take(2), lone=0.1)
    second = (Cause(here=other), Cause(before=first))
    phrases = (*draft.phrases, *pairs(mate, other, weight=0.5), *alone(first, weight=0.3))
    text = f"{either(other)}; any token directly after {either(first)}; also {draft.description}"
    condition = replace(draft.condition, causes=(*draft.condition.causes, *second))
    return [replace(draft, description=text, condition=condition, phrases=phrases, second=second)]
