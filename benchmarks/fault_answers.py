"""What the fault server's model says: replies of the form that a prompt wants, determined by the prompt alone."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence

from .fault_shapes import Body


def chance(*parts: object) -> float:
    """A number in [0, 1) that the parts alone determine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def judge_excerpts(message: str, count: int) -> str:
    """0 or 1 for every excerpt."""
    return json.dumps({str(item): int(chance(message, item) < 0.5) for item in range(1, count + 1)})


def choose_intruder(message: str, count: int) -> str:
    """One of the excerpts."""
    return json.dumps({"intruder": 1 + int(chance(message) * count)})


def choose_answers(message: str, count: int) -> str:
    """A or B for every question."""
    return json.dumps({str(item): "AB"[chance(message, item) < 0.5] for item in range(1, count + 1)})


def simulate(message: str, count: int) -> str:
    """An activation for every token."""
    return json.dumps({"activations": [[token, int(11 * chance(message, token) ** 4)] for token in range(count)]})


def explain(message: str, _: int) -> str:
    """A description by some word of the message."""
    words = re.findall(r"[A-Za-z]{3,}", message)
    return f"[EXPLANATION]: the word `{words[int(chance(message) * len(words))]}` in running text, and nothing else."


ANSWERS: list[tuple[str, Callable[[str, int], str]]] = [
    (r"Answer for excerpts 1 to (\d+)", judge_excerpts),
    (r"Answer for questions 1 to (\d+)", choose_answers),
    (r"Which excerpt, 1 to (\d+), is the intruder", choose_intruder),
    (r"The text has (\d+) tokens, numbered 0 to", simulate),
    (r"(?=[A-Za-z]{3})()", explain),
]
"""The first pattern in the last message decides who answers; its group is how many items there are."""


def answer(messages: Sequence[Body]) -> str:
    """A reply of the form that the prompt wants; the same for the same messages."""
    last = messages[-1]["content"]
    for pattern, answerer in ANSWERS:
        if match := re.search(pattern, last):
            return answerer(last, int(match[1] or 0))
    return "ok"


def predict(prefix: Sequence[int]) -> dict[int, float]:
    """Log-probabilities of the next token: 0 to 10 only, peaked at the prefix's sum modulo 11."""
    return {token: -1.0 * abs(token - sum(prefix) % 11) - 0.5 for token in range(11)}


def pieces(text: str) -> list[str]:
    """Tokens by this server's own rule."""
    return re.findall(r"[ ._(]?[^\W_]{1,9}|[^\w\s]{1,2}|_|\s+", text)
