"""A rule in English: fires on ` self` directly after `(`, most strongly in `def __init__(self`.

The clauses stand strongest first. A clause is its current tokens (the head), the conditions that must hold around
them, and the exceptions. Where lists are long or clauses many, the strongest are spelled out and the others
counted, so that a description stays under about `WORDS` words.

A token stands in backticks with its spaces kept; line feeds, tabs and other invisible characters are escaped
as in Python, so a line feed reads `\\n` and a backslash `\\\\`. A list is cut to its first members, and the rest
are counted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from .language import (
    CLASSES,
    Class,
    ClassName,
    Clause,
    Condition,
    Induction,
    Inside,
    InsideName,
    Position,
    Regex,
    Repeat,
    Rule,
    Text,
    Token,
)

WORDS = 60
"""About how long a description may be."""

STRONG, WEAK = 0.7, 0.3
"""From the first share of the strongest on, an activation is called strong; below the second, weak."""

_SHOWN = (5, 3, 2, 1)
"""How many tokens of a set are shown; the first of these with which the strongest clause fits."""

_ANYWHERE = Position(span=(0, None))


def describe(rule: Rule, *, peak: float | None = None, example: str | None = None) -> str:
    """Say on which tokens the rule predicts activation: a clause of a sentence, without a full stop.

    `peak` is the feature's highest activation, in the rule's units: against it the strongest clause may itself be
    weak. `example` is a piece of text that the feature is strong in, quoted with the strongest clause.
    """
    first, *others = sorted(rule.any, key=_strength, reverse=True)
    if not others:
        first = first.model_copy(update={"unless": (*first.unless, *rule.unless)})
    top = _strength(first)
    verb = "fires weakly" if peak is not None and top < WEAK * peak else "fires"
    ending = _ending(rule, top=top)
    text = ""
    for shown in _SHOWN:
        text = f"{verb} {_phrase(first, shown=shown)}{_instance(first, example)}"
        if count_words(text + ending) <= WORDS:
            break
    for count, clause in enumerate(others):
        more = f"; {_degree(_strength(clause), top)} {_phrase(clause, shown=3)}"
        if count_words(text + more + ending) > WORDS:
            left = len(others) - count
            return f"{text}; and {left} weaker pattern{'' if left == 1 else 's'}{ending}"
        text += more
    return text + ending


def _phrase(clause: Clause, *, shown: int) -> str:
    """A clause without its verb; of each list of tokens at most `shown` are shown."""
    named = _named_tokens(clause)
    head, graded = _named_head(clause, named, shown=shown) if named else _kind_head(clause, shown=shown)
    around = [condition for condition in clause.when if not _is_current(condition) and condition != _ANYWHERE]
    conditions = join_items(modifiers(around, shown=shown), "and", shown=shown + 1, more="condition")
    if graded and conditions:
        conditions = f"in each case {conditions}"
    text = (", " if graded else " ").join(filter(None, [head, conditions])) or "on every token"
    exceptions = [condition for condition in clause.unless if not (named and _is_current(condition))]
    phrases = [modifier(condition, shown=min(shown, 3)) for condition in exceptions]
    exempt = join_items(phrases, "or", shown=shown + 1, more="exception")
    return f"{text}, except {exempt}" if exempt else text


class _Head(NamedTuple):
    """The part of a clause that names the current token."""

    text: str
    """Begins with "on"; empty where the clause has no condition on it."""
    graded: bool
    """Whether the text distinguishes stronger tokens from weaker ones."""


def _named_head(clause: Clause, named: Sequence[str], *, shown: int) -> _Head:
    degrees = _degrees(clause, named)
    (_, strong), *weaker = degrees.items()
    parts = [f"{degree} on {tokens(members, 'and', shown=min(shown, 3))}" for degree, members in weaker]
    return _Head(", ".join([f"on {tokens(strong, 'and', shown=shown)}", *parts]), graded=bool(weaker))


def _kind_head(clause: Clause, *, shown: int) -> _Head:
    nouns = " that are also ".join(noun(c, shown=shown, plural=True) for c in clause.when if _is_current(c))
    strongest = sorted(clause.gains, key=lambda token: -clause.gains[token])
    if not strongest:
        return _Head(nouns and f"on {nouns}", graded=False)
    strong = tokens(_degrees(clause, strongest)["also"], "and", shown=shown)
    return _Head(f"on {nouns or 'every token'}, most strongly {strong}", graded=True)


def _named_tokens(clause: Clause) -> list[str]:
    """The current tokens that the clause names and that its other conditions on them let pass, strongest first."""
    required = [condition for condition in clause.when if _is_current(condition)]
    excepted = [condition for condition in clause.unless if _is_current(condition)]
    named = next((list(dict.fromkeys(c.any)) for c in required if isinstance(c, Token)), [])
    passing = [
        token
        for token in named
        if all(_allows(condition, token) for condition in required)
        and not any(_allows(condition, token) for condition in excepted)
    ]
    return sorted(passing or named, key=lambda token: -clause.gains.get(token, clause.value))


def _is_current(condition: Condition) -> TypeGuard[Token | Class | Regex]:
    """Whether the condition is on the current token's own string."""
    if isinstance(condition, Token | Class) or (isinstance(condition, Regex) and condition.of == "token"):
        return condition.at == 0 and condition.within is None
    return False


