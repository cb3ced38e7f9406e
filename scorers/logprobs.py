"""What a model would have written instead: the distribution over what stands at one character of its reply.

A reply with log-probabilities lists its tokens, each with the likeliest alternatives. A token need not begin
where a value does (` 3`, `,3`), so the alternatives that share what comes before the value in its token are cut there.
"""

from itertools import accumulate
from math import exp
from typing import NamedTuple

from ..explainers.llm.values import Reply


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
