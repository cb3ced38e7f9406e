"""Shows on stderr what an investigation is doing: a few lines drawn anew on a terminal, else one line an event.

Text of models and of the corpus is spelled out where it does not print, so that it cannot steer the terminal.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import click

from ..agent.report.event_lines import RIVALS, format_event
from ..subject.pace import duration
from . import display
from .common import Row, say

_TRIALS = 3
_UP = "\x1b[{}A\x1b[J"
"""Goes so many lines up, and clears from there on."""


class Watch:
    """Shows the events of investigations; a context, within which nothing else should print to stderr."""

    def __init__(self, texts: Callable[[str], Mapping[str, str]], *, live: bool | None = None) -> None:
        """`texts` gives the words of an investigation's hypotheses, by name.

        `live` says whether lines are drawn anew, by default where stderr is a terminal.
        """
        self._texts = texts
        self._live = sys.stderr.isatty() if live is None else live
        self._drawn = 0
        self._left, self._done, self._begun, self._several = 0, 0, 0.0, ""
        self._reset("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.clear()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
        self._begun = self._begun or time.monotonic()
        if event["investigation"] != self._id:
            self._reset(event["investigation"])
        self._update(event)
        if not self._live:
            if line := format_event(event):
                say(f"{event['investigation']}  {line}")
            return
        lines = [display.cut(line) if display.on_terminal() else line[: display.width() - 1] for line in self._lines()]
        self.clear()
        click.echo("\n".join(lines), err=True)
        self._drawn = len(lines)

    def expect(self, left: int) -> None:
        """Set how many sessions there are to come, whose time begins with the first event."""
        self._left, self._done, self._begun = left, 0, 0.0

    def end_one(self) -> None:
        """Tell that one of several has ended, and how long the others will take at this rate."""
        self._done += 1
        each = (time.monotonic() - self._begun) / self._done
        left = duration(each * (self._left - self._done))
        self._several = f"{self._done:,} of {self._left:,} investigated, {each:,.1f} s each, {left} left"
        if not self._live:
            say(self._several)

    def clear(self) -> None:
        """Take away what is drawn, before something else is printed."""
        if self._drawn:
            click.echo(_UP.format(self._drawn), err=True, nl=False, color=True)
            self._drawn = 0

    def _reset(self, id: str) -> None:
        self._id, self._target, self._phase, self._spent = id, "", "", ""
        self._rivals: list[Row] = []
        self._trials: list[str] = []

    def _update(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "begun":
            self._target = event["target"]
        elif kind == "phase":
            self._phase = event["phase"]
        elif kind in ("planned", "challenged", "frozen"):
            self._phase = format_event(event)
        elif kind == "judged":
            self._rivals = [rival for rival in event["rivals"] if rival["status"] == "live"]
        elif kind == "observed":
            self._trials = [*self._trials, format_event(event)][-_TRIALS:]
        elif kind == "spent":
            self._spent = format_event(event)

    def _lines(self) -> list[str]:
        texts = self._texts(self._id)
        lines = [f"{self._target or self._id}  {self._phase}"]
        for rival in self._rivals[:RIVALS]:
            words = display.visible(texts.get(rival["name"], ""))
            lines.append(f"  {rival['name']:4} {_bar(rival['share'])} {rival['share']:4.0%}  {words}")
        lines += [f"  {line}" for line in self._trials]
        return [*lines, *(f"  {line}" for line in (self._spent, self._several) if line)]


def _bar(share: float) -> str:
    full = "█" * math.floor(share * 10 + 0.5)
    return f"{full:<10}"
