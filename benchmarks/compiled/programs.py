"""Programs whose circuits are known, because they were compiled into weights: what they compute, and their prompts.

previous   the token before
fraction   the share of `a` among the tokens so far, told as more or less than a half
count      how often the token stood there so far, itself included
balance    whether more `(` than `)` stand so far
first      whether the token is the first one again
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
LENGTH = 9
"""Tokens of a prompt, BOS not counted: odd, so that one token can tip the balance."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and what its result is called."""

    name: str
    tokens: tuple[str, ...]
    """What it reads."""
    answers: tuple[str, ...]
    """What it says, one of these."""
    compute: Callable[[Sequence[str]], str | None]
    """Its answer at the last token; None where it has none, or is near the border of two."""
    text: str
    values: Mapping[str, str] = field(default_factory=dict)
    """The answer for each value that the program computes; empty where it computes a number."""
    border: float = 0.0
    """Of a number: the first answer is for what lies above, the second for what lies below."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """By site, the role of the part that the program has there; heads that read all places alike have none."""
    length: int = LENGTH

    def draw(self, rng: random.Random) -> tuple[list[str], list[str], str, str]:
        """Two prompts that differ in one token and in the answer, and both answers."""
        while True:
            clean = [rng.choice(self.tokens) for _ in range(self.length)]
            corrupted = list(clean)
            corrupted[rng.randrange(self.length)] = rng.choice(self.tokens)
            answer, wrong = self.compute(clean), self.compute(corrupted)
            if answer is not None and wrong is not None and answer != wrong:
                return clean, corrupted, answer, wrong


def _previous(tokens: Sequence[str]) -> str:
    return f"was-{tokens[-2]}"


def _fraction(tokens: Sequence[str]) -> str | None:
    share = tokens.count("a") / len(tokens)
    return None if share == 0.5 else "more" if share > 0.5 else "less"


def _count(tokens: Sequence[str]) -> str:
    return f"times-{tokens.count(tokens[-1])}"


def _balance(tokens: Sequence[str]) -> str | None:
    opened, closed = tokens.count("("), tokens.count(")")
    return None if opened == closed else "opened" if opened > closed else "closed"


def _first(tokens: Sequence[str]) -> str:
    return "same" if tokens[-1] == tokens[0] else "other"


_LETTERS = ("a", "b", "c", "d")
_WAS = {token: f"was-{token}" for token in _LETTERS}
_TIMES = {str(number): f"times-{number}" for number in range(1, LENGTH + 1)}
_SAME = {"True": "same", "False": "other"}
PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program(
            "previous",
            _LETTERS,
            tuple(_WAS.values()),
            _previous,
            text="the token before",
            values=_WAS,
            roles={"head.0": "mover"},
        ),
        Program(
            "fraction",
            ("a", "b", "c"),
            ("more", "less"),
            _fraction,
            text="whether most tokens are a",
            border=0.5,
            roles={"mlp_out.0": "enriching"},
        ),
        Program(
            "count",
            _LETTERS,
            tuple(_TIMES.values()),
            _count,
            text="how often the token stood so far",
            values=_TIMES,
            roles={"mlp_out.0": "writer"},
        ),
        Program(
            "balance",
            ("(", ")", "a"),
            ("opened", "closed"),
            _balance,
            text="whether more ( than ) stand so far",
            roles={"mlp_out.0": "enriching", "mlp_out.1": "writer"},
        ),
        Program(
            "first",
            _LETTERS,
            tuple(_SAME.values()),
            _first,
            text="whether it is the first token again",
            values=_SAME,
            roles={"mlp_out.0": "writer"},
        ),
    )
}
