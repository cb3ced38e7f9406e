"""Which regular expressions a rule may hold: those that cannot take exponential time.

Backtracking explodes where a repeated group can match the same text in several ways. So a group that is
repeated may hold neither a repetition nor alternatives, and there are no back-references, named groups,
conditionals, comments or flags other than a leading `(?i)`. A few unbounded repetitions side by side cost
a polynomial, which the short texts that rules search keep small.
"""

import re

UNBOUNDED = 3
"""How many of `*`, `+` and `{n,}` a pattern may hold."""

_ATOM = re.compile(
    r"""\\.                                # an escape
      | \[\^?\]?(?:\\.|[^\]\\])*\]         # a set of characters
      | \((?:\?(?:[:=!]|<[=!]))?           # the start of a group
      | (?P<repeat>[*+?]|\{\d*,?\d*\})     # a repetition
      | .""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with what to change, unless the pattern compiles and is safe to run."""
    groups = [False]  # per open group, outermost first: whether it holds a repetition or alternatives
    unbounded, before, varied = 0, "(", False
    for match in _ATOM.finditer(pattern.removeprefix("(?i)")):
        atom = match[0]
        if match["repeat"] and before == "(":
            raise ValueError("of the groups (?...) only (?:, (?=, (?!, (?<=, (?<! and a leading (?i) are allowed")
        if match["repeat"] and before != "repeat":
            if before == ")" and varied and atom != "?":
                raise ValueError("a repeated group may hold neither a repetition nor alternatives")
            groups[-1] = True
            unbounded += atom in "*+" or atom.endswith(",}")
        _check_atom(atom)
        if atom == ")" and len(groups) > 1:
            varied = groups.pop()
            groups[-1] |= varied
        elif atom.startswith("("):
            groups.append(False)
        elif atom == "|":
            groups[-1] = True
        before = "repeat" if match["repeat"] else atom
    if unbounded > UNBOUNDED:
        raise ValueError(f"more than {UNBOUNDED} of the repetitions *, + and {{n,}}; shorten the pattern")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"not a Python regular expression: {error}") from None


def _check_atom(atom: str) -> None:
    if re.fullmatch(r"\\[1-9]", atom):
        raise ValueError("back-references are not allowed")
    if atom.startswith("[") and re.search(r"\[|--|&&|~~|\|\|", re.sub(r"\\.", "", atom[1:])):
        raise ValueError(r"in a set of characters, escape [ as \[ and write none of --, &&, ~~ and || in it")
