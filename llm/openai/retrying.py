"""The one retry policy for language models over a network, the kinds of error, and the number of requests at once.

An error is transient (worth another attempt), fatal (every call would meet it: a NeuronautError), or belongs to the
one request (a reply that failed). Between attempts: as long as the server asks, else exponential backoff with full
jitter, drawn from a generator of its own, so that no one's seed is touched.

`Flow` keeps as many requests under way as the server bears, which it measures as TCP does. Each 429 halves the limit,
at most once per round trip: a request that had begun before the last halving brings no news. Successes widen it,
together by an eighth of the most per round trip, so that a halving from the top is made good in four.
"""

import random
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from threading import Condition, Event

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.nap import sleep_using_event

from ...subject.errors import NeuronautError
from .keys import hide_keys

LONGEST_WAIT = 600.0
"""Seconds. A server that asks to wait longer has run out for the day, and is not asked again."""

_TRANSIENT: frozenset[object] = frozenset({408, 409, 429, "rate_limit_exceeded", "server_error", "overloaded_error"})
"""Statuses and codes that another attempt may change, beside those from 500 on."""

_FATAL: dict[object, str] = {
    401: "set OPENAI_API_KEY to a key for this server",
    403: "use a key that may use this model, or another model",
    404: "name a model that the server has, and check the base URL",
    "insufficient_quota": "add credit to the account, then run the same command again",
    "unsupported_parameter": "leave the parameter out (--token-limit none, --temperature none)",
    "unsupported_value": "leave the parameter to the model",
}
"""What to do about errors, by status or code, that every call would meet alike."""


class Malformed(Exception):
    """A reply that is not of the protocol's form, or that tells of an error with status 200."""

    def __init__(self, reason: str, *, passing: bool, code: object = None) -> None:
        """`passing`: another attempt may fare better; else it would be paid again and come the same."""
        super().__init__(reason)
        self.passing, self.code = passing, code


def retry_policy(*, attempts: int, backoff: float, longest_backoff: float, stopped: Event) -> Retrying:
    """Retries transient errors and raises the last; waits end at once when `stopped` is set.

    A wait is uniform up to backoff * 2^(n - 1) seconds after the n-th attempt, at most `longest_backoff`; where the
    server says how long, that long and up to `backoff` seconds more.
    """
    dice = random.Random()

    def wait(state: RetryCallState) -> float:
        requested = requested_wait(state.outcome.exception() if state.outcome else None)
        if requested is not None:
            return requested + dice.uniform(0, backoff)
        return dice.uniform(0, min(longest_backoff, backoff * 2 ** (state.attempt_number - 1)))

    return Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait,
        retry=retry_if_exception(is_transient),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, APIStatusError):
        transient = passes(error.status_code)
        return transient and not _find_advice(error) and (requested_wait(error) or 0) <= LONGEST_WAIT
    return error.passing if isinstance(error, Malformed) else isinstance(error, APIConnectionError)


def passes(status: object) -> bool:
    """Whether a status, or a code in its place, is one that another attempt may change."""
    return status in _TRANSIENT or (isinstance(status, int) and 500 <= status < 600)


def requested_wait(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait (Retry-After in seconds or as a date, retry-after-ms), or None."""
    if not isinstance(error, APIStatusError):
        return None
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None


def fatal_error(error: APIError | Malformed, *, endpoint: str, model: str) -> NeuronautError | None:
    """The error as the user should read it, if every call would meet it."""
    advice = _find_advice(error)
    if advice is None:
        return None
    return NeuronautError(f"{endpoint} refuses calls of {model} ({describe_error(error)}); {advice}")


def read_code(error: BaseException) -> str | int | None:
    """The code that the server gives an error; None where it is of no type that a code has."""
    code: object = error.code if isinstance(error, APIError | Malformed) else None
    return code if isinstance(code, str | int) else None


def _find_advice(error: APIError | Malformed) -> str | None:
    status = error.status_code if isinstance(error, APIStatusError) else None
    return next((_FATAL[code] for code in (read_code(error), status) if code in _FATAL), None)


def describe_error(error: APIError | Malformed) -> str:
    """The error in one line, with the server's own message."""
    if isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or body.get("detail") or error.body or error.response.reason_phrase
        return f"{error.status_code}: {one_line(message)}"
    if isinstance(error, APITimeoutError):
        return "no reply within the time limit"
    if isinstance(error, APIConnectionError):
        return f"no connection: {one_line(error.__cause__ or error)}"
    return one_line(error)


def one_line(text: object) -> str:
    """At most 300 characters, without line breaks and without keys."""
    try:
        line = hide_keys(" ".join(str(text)[:10_000].split()))
    except RecursionError:
        return "(nested too deeply to be shown)"
    return line if len(line) <= 300 else line[:299] + "…"


_GAIN = 1 / 8
"""The limit's growth per round trip without a 429, as a share of the most."""


class Flow:
    """Places for requests; a request holds one while it is with the server, not while it waits to be retried."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._busy = 0
        self._halved = 0.0
        self._closed = False
        self._changed = Condition()

    @property
    def limit(self) -> int:
        """Requests that may be under way at present, from 1 to the most."""
        return int(self._limit)

    @contextmanager
    def place(self, *, throttled: type[Exception]) -> Iterator[None]:
        """Wait for a place and hold it; an exception of type `throttled` inside narrows the flow.

        Raises CancelledError once the flow is closed.
        """
        began = self._enter()
        try:
            yield
        except throttled:
            self._leave(refused=began)
            raise
        # Whatever else ended it gives its place back, and says nothing of the flow.
        except BaseException:
            self._leave()
            raise
        self._leave(widen=True)

    def close(self) -> None:
        """Turn away all requests that wait for a place."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self) -> float:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._busy < self.limit)
            if self._closed:
                raise CancelledError
            self._busy += 1
            return time.monotonic()

    def _leave(self, *, refused: float | None = None, widen: bool = False) -> None:
        """Give the place up; `refused` is when a refused request had begun."""
        with self._changed:
            self._busy -= 1
            if refused is not None and refused > self._halved:
                self._limit, self._halved = max(1.0, self._limit / 2), time.monotonic()
            if widen:
                self._limit = min(self._most, self._limit + self._most * _GAIN / self._limit)
            self._changed.notify(max(0, self.limit - self._busy))
