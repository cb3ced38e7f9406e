"""How fast work goes: how much of it is done, and about how long the rest takes, in words."""

import time

MEASURED = 1.0
"""Seconds of work from which on its pace says how long the rest takes."""


def duration(seconds: float) -> str:
    """Write a time to come: `85 s`, `12 minutes` or `5.5 hours`."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


class Pace:
    """Measures work that is told of as it goes.

    Attributes: `left`, the seconds that the rest takes at the pace so far; None where that is not known.
    """

    def __init__(self) -> None:
        self.left: float | None = None
        self._began, self._first, self._last = 0.0, 0.0, float("inf")

    def format(self, what: str, done: float, total: float, unit: str = "", *, most: float | None = None) -> str:
        """Say what is done, and of how much, where `total` is above 0; work that has less done than before is other.

        After `most` seconds it ends in any case.
        """
        self.left = None
        if not total:
            return f"{what} {done:,.0f}" if done else what
        if done < self._last:
            self._began, self._first = time.monotonic(), done
        self._last = done
        spent, gone = time.monotonic() - self._began, done - self._first
        told = f"{what}, {done / total:.0%} of {total:,.0f}{unit and ' '}{unit}"
        if gone <= 0 or spent < MEASURED:
            return told
        self.left = (total - done) * spent / gone
        if most is None or self.left < most:
            return f"{told}, about {duration(self.left)} left"
        self.left = max(0.0, most)
        return f"{told}, at most {duration(self.left)} left"
