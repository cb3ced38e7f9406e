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
    """Measures work that is told of as it goes."""

    def __init__(self) -> None:
        self._began, self._first, self._last = 0.0, 0.0, float("inf")

    def format(self, what: str, done: float, total: float, unit: str = "") -> str:
        """Say what is done, and of how much, where `total` is above 0; work that has less done than before is other."""
        if not total:
            return f"{what} {done:,.0f}" if done else what
        if done < self._last:
            self._began, self._first = time.monotonic(), done
        self._last = done
        spent, gone = time.monotonic() - self._began, done - self._first
        left = f", about {duration((total - done) * spent / gone)} left" if gone > 0 and spent > MEASURED else ""
        return f"{what}, {done / total:.0%} of {total:,.0f}{unit and ' '}{unit}{left}"
