"""How many requests may be under way at once: as many as the server bears, found as TCP finds it.

Each 429 halves the limit, at most once per round trip: a request that had begun before the last halving tells
nothing new. Successes widen it, together by an eighth of the most per round trip, so that a halving from
the top is made good in four.
"""

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Condition

_GAIN = 1 / 8
"""Of the most, per round trip without a 429."""


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
        except BaseException:
            self._leave()
            raise
        self._leave(widen=True)

    def close(self) -> None:
        """Turn away whoever waits for a place."""
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
