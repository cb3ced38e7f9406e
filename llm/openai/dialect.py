"""What a server calls the limit on a reply's tokens, and whether its model takes a temperature.

OpenAI's newer models want `max_completion_tokens` and refuse `max_tokens`, most other servers the other way round;
some models take no temperature but their own. A server that refuses one of these says so before it answers, and is
asked in the next way at once: each way is tried once, and what was learned holds for all later requests. The refusal is
known by the parameter and the code that it names, and by its words only where it names none.
"""

import re
from collections.abc import Mapping
from threading import Lock
from typing import Any, Literal, get_args

from openai import APIStatusError

from .retrying import read_code

TokenLimit = Literal["auto", "max_tokens", "max_completion_tokens", "none"]
"""The name of the limit; none sends no limit, auto learns the name."""
LIMITS: tuple[TokenLimit, ...] = get_args(TokenLimit)

_REFUSING = frozenset({400, 422})
_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"})
_WORDS = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed|valid)|extra[_ ]|"
    r"deprecated|only the default|"
    r"use '?max_(?:completion_)?tokens",
    re.I,
)
"""How servers say that they do not know a parameter; a value that is too large is another matter."""


class Dialect:
    """The way one server is asked, shared by all requests to it.

    >>> Dialect().parameters(limit=300, temperature=0.0)
    {'max_tokens': 300, 'temperature': 0.0}
    """

    def __init__(
        self, *, limit: TokenLimit = "auto", first: TokenLimit = "max_tokens", temperature_fixed: bool = False
    ) -> None:
        """A `limit` other than auto stays; else `first` is tried first."""
        others: tuple[TokenLimit, ...] = ("max_tokens", "max_completion_tokens")
        names = [first, *(name for name in others if name != first)] if limit == "auto" else [limit]
        self._first, self._limit, self._untried = names[0], names[0], names[1:]
        self._temperature = not temperature_fixed
        self._learned_temperature = False
        self._lock = Lock()

    @property
    def learned(self) -> str:
        """What differs from the beginning, for the key under which a server charges a request once."""
        return f"+{self._limit}" * (self._limit != self._first) + "+own-temperature" * self._learned_temperature

    @property
    def leaves_temperature(self) -> bool:
        """Whether the server refused a temperature, so that its own is used."""
        return self._learned_temperature

    def parameters(self, *, limit: int, temperature: float | None) -> dict[str, Any]:
        """The part of a body that depends on the dialect."""
        with self._lock:
            named: dict[str, Any] = {} if self._limit == "none" else {self._limit: limit}
            return named | ({"temperature": temperature} if self._temperature and temperature is not None else {})

    def learn(self, error: APIStatusError, body: Mapping[str, Any]) -> bool:
        """Whether a refused body is worth sending in another way, which the next body has."""
        refused = _refused_parameter(error, body)
        with self._lock:
            if refused == "temperature":
                self._learned_temperature |= self._temperature
                self._temperature = False
                return True
            if refused == self._limit:
                if not self._untried:
                    return False
                self._limit = self._untried.pop(0)
            # Where the name is another by now, another thread has learned it meanwhile.
            return refused is not None


def _refused_parameter(error: APIStatusError, body: Mapping[str, Any]) -> str | None:
    """The parameter of the body that the server does not know, or takes no value for."""
    if error.status_code not in _REFUSING:
        return None
    sent = [name for name in ("max_completion_tokens", "max_tokens", "temperature") if name in body]
    told = error.response.text
    named = error.param if isinstance(error.param, str) else None
    known = read_code(error) in _CODES or _WORDS.search(told)
    found = [name for name in sent if (name == named if named else re.search(rf"\b{name}\b", told))]
    return found[0] if known and found else None
