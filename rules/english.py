"""A rule in English: fires on ` self` and ` cls` directly after `(`; less strongly on `_` inside a comment.

The first clause is the headline: the cause, by which most is explained. The others follow in their order. A clause
is its current tokens (the head), the conditions that must hold around them, and the exceptions; degrees (also, less
strongly, weakly) compare it with the first. All of the rule is told, and nothing else: a rule that is to be read must
itself be short (`choose`).

A token stands in backticks with its spaces kept; line feeds, tabs and other invisible characters are escaped
as in Python, so a line feed reads `\\n` and a backslash `\\\\`. "The word `x`" is x in any case, with or without a
space before it.
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

MORE, STRONG, WEAK = 1.3, 0.7, 0.3
"""Shares of the first clause's activation: stronger above the first, alike from the second on, weak below the last."""

_ANYWHERE = Position(span=(0, None))


def describe(rule: Rule, *, peak: float | None = None) -> str:
    """Say on which tokens the rule predicts activation: a clause of a sentence, without a full stop.

    `peak` is the feature's highest activation, in the rule's units: against it the first clause may itself be weak.
    """
    return "; ".join([tell_headline(rule, peak=peak), *_tell_rest(rule)])


def tell_headline(rule: Rule, *, peak: float | None = None) -> str:
    """The first part of the description: the first clause."""
    first = rule.any[0]
    if len(rule.any) == 1:
        first = first.model_copy(update={"unless": (*first.unless, *rule.unless)})
    phrase = _phrase(first)
    weak = peak is not None and _strength(first) < WEAK * peak and len(rule.any) == 1 and "weakly" not in phrase
    return f"fires {'weakly ' if weak else ''}{phrase}"


def _tell_rest(rule: Rule) -> list[str]:
    """The other clauses, and what holds of all of them."""
    top, parts = _strength(rule.any[0]), []
    for i, clause in enumerate(rule.any[1:], start=1):
        heads = [set(_named_tokens(earlier)) for earlier in rule.any[:i]]
        again = bool(named := set(_named_tokens(clause))) and any(named <= head for head in heads)
        text = f"{_degree(_strength(clause), top)} {_phrase(clause, top=top)}"
        parts.append(f"{text} elsewhere" if again and not _around(clause) and not clause.unless else text)
    exceptions = rule.unless if len(rule.any) > 1 else ()
    if exceptions:
        parts.append(f"never {join_items([*map(modifier, exceptions)], 'or')}")
    share = rule.floor / top if top > 0 else 0.0
    return [*parts, f"elsewhere at {share:.0%} of that"] if share >= WEAK else parts


def _around(clause: Clause) -> list[Condition]:
    return [condition for condition in clause.when if not _is_current(condition) and condition != _ANYWHERE]


def _phrase(clause: Clause, *, top: float | None = None) -> str:
    """A clause without its verb and its own degree; those of its weaker tokens compare with `top`, or its strongest."""
    named = _named_tokens(clause)
    head, graded = _named_head(clause, named, top or _strength(clause)) if named else _kind_head(clause)
    conditions = join_items(modifiers(_around(clause)), "and")
    if graded and conditions:
        conditions = f"in each case {conditions}"
    text = (", " if graded else " ").join(filter(None, [head, conditions])) or "on every token"
    exceptions = [condition for condition in clause.unless if not (named and _is_current(condition))]
    exempt = join_items([*map(modifier, exceptions)], "or")
    return f"{text}, except {exempt}" if exempt else text


class _Head(NamedTuple):
    """The part of a clause that names the current token."""

    text: str
    """Begins with "on"; empty where the clause has no condition on it."""
    graded: bool
    """Whether the text distinguishes stronger tokens from weaker ones."""


def _named_head(clause: Clause, named: Sequence[str], top: float) -> _Head:
    (_, strong), *weaker = _degrees(clause, named, top).items()
    parts = [f"{degree} on {tokens(members, 'and')}" for degree, members in weaker]
    return _Head(", ".join([f"on {tokens(strong, 'and')}", *parts]), graded=bool(weaker))


def _kind_head(clause: Clause) -> _Head:
    nouns = " that are also ".join(noun(c, plural=True) for c in clause.when if _is_current(c))
    strongest = sorted(clause.gains, key=lambda token: -clause.gains[token])
    if not strongest:
        return _Head(nouns and f"on {nouns}", graded=False)
    strong = tokens(_degrees(clause, strongest, clause.gains[strongest[0]])["also"], "and")
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
        return condition.is_current
    return False


def _allows(condition: Token | Class | Regex, token: str) -> bool:
    match condition:
        case Token():
            return token in condition.any
        case Class():
            return CLASSES[condition.name](token)
        case Regex():
            return re.search(condition.pattern, token) is not None


