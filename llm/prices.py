"""Prices of models, budgets, and estimates of tokens.

Prices are of OpenAI's own server and hold for nobody else's; a model in process costs nothing; every other price is
unknown until the user gives it. An unknown price is None, never zero, so that no total is too small in silence.

`estimate` counts tokens for a model whose tokenizer is not at hand. Today's byte-pair tokenizers first cut text into
much the same pieces: a word with the one sign before it, three
digits, signs with the blank before and the line ends after, white space. One pattern finds them, and each is
a token per so many characters. On English, Python, JSON and lists of tokens the sum is within 12% of cl100k's,
o200k's and DeepSeek's (measured); on other scripts it is up to 60% too high.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

from ..subject.errors import NeuronautError
from .types import Message

BATCH_DISCOUNT = 0.5
"""Share of the usual price that a batch API charges."""

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens.

    >>> Price.parse("in=0.15,out=0.60")
    Price(input=0.15, output=0.6)
    """

    input: float
    output: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `in=0.15,out=0.60`."""
        usage = "wanted dollars per million tokens, as in in=0.15,out=0.60"
        values = _parse_pairs(text, ("in", "out"), of="price", usage=usage)
        if len(values) < 2:
            raise NeuronautError(f"price {text!r} lacks {'in' if 'out' in values else 'out'}=; {usage}")
        prices = {key: _parse_number(value, key, of="price", usage=usage) for key, value in values.items()}
        if bad := next((key for key, value in prices.items() if value < 0), None):
            raise NeuronautError(f"price {bad}={values[bad]} is below zero; {usage}")
        return cls(float(prices["in"]), float(prices["out"]))


OPENAI: Mapping[str, Price] = MappingProxyType(
    {
        "gpt-5.2": Price(1.75, 14.00),
        "gpt-5.1": Price(1.25, 10.00),
        "gpt-5": Price(1.25, 10.00),
        "gpt-5-mini": Price(0.25, 2.00),
        "gpt-5-nano": Price(0.05, 0.40),
        "gpt-4.1": Price(2.00, 8.00),
        "gpt-4.1-mini": Price(0.40, 1.60),
        "gpt-4.1-nano": Price(0.10, 0.40),
        "gpt-4o": Price(2.50, 10.00),
        "gpt-4o-2024-05-13": Price(5.00, 15.00),
        "gpt-4o-mini": Price(0.15, 0.60),
        "o1": Price(15.00, 60.00),
        "o3": Price(2.00, 8.00),
        "o3-mini": Price(1.10, 4.40),
        "o4-mini": Price(1.10, 4.40),
        "gpt-4-turbo": Price(10.00, 30.00),
        "gpt-4": Price(30.00, 60.00),
        "gpt-3.5-turbo": Price(0.50, 1.50),
    }
)
"""As of 2026-01, from memory and without cached input: check the vendor's page, and give another with --price."""


def find_price(model: str, endpoint: str, override: Price | None = None) -> Price | None:
    """The price of `model` at `endpoint` (an LLM's own attributes), or None where it is unknown.

    A dated name (gpt-4o-mini-2024-07-18) has its family's price unless it has a row of its own.
    """
    if override is not None:
        return override
    if endpoint == "local":
        return Price(0.0, 0.0)
    if urlsplit(endpoint).hostname != "api.openai.com":
        return None
    name = model.partition("+")[0]
    return OPENAI.get(name) or OPENAI.get(_DATE.sub("", name))


def cost(price: Price, input_tokens: float, output_tokens: float, batch: bool = False) -> float:
    """Dollars for so many tokens; `batch` where a batch API answers."""
    dollars = (price.input * input_tokens + price.output * output_tokens) / 1e6
    return dollars * BATCH_DISCOUNT if batch else dollars


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent; None where there is no limit.

    >>> Budget.parse("usd=2,minutes=30")
    Budget(usd=2.0, tokens=None, calls=None, minutes=30.0)
    """

    usd: float | None = None
    tokens: int | None = None
    """Input and output together."""
    calls: int | None = None
    """Requests that are sent; answers from the log are free."""
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_limits(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `usd=5,tokens=2M,calls=100,minutes=30`, any of them; k, M and B multiply tokens and calls."""
        usage = "wanted any of usd, tokens, calls and minutes, as in usd=5,tokens=2M,calls=100,minutes=30"
        return cls(**parse_amounts(text, whole=("tokens", "calls"), parts=("usd", "minutes"), usage=usage))


