"""The events of an investigation, each as a line."""

from collections.abc import Callable, Mapping
from typing import Any

from .citations import visible

RIVALS = 4
"""Hypotheses that a line names."""


def format_event(event: Mapping[str, Any]) -> str:
    """Write an event on one line; "" for those that say nothing by themselves."""
    return visible(_FORMATS[event["kind"]](event)) if event["kind"] in _FORMATS else ""


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
    live = [f"{r['name']} {r['share']:.0%}" for r in event["rivals"] if r["status"] == "live"][:RIVALS]
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
