"""Shows on stderr what an investigation is doing: a few lines drawn anew on a terminal, else one line an event.

Text of models and of the corpus is spelled out where it does not print, so that it cannot steer the terminal.
"""

import math
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import click

from . import display
from .common import Row, say

_RIVALS = 4
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
        self._reset("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.clear()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
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
        for rival in self._rivals[:_RIVALS]:
            words = display.visible(texts.get(rival["name"], ""))
            lines.append(f"  {rival['name']:4} {_bar(rival['share'])} {rival['share']:4.0%}  {words}")
        lines += [f"  {line}" for line in self._trials]
        return [*lines, f"  {self._spent}"] if self._spent else lines


def format_event(event: Mapping[str, Any]) -> str:
    """Write an event on one line; "" for those that say nothing by themselves."""
    return display.visible(_FORMATS[event["kind"]](event)) if event["kind"] in _FORMATS else ""


def _format_baseline(event: Mapping[str, Any]) -> str:
    value = next((s["value"] for s in event.get("scores") or () if s["value"] is not None), None)
    return f"to beat: {event.get('text') or event.get('reason')}" + ("" if value is None else f" ({value:.2f})")


def _format_decision(event: Mapping[str, Any]) -> str:
    action = event.get("action")
    if not isinstance(action, Mapping):
        return f"step {event['step']}, {event['role']}: no decision: {event.get('none', '')}"
    calls = ", ".join(call["tool"] for call in action.get("calls", ()))
    return f"step {event['step']}, {event['role']}: {action['action']} {calls}".rstrip()


def _format_observation(event: Mapping[str, Any]) -> str:
    name = f"{event['experiment']} {event['tool']}"
    if event["status"] != "ok":
        return f"{name}: no result: {event['reason']}"
    if event["effect"] is None:
        return f"{name}: done"
    interval = "" if event["low"] is None or event["high"] is None else f" ({event['low']:.2f} to {event['high']:.2f})"
    return f"{name}: {event['effect']:.3g}{interval} {event['units']}"


def _format_odds(event: Mapping[str, Any]) -> str:
    live = [f"{r['name']} {r['share']:.0%}" for r in event["rivals"] if r["status"] == "live"][:_RIVALS]
    return f"round {event['round']}: {', '.join(live)}"


def _format_frozen(event: Mapping[str, Any]) -> str:
    return f"frozen: {event['hypothesis'] or 'nothing'}, {event['verdict']}"


def _format_holdout(event: Mapping[str, Any]) -> str:
    values = [f"{s['examples']} {s['metric']} {s['value']:.2f}" for s in event["scores"] if s["value"] is not None]
    return f"holdout: {', '.join(values) or 'no score'}"


def _format_control(event: Mapping[str, Any]) -> str:
    return f"control {event['name']}: {'passed' if event['passed'] else 'NOT passed'}"


def _format_spent(event: Mapping[str, Any]) -> str:
    parts = [f"{event['experiments']:,} experiments", f"{event['forwards']:,} forwards", f"{event['minutes']:.1f} min"]
    if event["calls"]:
        parts += [f"{event['calls']:,} calls", f"{event['tokens']:,} tokens", f"${event['usd']:,.4f}"]
    return ", ".join(parts)


_FORMATS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "begun": lambda event: f"{event['target']}, policy {event['policy']}",
    "phase": lambda event: event["phase"],
    "baseline": _format_baseline,
    "proposed": lambda event: f"{event['origin']} puts up {', '.join(event['names'])}",
    "decided": _format_decision,
    "rejected": lambda event: (
        f"{'a part of ' * event.get('partial', False)}step {event['step']} is not carried out: {event['reason']}"
    ),
    "planned": lambda event: f"round {event['round']}, {event['role']}: {', '.join(event['experiments'])}",
    "observed": _format_observation,
    "judged": _format_odds,
    "challenged": lambda event: f"challenged: {event['verdict']}",
    "frozen": _format_frozen,
    "holdout": _format_holdout,
    "control": _format_control,
    "spent": _format_spent,
    "ended": lambda event: f"{event['status']}: {event['reason']}",
}


def _bar(share: float) -> str:
    full = "█" * math.floor(share * 10 + 0.5)
    return f"{full:<10}"
