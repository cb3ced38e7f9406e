r"""The parts of a rule as English phrases: tokens, lists and single conditions.

A token stands in backticks with its spaces kept; line feeds, tabs and other invisible characters are escaped
as in Python, so a line feed reads `\n` and a backslash `\\`. A list is cut to its first members, and the rest
are counted.
"""

from collections.abc import Iterable, Mapping, Sequence

from .rules import (
    CLASSES,
    Class,
    ClassName,
    Condition,
    Induction,
    Inside,
    InsideName,
    Position,
    Regex,
    Repeat,
    Text,
    Token,
)

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
"""What the members of a set are called, by the first class that all of them belong to."""

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
    shown = "".join(
        character if character.isprintable() and character != "\\" else character.encode("unicode_escape").decode()
        for character in text
    )
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def listed(items: Sequence[str], joint: str, *, shown: int, more: str) -> str:
    """`a, b and c`, or `a, b and 7 more words`: at most `shown` members, the count of what is left included."""
    if len(items) > max(shown, 1):
        kept = items[: max(shown - 1, 1)]
        left = len(items) - len(kept)
        items = [*kept, f"{left} more {more}{'' if left == 1 else 's'}"]
    return f" {joint} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def tokens(strings: Sequence[str], joint: str, *, shown: int) -> str:
    """Tokens in backticks; of a long set the first ones, and how many more of which kind there are."""
    kind = next((noun for name, noun in _MEMBERS.items() if all(map(CLASSES[name], strings))), "token")
    return listed([*map(visible, strings)], joint, shown=shown, more=kind)


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
    """What a condition on a token or a text says that it is."""
    match condition:
        case Token():
            return tokens(condition.any, "or", shown=shown)
        case Class():
            return _NOUNS[condition.name][plural]
        case Regex(of="text"):
            return f"text matching `/{condition.pattern}/`"
        case Regex():
            return f"{'tokens' if plural else 'a token'} matching `/{condition.pattern}/`"
        case Text():
            return visible(condition.ending if len(condition.ending) <= 40 else "…" + condition.ending[-39:])


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
