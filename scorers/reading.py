"""Reads a judge's reply: one value for each numbered item, or none, and the distribution over what stands there.

The value comes from the last flat JSON object that has an item's key among its own, `{"1": 0, "2": 1}`, or from a
run of such objects, `[{"1": 0}, {"2": 1}]`; without one, from the last list of exactly as many values as there are
items that stands alone on its lines, or under a key, `{"answers": [0, 1]}`; and without that from entries that give
every item a value, `[{"excerpt": 1, "active": 0}, ...]`, `{"1": {"active": 0}, ...}` or lines such as `1: yes`. Prose
is never searched for a verdict. Code fences do no harm, nor do single quotes, a trailing comma, or words without
quotes. A block of thought is no part of the reply. An item that is not there, or that is answered in two ways, has no
value. `read_choice` knows the ways to say yes and no.

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
_NUMBER = r"-?\d{1,18}(?:\.\d{1,18})?(?!\w)"
_VALUE = rf"(?:{_STRING}|{_NUMBER}|[A-Za-z]+)"
_PAIR = rf"(?:{_STRING}|\d+)\s*:\s*{_VALUE}"
_OBJECT = re.compile(rf"\{{\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*,?\s*\}}")
_VALUES = rf"\[\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*,?\s*\]"
_LIST = re.compile(rf"^[ \t]*(?P<values>{_VALUES})[ \t]*$", re.M)
_KEYED_LIST = re.compile(rf"{_STRING}\s*:\s*(?P<values>{_VALUES})\s*[}},]")
_LINE = re.compile(
    r"^[ \t>*_-]{0,9}(?:[A-Za-z]{1,20} )?[*_]{0,2}(\d{1,4})[*_]{0,2} ?[:.)=\t][*_ \t]{0,9}"
    rf"({_VALUE})[*_.,]{{0,3}}[ \t\r]{{0,9}}$",
    re.M,
)
_NESTED = re.compile(rf"({_STRING}|\d+)\s*:\s*\{{\s*{_STRING}\s*:\s*({_VALUE})\s*[,}}]")
_KEY_AND_VALUE = re.compile(rf"({_STRING}|\d+)\s*:\s*({_VALUE})")
_LISTED = re.compile(_VALUE)
_BETWEEN = re.compile(r"\s*,?\s*")
_LITERALS: dict[str, object] = {"true": True, "false": False, "null": None}
_WORDS = {"yes": 1, "true": 1, "active": 1, "no": 0, "false": 0, "inactive": 0, "silent": 0}


class ReadValue(NamedTuple):
    """The value of one item in a reply."""

    value: object
    offset: int
    """Where the value begins in the reply; of a string, after its quotation mark."""


def read_numbered(text: str, count: int) -> list[object | None]:
    """Read the value of each of the items 1 to `count`, None where there is none; the caller knows which are valid."""
    keys = [str(item) for item in range(1, count + 1)]
    return [None if value is None else value.value for value in read_values(text, keys)]


def read_choice(value: object, choices: Sequence[int]) -> int | None:
    """The choice that a value says; between 1 and 0 also by yes or no, in the ways that models write them."""
    text = str(value).strip(" .").removesuffix(".0").lower()
    words = _WORDS if set(choices) == {0, 1} else {}
    return words.get(text, next((choice for choice in choices if str(choice) == text), None))


def read_values(text: str, keys: Sequence[str]) -> list[ReadValue | None]:
    """Read the value under each key, with its offset; a list that stands alone has the keys' order."""
    reply = blank_thought(text)
    objects = list(_OBJECT.finditer(reply))
    return (
        _read_keyed(reply, objects, keys)
        or _read_list(reply, keys)
        or _read_complete([pair for match in objects for pair in _read_entry(reply, match, keys)], keys)
        or _read_complete([(_unquote(pair[1]), _read_value(pair, 2)) for pair in _NESTED.finditer(reply)], keys)
        or _read_complete([(line[1], _read_value(line, 2)) for line in _LINE.finditer(reply)], keys)
        or [None] * len(keys)
    )


def _read_keyed(reply: str, objects: Sequence[re.Match[str]], keys: Sequence[str]) -> list[ReadValue | None] | None:
    """The values in the last object that has a key, and in those right before it that have others."""
    values: dict[str, list[ReadValue]] = {}
    begin = None
    for match in reversed(objects):
        if begin is not None and not _BETWEEN.fullmatch(reply, match.end(), begin):
            break
        own: dict[str, list[ReadValue]] = {}
        for pair in _KEY_AND_VALUE.finditer(reply, *match.span()):
            own.setdefault(_unquote(pair[1]), []).append(_read_value(pair, 2))
        own = {key: own[key] for key in keys if key in own}
        if own and own.keys().isdisjoint(values):
            begin, values = match.start(), values | own
        elif values:
            break
    return [_single_value(values.get(key, [])) for key in keys] if values else None


def _read_list(reply: str, keys: Sequence[str]) -> list[ReadValue | None] | None:
    """The values of the last list that stands alone, else of the only one under a key, if they are as many as keys."""
    alone, keyed = (
        [list(map(_read_listed, _LISTED.finditer(reply, *match.span("values")))) for match in form.finditer(reply)]
        for form in (_LIST, _KEYED_LIST)
    )
    alone, keyed = ([values for values in lists if len(values) == len(keys)] for lists in (alone, keyed))
    lists = alone or (keyed if len(keyed) == 1 else [])
    return list(lists[-1]) if lists else None


def _read_entry(reply: str, match: re.Match[str], keys: Sequence[str]) -> list[tuple[str, ReadValue]]:
    """The number and the value of an object that has one item's, under names of its own; none of any other object."""
    pairs = [_read_value(pair, 2) for pair in _KEY_AND_VALUE.finditer(reply, *match.span())]
    return [(str(pairs[0].value), pairs[1])] if len(pairs) == 2 and str(pairs[0].value) in keys else []


def _read_complete(pairs: Sequence[tuple[str, ReadValue]], keys: Sequence[str]) -> list[ReadValue | None] | None:
    """The values of all keys, if each has one."""
    values = {key: [value for number, value in pairs if number == key] for key in keys}
    return [_single_value(found) for found in values.values()] if all(values.values()) else None


def _read_listed(match: re.Match[str]) -> ReadValue:
    return _read_value(match, 0)


def _read_value(match: re.Match[str], group: int) -> ReadValue:
    token = match[group]
    if token[0] in "\"'":
        return ReadValue(_unquote(token), match.start(group) + 1)
    word = token.lower()
    value = _LITERALS[word] if word in _LITERALS else token if token[0].isalpha() else _parse_number(token)
    return ReadValue(value, match.start(group))


def _single_value(values: Sequence[ReadValue]) -> ReadValue | None:
    """The item's value, unless it is given two different ones."""
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