def _allows(condition: Token | Class | Regex, token: str) -> bool:
    match condition:
        case Token():
            return token in condition.any
        case Class():
            return CLASSES[condition.name](token)
        case Regex():
            return re.search(condition.pattern, token) is not None


def _degrees(clause: Clause, named: Sequence[str]) -> dict[str, list[str]]:
    """Tokens, strongest first, by how their activation compares with the first one's."""
    degrees: dict[str, list[str]] = {}
    values = [clause.gains.get(token, clause.value) for token in named]
    for token, value in zip(named, values, strict=True):
        degrees.setdefault(_degree(value, values[0]), []).append(token)
    return degrees


def _strength(clause: Clause) -> float:
    """The highest activation that the clause predicts."""
    return max(
        (clause.gains.get(token, clause.value) for token in _named_tokens(clause) or [*clause.gains]),
        default=clause.value,
    )


def _degree(strength: float, top: float) -> str:
    share = strength / top if top > 0 else 1.0
    return "also" if share >= STRONG else "less strongly" if share >= WEAK else "weakly"


def _instance(clause: Clause, example: str | None) -> str:
    if not example:
        return ""
    return f", {'for example' if clause.gains else 'most strongly'} in {visible(example[-60:])}"


def _ending(rule: Rule, *, top: float) -> str:
    """The part on all clauses together: their exceptions, and a level elsewhere that is far from zero."""
    exceptions = rule.unless if len(rule.any) > 1 else ()
    never = join_items([modifier(c, shown=3) for c in exceptions], "or", shown=2, more="exception")
    share = rule.floor / top if top > 0 else 0.0
    return (f"; never {never}" if never else "") + (f"; elsewhere at {share:.0%} of that" if share >= 0.1 else "")


def count_words(text: str) -> int:
    """The words of a description; a token in backticks is as many as it holds."""
    return len(text.replace("`", "").split())


_NOUNS: Mapping[ClassName, tuple[str, str]] = {
    "digit": ("a number", "numbers"),
    "word": ("a word", "words"),
    "capitalised": ("a capitalised word", "capitalised words"),
    "uppercase": ("an upper-case word", "upper-case words"),
    "lowercase": ("a lower-case word", "lower-case words"),
    "punctuation": ("punctuation", "punctuation"),
    "whitespace": ("white space", "white space"),
    "newline": ("a line break", "line breaks"),
    "identifier": ("an identifier", "identifiers"),
    "spaced": ("a token with a leading space", "tokens with a leading space"),
}
_MEMBERS: Mapping[ClassName, str] = {
    "word": "word",
    "digit": "number",
    "identifier": "name",
    "punctuation": "punctuation mark",
}
"""The noun for the members of a set, by the first class that all of them belong to."""

_INSIDE: Mapping[InsideName, str] = {
    "single": "inside single quotes",
    "double": "inside double quotes",
    "triple": "inside a triple-quoted string",
    "quotes": "inside quotes",
    "parentheses": "inside parentheses",
    "brackets": "inside square brackets",
    "braces": "inside braces",
    "comment": "inside a comment",
}


def visible(text: str) -> str:
    """The text in backticks, with invisible characters and backslashes escaped."""
    escaped = "".join(
        character if character.isprintable() and character != "\\" else character.encode("unicode_escape").decode()
        for character in text
    )
    return f"`` {escaped} ``" if "`" in escaped else f"`{escaped}`"


def join_items(items: Sequence[str], joint: str, *, shown: int, more: str) -> str:
    """`a, b and c`, or `a, b and 7 more words`: at most `shown` members, the count of the rest included."""
    if len(items) > max(shown, 1):
        first = items[: max(shown - 1, 1)]
        left = len(items) - len(first)
        items = [*first, f"{left} more {more}{'' if left == 1 else 's'}"]
    return f" {joint} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def tokens(strings: Sequence[str], joint: str, *, shown: int) -> str:
    """Tokens in backticks; of a long set the first ones, and how many more of which kind there are."""
    kind = next((noun for name, noun in _MEMBERS.items() if all(map(CLASSES[name], strings))), "token")
    return join_items([*map(visible, strings)], joint, shown=shown, more=kind)