def check_limits(limits: Mapping[str, float | None]) -> None:
    """Refuse a limit that allows nothing."""
    for name, value in limits.items():
        # Written so that a NaN fails.
        if value is not None and not value > 0:
            raise NeuronautError(f"budget {name}={value} is not positive; leave it out for no limit")


def parse_amounts(text: str, *, whole: tuple[str, ...], parts: tuple[str, ...], usage: str) -> dict[str, Any]:
    """Read `key=value,key=value` of a budget: whole numbers, in which k, M and B multiply, and others."""
    amounts: dict[str, Any] = {}
    for key, value in _parse_pairs(text, (*whole, *parts), of="budget", usage=usage).items():
        if key in whole:
            amounts[key] = _parse_count(value, key, usage=usage)
        else:
            amounts[key] = float(_parse_number(value, key, of="budget", usage=usage))
    return amounts


def _parse_pairs(text: str, keys: tuple[str, ...], *, of: str, usage: str) -> dict[str, str]:
    """The values of `key=value,key=value` by key."""
    values: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise NeuronautError(f"{of} {text!r}: {part.strip()!r} is no key=value; {usage}")
        if key not in keys:
            raise NeuronautError(f"{of} {text!r} has an unknown key {key!r}; {usage}")
        if key in values:
            raise NeuronautError(f"{of} {text!r} says {key}= twice; {usage}")
        values[key] = value
    return values


_DIGITS = 15
"""Before and behind the point, at most, of an amount."""


def _parse_number(value: str, key: str, *, of: str, usage: str, unit: str = "") -> Decimal:
    try:
        number = Decimal(value.removesuffix(unit))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise NeuronautError(f"{of} {key}={value} is not a number; {usage}")
    if abs(number.adjusted()) > _DIGITS:
        raise NeuronautError(f"{of} {key}={value} is beyond all measure; {usage}")
    return number


def _parse_count(value: str, key: str, *, usage: str) -> int:
    unit = value[-1:] if value[-1:].isalpha() else ""
    if unit.lower() not in _UNITS and value[:1].isdigit():
        raise NeuronautError(f"budget {key}={value} has an unknown unit; wanted k, M or B, as in {key}=2M")
    number = _parse_number(value, key, of="budget", usage=usage, unit=unit) * _UNITS.get(unit.lower(), 1)
    if number != int(number):
        raise NeuronautError(f"budget {key}={value} is not a whole number; {usage}")
    return int(number)


_PIECE = re.compile(
    r"(?P<word>(?:[ _]|[^\w\s])?(?:[A-Z]?[a-z]+|[A-Z]+))"
    r"|(?P<digits>[0-9]{1,3})"
    r"| ?(?P<signs>(?:(?=[\x00-\x7f])(?:[^\w\s]|_))+)\n*"
    r"|(?P<foreign>[^\x00-\x7f]+)"
    r"|(?P<space>\s+(?=\s)|\s+)"
)
_PER_TOKEN = {"word": 6, "digits": 3, "signs": 2, "foreign": 2.5, "space": 1}
"""Characters per token of a piece, blanks around it aside."""

_WORD = 9
"""Characters of the longest word that is still one token."""

MESSAGE, REPLY = 4, 3
"""Tokens that mark a message, and the place of the reply."""


def estimate(text: str) -> int:
    """Tokens of a text, roughly."""
    return sum(_estimate_piece(piece) for piece in _PIECE.finditer(text))


def estimate_chat(messages: Sequence[Message]) -> int:
    """Tokens of a chat, roughly."""
    return sum(estimate(message.content) + MESSAGE for message in messages) + REPLY


def _estimate_piece(piece: re.Match[str]) -> int:
    kind, length = piece.lastgroup or "space", len(piece.group().strip())
    return 1 if kind == "word" and length <= _WORD else max(1, math.ceil(length / _PER_TOKEN[kind]))