def _degrees(clause: Clause, named: Sequence[str], top: float) -> dict[str, list[str]]:
    """Tokens, strongest first, by how their activation compares with the top one."""
    degrees: dict[str, list[str]] = {}
    for token in named:
        degrees.setdefault(_degree(clause.gains.get(token, clause.value), top), []).append(token)
    return degrees


def _strength(clause: Clause) -> float:
    """The highest activation that the clause predicts."""
    return max(
        (clause.gains.get(token, clause.value) for token in _named_tokens(clause) or [*clause.gains]),
        default=clause.value,
    )


def _degree(strength: float, top: float) -> str:
    share = strength / top if top > 0 else 1.0
    if share > MORE:
        return "more strongly"
    return "also" if share >= STRONG else "less strongly" if share >= WEAK else "weakly"


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


def join_items(items: Sequence[str], joint: str) -> str:
    """`a, b and c`."""
    return f" {joint} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def tokens(strings: Sequence[str], joint: str) -> str:
    """Tokens in backticks."""
    return join_items([*map(visible, strings)], joint)


def modifiers(conditions: Iterable[Condition]) -> list[str]:
    """Conditions that all hold, each as a phrase, the nearest context first; a run of tokens becomes one phrase."""
    ordered = sorted(conditions, key=_distance)
    before, behind = (_find_run(ordered, sign) for sign in (-1, 1))
    runs = [("after", before[::-1]), ("before", behind)]
    rest = [modifier(condition) for condition in ordered if condition not in (*before, *behind)]
    told = (f"directly {side} {visible(''.join(token.any[0] for token in run))}" for side, run in runs if run)
    return [*told, *rest]


def _find_run(conditions: Iterable[Condition], sign: int) -> list[Token]:
    """The single tokens at the offsets 1, 2, ... times a sign, the nearest first; none where there is but one."""
    singles = {
        sign * c.at: c
        for c in conditions
        if isinstance(c, Token) and len(c.any) == 1 and c.within is None and c.after is None
    }
    length = next(distance for distance in range(1, len(singles) + 2) if distance not in singles) - 1
    return [singles[distance] for distance in range(1, length + 1)] if length > 1 else []


def modifier(condition: Condition) -> str:
    """One condition as a phrase that can follow the token it is about, or "except"."""
    match condition:
        case Position():
            return _positions(condition)
        case Inside():
            return _INSIDE[condition.what]
        case Repeat(gap=1):
            return "when the token has occurred before"
        case Repeat():
            return f"when the token has occurred at least {condition.gap} tokens before"
        case Induction(n=1):
            return "when a token follows the same token as earlier in the text (induction)"
        case Induction():
            return f"when a token follows the same {condition.n} tokens as earlier in the text (induction)"
        case _:
            return f"{_place(condition)} {noun(condition)}"


def noun(condition: Token | Class | Regex | Text, *, plural: bool = False) -> str:
    """A condition on a token or a text as a noun: its tokens, the class, the pattern or the text."""
    match condition:
        case Token():
            return tokens(condition.any, "or")
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
    names = join_items([*map(visible, parts)], "or")
    if told and told["word"] and told["end"]:
        names = join_items([*map(visible, parts)], "and" if plural else "or")
        return f"the word{'s' if plural and len(parts) > 1 else ''} {names}"
    if told and told["start"] and not told["end"]:
        return f"{'tokens' if plural else 'a token'} beginning with {names}"
    if told and told["end"] and not told["start"]:
        return f"{'tokens' if plural else 'a token'} ending in {names}"
    return f"{'tokens' if plural else 'a token'} matching `/{pattern}/`"


def _distance(condition: Condition) -> tuple[int, int]:
    """Sort key: fixed offsets, then windows of tokens, then the rest."""
    if isinstance(condition, Token | Class | Regex | Text):
        return (0 if condition.within is None and condition.after is None else 1, max(condition.reach, condition.ahead))
    return (2, 0)


def _place(condition: Token | Class | Regex | Text) -> str:
    # Where the token that is meant stands behind, the current one stands before it.
    side, reach = ("before", condition.after) if condition.ahead else ("after", condition.within)
    if reach == "any":
        return f"anywhere {side}"
    if reach is not None and reach > 1:
        return f"within {reach} tokens {side}"
    distance = max(condition.reach, condition.ahead)
    if distance == 0:
        ends = isinstance(condition, Text) or (isinstance(condition, Regex) and condition.of == "text")
        return "at the end of" if ends else "on"
    return f"directly {side}" if distance == 1 else f"{distance} tokens {side}"


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