def modifiers(conditions: Iterable[Condition], *, shown: int) -> list[str]:
    """Conditions that all hold, each as a phrase, the nearest context first; a run of tokens becomes one phrase."""
    ordered = sorted(conditions, key=_distance)
    singles = {-c.at: c for c in ordered if isinstance(c, Token) and len(c.any) == 1 and c.within is None}
    length = next(back for back in range(1, len(singles) + 2) if back not in singles) - 1
    if length < 2:
        return [modifier(condition, shown=shown) for condition in ordered]
    run = [singles[back] for back in range(length, 0, -1)]
    rest = [modifier(condition, shown=shown) for condition in ordered if condition not in run]
    return [f"directly after {visible(''.join(token.any[0] for token in run))}", *rest]


def modifier(condition: Condition, *, shown: int) -> str:
    """One condition as a phrase that can follow the token it is about, or "except"."""
    match condition:
        case Position():
            return _positions(condition)
        case Inside():
            return _INSIDE[condition.what]
        case Repeat(gap=1):
            return "when the token has occurred before in the text"
        case Repeat():
            return f"when the token has occurred at least {condition.gap} tokens before"
        case Induction(n=1):
            return "when a token follows the same token as earlier in the text (induction)"
        case Induction():
            return f"when a token follows the same {condition.n} tokens as earlier in the text (induction)"
        case _:
            return f"{_place(condition)} {noun(condition, shown=shown)}"


def noun(condition: Token | Class | Regex | Text, *, shown: int, plural: bool = False) -> str:
    """A condition on a token or a text as a noun: its tokens, the class, the pattern or the text."""
    match condition:
        case Token():
            return tokens(condition.any, "or", shown=shown)
        case Class():
            return _NOUNS[condition.name][plural]
        case Regex(of="text"):
            return f"text matching `/{condition.pattern}/`"
        case Regex():
            return _pattern(condition.pattern, plural=plural)
        case Text():
            return visible(condition.ending if len(condition.ending) <= 40 else "…" + condition.ending[-39:])


_TOLD = re.compile(
    r"(?P<word>\(\?i\)\^\\s\?)?(?P<start>\^)?(?:\(\?:)?(?P<parts>(?:[^\\()\[\]{}.*+?^$|]|\\[^\w]|\|)+)\)?(?P<end>\$)?"
)
"""Patterns that are told in words: a word however it is written, a token's beginning, its ending."""


def _pattern(pattern: str, *, plural: bool) -> str:
    told = _TOLD.fullmatch(pattern)
    parts = [re.sub(r"\\(.)", r"\1", part) for part in told["parts"].split("|")] if told else []
    names = join_items([*map(visible, parts)], "or", shown=9, more="part")
    if told and told["word"] and told["end"]:
        names = join_items([*map(visible, parts)], "and" if plural else "or", shown=9, more="word")
        return f"the word{'s' if plural and len(parts) > 1 else ''} {names}"
    if told and told["start"] and not told["end"]:
        return f"{'tokens' if plural else 'a token'} beginning with {names}"
    if told and told["end"] and not told["start"]:
        return f"{'tokens' if plural else 'a token'} ending in {names}"
    return f"{'tokens' if plural else 'a token'} matching `/{pattern}/`"


def _distance(condition: Condition) -> tuple[int, int]:
    """Sort key: fixed offsets, then windows of tokens, then the rest."""
    if isinstance(condition, Token | Class | Regex | Text):
        return (0, -condition.at) if condition.within is None else (1, condition.within)
    return (2, 0)


def _place(condition: Token | Class | Regex | Text) -> str:
    if condition.within is not None and condition.within > 1:
        return f"within {condition.within} tokens after"
    back = condition.within or -condition.at
    if back == 0:
        ends = isinstance(condition, Text) or (isinstance(condition, Regex) and condition.of == "text")
        return "at the end of" if ends else "on"
    return "directly after" if back == 1 else f"{back} tokens after"


def _positions(condition: Position) -> str:
    first, last = condition.span
    if last is not None and last - first < condition.every:
        return "at the start of a window" if first == 0 else f"at position {first} of a window"
    if condition.every > 1:
        ends = (
            "" if first == 0 and last is None else f" from {first} on" if last is None else f" from {first} to {last}"
        )
        return f"at every {_ordinal(condition.every)} position{ends} of a window"
    if last is None:
        return "anywhere in a window" if first == 0 else f"from position {first} of a window on"
    return (
        f"in the first {last + 1} tokens of a window" if first == 0 else f"at positions {first} to {last} of a window"
    )


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
