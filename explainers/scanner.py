"""What is open at a place in a text: quotations, brackets, comments.

One left-to-right scan in which the state at an offset depends on the text before it only, so that a
causal model could have computed it. The rules are those of source code, with enough give for prose.
"""

import re
from collections.abc import Iterator

from .rules import InsideName

BITS: dict[InsideName, int] = {
    "single": 1,
    "double": 2,
    "triple": 4,
    "quotes": 7,
    "parentheses": 8,
    "brackets": 16,
    "braces": 32,
    "comment": 64,
}
"""How `states` codes what is open."""

_MARK = re.compile(r"\\[^\n]|['\"#()\[\]{}\n]")
_PREFIXES = frozenset({"r", "b", "u", "f", "rb", "br", "fr", "rf"})
_DEPTHS = {"(": BITS["parentheses"], "[": BITS["brackets"], "{": BITS["braces"]}
_OPENERS = {")": "(", "]": "[", "}": "{"}
_DELIMITERS = {
    "": 0,
    "#": BITS["comment"],
    "'": BITS["single"],
    '"': BITS["double"],
    "'''": BITS["triple"],
    '"""': BITS["triple"],
}


def states(text: str) -> Iterator[tuple[int, int]]:
    """Scan a text and yield `(offset, bits)`: from this offset on, this is open; nothing is open at 0.

    A backslash hides the next character, other than a line feed. Outside quotations and comments: `#` opens a
    comment to the line's end; each kind of bracket is counted on its own, and a closing one without its opening
    one is ignored; a quote opens a one-line string, which the same quote or the line's end closes, but a `'`
    after a letter, digit or underscore is an apostrophe, unless these are a prefix of Python's strings (r, b, u,
    f and pairs of them); a third quote right after an empty string opens a triple-quoted one, which three such
    quotes in a row close. Inside quotations and comments nothing else opens or closes.
    """
    depth = dict.fromkeys(_DEPTHS, 0)
    opened = ""  # the delimiter of the open quotation, "#" in a comment
    run, run_end = "", 0  # adjacent quotes that may come to open or close a triple-quoted string
    for mark in _MARK.finditer(text):
        character, at = mark[0], mark.start()
        run = run if at == run_end else ""
        if character == "\n":
            opened = opened if len(opened) == 3 else ""
        elif character in "'\"":
            opened, run = _quoted(character, opened, run, apostrophe=_is_apostrophe(text, at))
            run_end = at + 1
        elif opened:
            continue
        elif character == "#":
            opened = "#"
        elif character in depth:
            depth[character] += 1
        elif character in _OPENERS:
            depth[_OPENERS[character]] = max(0, depth[_OPENERS[character]] - 1)
        yield mark.end(), _DELIMITERS[opened] | sum(_DEPTHS[bracket] for bracket, count in depth.items() if count)


def _quoted(quote: str, opened: str, run: str, *, apostrophe: bool) -> tuple[str, str]:
    """The open delimiter and the run of quotes after one more quote."""
    if not opened and run == quote * 2:
        return quote * 3, ""
    if not opened:
        return ("", "") if quote == "'" and apostrophe else (quote, quote)
    if opened == quote:
        return "", (run + quote if run == quote else "")
    if opened == quote * 3:
        return ("", "") if run == quote * 2 else (opened, run + quote)
    return opened, ""


def _is_apostrophe(text: str, at: int) -> bool:
    """Whether a quote at this offset would follow a word that is no string prefix."""
    word = re.search(r"\w+\Z", text[max(0, at - 3) : at])
    return word is not None and word[0].lower() not in _PREFIXES
