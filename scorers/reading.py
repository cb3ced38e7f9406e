"""Reading a judge's reply: one value for each numbered item, or none; prose is never searched for a verdict.

What counts is the last flat JSON object that has an item's key among its own, `{"1": 0, "2": 1}`; without one,
the last list of exactly as many values as there are items that stands alone on its lines. Code fences around
either do no harm, nor do single quotes or a trailing comma. A block of thought is no part of the reply, and one
that is never closed leaves nothing of it. An item that the object lacks, or that it answers in two ways, has no value.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A(?:(?!<think).)*</think(?:ing)?>", re.S | re.I)
"""A block of thought, also one that is not closed, or whose beginning a chat template has swallowed."""
_STRING = r"""(?:"[^"\\\n]*"|'[^'\\\n]*')"""
_VALUE = rf"(?:{_STRING}|-?\d+(?:\.\d+)?|true|false|null)"
_PAIR = rf"(?:{_STRING}|\d+)\s*:\s*{_VALUE}"
_OBJECT = re.compile(rf"\{{\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*,?\s*\}}")
_LIST = re.compile(rf"^[ \t]*\[\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*,?\s*\][ \t]*$", re.M)
_KEY_AND_VALUE = re.compile(rf"({_STRING}|\d+)\s*:\s*({_VALUE})")
_LISTED = re.compile(_VALUE)
_LITERALS: dict[str, object] = {"true": True, "false": False, "null": None}


class Found(NamedTuple):
    """What a reply says of one item."""

    value: object
    offset: int
    """Of the value in the reply; of a string, that of what is in it."""


def numbered(text: str, count: int) -> list[object | None]:
    """The value of each of items 1 to `count`, None where there is none; which values are valid the caller knows."""
    keys = [str(item) for item in range(1, count + 1)]
    return [None if found is None else found.value for found in located(text, keys)]


def located(text: str, keys: Sequence[str]) -> list[Found | None]:
    """What the reply says under each key, with where it stands; a list that stands alone has the keys' order."""
    said = _THOUGHT.sub(lambda thought: " " * len(thought[0]), text)
    for found in reversed(list(_OBJECT.finditer(said))):
        values: dict[str, list[Found]] = {}
        for pair in _KEY_AND_VALUE.finditer(said, *found.span()):
            values.setdefault(_bare(pair[1]), []).append(_found(pair, 2))
        if not values.keys().isdisjoint(keys):
            return [_agreed(values.get(key, [])) for key in keys]
    for found in reversed(list(_LIST.finditer(said))):
        listed = [_found(value, 0) for value in _LISTED.finditer(said, *found.span())]
        if len(listed) == len(keys):
            return list(listed)
    return [None] * len(keys)


def _found(match: re.Match[str], group: int) -> Found:
    token = match[group]
    quoted = token[0] in "\"'"
    value = _bare(token) if quoted else _LITERALS[token] if token in _LITERALS else _number(token)
    return Found(value, match.start(group) + quoted)


def _agreed(values: list[Found]) -> Found | None:
    """The item's value, unless the object gives it two different ones."""
    return values[-1] if len({repr(found.value) for found in values}) == 1 else None


def _bare(token: str) -> str:
    return token[1:-1] if token[0] in "\"'" else token


def _number(token: str) -> float:
    return float(token) if "." in token else int(token)
