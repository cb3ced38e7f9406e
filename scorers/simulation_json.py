"""Simulates by a chat: the model writes one JSON object with a value for each numbered token.

This works with any chat model. The numbers make alignment certain: a token has the value that is written beside its
index, or none. A reply whose indices are not this window's is not used at all, since its numbering may be shifted.
With log-probabilities the prediction is the expected value of the distribution at the first token of the
written value, over 0..10 as published; else the integer itself. Where a tokenizer writes 10 as `1`, `0`, the
probability of `1` is shared between 1 and 10 by how likely `0` comes next, which is known where the model
wrote 1 or 10; elsewhere it counts as 1.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..llm.prompt import Prompt
from ..llm.render import STEPS, fenced, spelled
from ..llm.thought import blank_thought
from ..llm.types import Chat, Reply, Sampling
from .llm_simulation import Reading
from .published_metrics import expected_values
from .reading import distribution_at, locate

PROMPT = Path(__file__).with_name("simulate_json.md")
_OPENING = re.compile(r'"activations"\s*:\s*\[')
_PAIR = re.compile(r"\[\s*(-?\d{1,9})\s*,\s*([^\[\],\s]*)\s*\]")
_DIGITS = re.compile(r"\s*(\d{1,9})")


class Written(NamedTuple):
    """A value that a reply gives a token."""

    value: int
    offset: int
    """Where its first digit stands in the reply's text."""


class JsonBackend:
    """Asks a chat model for one JSON object per window, with or without log-probabilities.

    >>> LLMSimulator(JsonBackend(logprobs=True)).settings["by"]
    'logprobs'
    """

    top = STEPS

    def __init__(self, prompt: Prompt | None = None, *, logprobs: bool = False) -> None:
        self.prompt = prompt or Prompt.load(PROMPT)
        self._logprobs = logprobs

    @property
    def name(self) -> str:
        """The backend's name after `-s simulation:`."""
        return "logprobs" if self._logprobs else "json"

    def request(self, explanation: str, tokens: Sequence[str]) -> Chat:
        """Write one chat that lists the window's tokens by number."""
        places = {
            "explanation": explanation,
            "top": str(self.top),
            "count": str(len(tokens)),
            "last": str(len(tokens) - 1),
            "tokens": fenced([f"{i}\t{spelled(token)}" for i, token in enumerate(tokens)]),
        }
        zeros = json.dumps({"activations": [[i, 0] for i in range(len(tokens))]}, separators=(",", ":"))
        return Chat(
            self.prompt.render(places),
            Sampling(max_tokens=100 + 12 * len(tokens), top_logprobs=20 if self._logprobs else 0),
            sample=zeros.replace(":", ": ", 1),
            prompt=self.prompt.name,
        )

    def read(self, reply: Reply, *, tokens: int) -> Reading:
        """Read the values beside the indices; reasons are the reply's status, "unparsed" or "misnumbered"."""
        if reply.status != "ok":
            return Reading.nothing(tokens, reply.status)
        values_by_index = parse(reply.text)
        if any(not 0 <= index < tokens for index in values_by_index):
            return Reading.nothing(tokens, "misnumbered")
        values = np.full(tokens, np.nan, np.float32)
        sampled = 0
        for index, written in values_by_index.items():
            if written is None or written.value > self.top:
                continue
            expected = _expected_value(reply, written) if self._logprobs else None
            sampled += expected is None
            values[index] = written.value if expected is None else expected
        absent = int(np.isnan(values).sum())
        return Reading(
            values, {"unparsed": absent} if absent else {}, {"sampled": sampled / tokens} if self._logprobs else {}
        )


def parse(text: str) -> dict[int, Written | None]:
    """Read the values by index in the last object with "activations"; None for one that is no single whole number.

    Thoughts, code fences and prose around the object are passed over.
    """
    text = blank_thought(text)
    openings = list(_OPENING.finditer(text))
    if not openings:
        return {}
    begin = openings[-1].end()
    end = text.find("}", begin)
    values: dict[int, Written | None] = {}
    for pair in _PAIR.finditer(text, begin, end if end >= 0 else len(text)):
        index, value = int(pair[1]), pair[2]
        written = (
            Written(int(value), pair.start(2)) if value.isascii() and value.isdigit() and len(value) < 10 else None
        )
        earlier = values.get(index, written)
        agreed = written is not None and earlier is not None and earlier.value == written.value
        values[index] = earlier if agreed else None
    return values


def _expected_value(reply: Reply, written: Written) -> float | None:
    """The expected value of the distribution at a written value; None where there are no log-probabilities for it."""
    probabilities = distribution_at(reply, written.offset)
    if probabilities is None:
        return None
    row = np.full(STEPS + 1, np.nan)
    for text, probability in probabilities.items():
        digits = _DIGITS.match(text)
        if digits and int(digits[1]) <= STEPS:
            row[int(digits[1])] = np.nansum([row[int(digits[1])], probability])
    if written.value in (1, 10) and _is_lone_one(reply, written.offset):
        row = _share_one_and_ten(row, probabilities.get("1", 0.0), distribution_at(reply, written.offset + 1))
    expected = float(expected_values(row))
    return None if np.isnan(expected) else expected


def _is_lone_one(reply: Reply, offset: int) -> bool:
    """Whether the token that holds this character ends with it, and it is a `1`."""
    place = locate(reply, offset)
    return place is not None and reply.logprobs[place.token].token[place.inside :] == "1"


def _share_one_and_ten(row: np.ndarray, one_probability: float, following: dict[str, float] | None) -> np.ndarray:
    """Share the probability of a lone token `1` between 1 and 10 by the chance that `0` follows."""
    zero_follows = sum(probability for text, probability in (following or {}).items() if text.startswith("0"))
    row = np.nan_to_num(row)
    row[1] -= one_probability * zero_follows
    row[10] += one_probability * zero_follows
    return row
