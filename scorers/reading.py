"""Reading a judge's reply: one value for each numbered item, or none; prose is never searched for a verdict.

What counts is the last flat JSON object that has an item's key among its own, `{"1": 0, "2": 1}`; without one,
the last list of exactly as many values as there are items that stands alone on its lines. Code fences around
either do no harm, nor do single quotes or a trailing comma. A block of thought is no part of the reply, and one
that is never closed leaves nothing of it. An item that the object lacks, or that it answers in two ways, has no value.

What a model would have written instead: the distribution over what stands at one character of its reply.

A reply with log-probabilities lists its tokens, each with the likeliest alternatives. A token need not begin
where a value does (` 3`, `,3`), so the alternatives that share what comes before the value in its token are cut there.
"""

import re
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from typing import NamedTuple

from ..llm.types import Reply

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


class Place(NamedTuple):
    """A character of a reply, as its tokens have it."""

    token: int
    inside: int
    """Characters of the token before it."""


def locate(reply: Reply, offset: int) -> Place | None:
    """The token that holds the character at `offset` of `reply.text`; None where the tokens do not spell the text.

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
    """Probability of each alternative for the rest of the token from character `offset` of the text on.

    None where there are no log-probabilities for it. The strings are as the tokenizer cuts them (`3`, `3]`, `yes`),
    and the probabilities sum to less than 1: only the likeliest are told.
    """
    place = locate(reply, offset)
    if place is None:
        return None
    told = reply.logprobs[place.token]
    before = told.token[: place.inside]
    found: dict[str, float] = {}
    for alternative, logprob in told.top.items():
        rest = _rest(alternative, before)
        if rest is not None:
            found[rest] = found.get(rest, 0.0) + exp(logprob)
    return found or None


def _rest(alternative: str, before: str) -> str | None:
    """An alternative token without what stands before the value; space before it may be there or not."""
    if not before.strip():
        return alternative.lstrip()
    return alternative[len(before) :] if alternative.startswith(before) else None
