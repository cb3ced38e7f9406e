"""Reads a judge's reply: one value for each numbered item, or none, and the distribution over what stands there.

The value comes from the last flat JSON object that has an item's key among its own, `{"1": 0, "2": 1}`; without one,
from the last list of exactly as many values as there are items that stands alone on its lines. Prose is never
searched for a verdict. Code fences around either do no harm, nor do single quotes or a trailing comma. A block of
thought is no part of the reply, and one that is never closed leaves nothing of it. An item that the object lacks, or
that it answers in two ways, has no value.

The distribution at a character of the reply comes from log-probabilities: a reply that has them lists its tokens,
each with the likeliest alternatives. A token need not begin where a value does (` 3`, `,3`), so the alternatives that
share the beginning of the token up to the value are cut there.
"""

import re
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from typing import NamedTuple

from ..llm.thought import blank_thought
from ..llm.types import Reply

_STRING = r"""(?:"[^"\\\n]*"|'[^'\\\n]*')"""
_VALUE = rf"(?:{_STRING}|-?\d+(?:\.\d+)?|true|false|null)"
_PAIR = rf"(?:{_STRING}|\d+)\s*:\s*{_VALUE}"
_OBJECT = re.compile(rf"\{{\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*,?\s*\}}")
_LIST = re.compile(rf"^[ \t]*\[\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*,?\s*\][ \t]*$", re.M)
_KEY_AND_VALUE = re.compile(rf"({_STRING}|\d+)\s*:\s*({_VALUE})")
_LISTED = re.compile(_VALUE)
_LITERALS: dict[str, object] = {"true": True, "false": False, "null": None}


class ReadValue(NamedTuple):
    """The value of one item in a reply."""

    value: object
    offset: int
    """Where the value begins in the reply; of a string, after its quotation mark."""


def read_numbered(text: str, count: int) -> list[object | None]:
    """Read the value of each of the items 1 to `count`, None where there is none; the caller knows which are valid."""
    keys = [str(item) for item in range(1, count + 1)]
    return [None if value is None else value.value for value in read_values(text, keys)]


def read_values(text: str, keys: Sequence[str]) -> list[ReadValue | None]:
    """Read the value under each key, with its offset; a list that stands alone has the keys' order."""
    reply = blank_thought(text)
    for match in reversed(list(_OBJECT.finditer(reply))):
        values: dict[str, list[ReadValue]] = {}
        for pair in _KEY_AND_VALUE.finditer(reply, *match.span()):
            values.setdefault(_unquote(pair[1]), []).append(_read_value(pair, 2))
        if not values.keys().isdisjoint(keys):
            return [_single_value(values.get(key, [])) for key in keys]
    for match in reversed(list(_LIST.finditer(reply))):
        items = [_read_value(value, 0) for value in _LISTED.finditer(reply, *match.span())]
        if len(items) == len(keys):
            return list(items)
    return [None] * len(keys)


def _read_value(match: re.Match[str], group: int) -> ReadValue:
    token = match[group]
    quoted = token[0] in "\"'"
    value = _unquote(token) if quoted else _LITERALS[token] if token in _LITERALS else _parse_number(token)
    return ReadValue(value, match.start(group) + quoted)


def _single_value(values: list[ReadValue]) -> ReadValue | None:
    """The item's value, unless the object gives it two different ones."""
    return values[-1] if len({repr(value.value) for value in values}) == 1 else None


def _unquote(token: str) -> str:
    return token[1:-1] if token[0] in "\"'" else token


def _parse_number(token: str) -> float:
    return float(token) if "." in token else int(token)


class Place(NamedTuple):
    """Where a character of a reply stands among its tokens."""

    token: int
    inside: int
    """How many characters of the token stand before it."""


def locate(reply: Reply, offset: int) -> Place | None:
    """Find the token that holds the character at `offset` of `reply.text`; None where the tokens do not spell the text.

    Tokens may spell more than the text: thoughts before it, end marks after it.
    """
    spelled = "".join(token.token for token in reply.logprobs)
    tail = reply.text[offset:]
    at = offset if spelled.startswith(reply.text) else spelled.rfind(tail)
    if not tail or at < 0:
        return None
    ends = list(accumulate(len(token.token) for token in reply.logprobs))
    index = next(i for i, end in enumerate(ends) if end > at)
    return Place(index, at - ends[index] + len(reply.logprobs[index].token))


def distribution_at(reply: Reply, offset: int) -> dict[str, float] | None:
    """The probability of each alternative for the rest of the token from character `offset` of the text on.

    None where there are no log-probabilities for it. The strings are as the tokenizer cuts them (`3`, `3]`, `yes`),
    and the probabilities sum to less than 1: only the likeliest are listed.
    """
    place = locate(reply, offset)
    if place is None:
        return None
    token = reply.logprobs[place.token]
    before = token.token[: place.inside]
    probabilities: dict[str, float] = {}
    for alternative, logprob in token.top.items():
        rest = _rest_of_token(alternative, before)
        if rest is not None:
            probabilities[rest] = probabilities.get(rest, 0.0) + exp(logprob)
    return probabilities or None


def _rest_of_token(alternative: str, before: str) -> str | None:
    """Cut from an alternative token the part before the value; space before it may be there or not."""
    if not before.strip():
        return alternative.lstrip()
    return alternative[len(before) :] if alternative.startswith(before) else None
