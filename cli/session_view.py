"""Writes what came of investigations: a line, the result, several runs together, a page."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..subject.pace import duration
from . import display
from .causal.inputs import write
from .common import Form, as_json, say

if TYPE_CHECKING:
    from ..agent.loop.budget import Limits
    from ..agent.pooling import Pooled
    from ..agent.report.report import Report
    from ..agent.session import Session
    from ..data.store.store import Store
    from .progress_view import Watch

_PAUSE = timedelta(minutes=1)
"""Time between two sessions from which on they were not of one command."""
_MOST_BEFORE = 50
"""Earlier sessions whose rate is taken for that of the next ones."""
EXITS: Mapping[str, int] = {"supported": 0, "open": 3, "no_explanation": 3, "budget": 4, "error": 1}
"""Exit codes by status, in the order in which statuses are counted."""


def seconds_between(store: "Store", policy: str, limits: "Limits") -> list[float]:
    """The seconds from end to end of the latest sessions with features here, by this policy within these limits.

    A session that did not follow the one before at once counts from its own beginning.
    """
    spans = [
        (datetime.fromisoformat(row["ended"]), datetime.fromisoformat(row["created"]))
        for row in store.journal.rows()
        if row["ended"] is not None
        and (row["kind"], row["policy"], row["settings"]["limits"]) == ("feature", policy, asdict(limits))
    ]
    latest = sorted(spans)[-_MOST_BEFORE:]
    starts = (begun if begun - before > _PAUSE else before for (before, _), (_, begun) in pairwise(latest))
    return [(end - start).total_seconds() for (end, _), start in zip(latest[1:], starts, strict=True)]


def format_plan(left: int, done: int, limits: "Limits", *, seconds: Sequence[float]) -> str:
    """Write what is left to investigate, what it costs at most, and how long it takes at the rate of earlier ones.

    `seconds` lay between the ends of these.
    """
    line = f"will hold {left:,} of {left + done:,} investigations, {done:,} are done already"
    if not left:
        return f"{line}; another --seed investigates anew"
    most = [_format_most(kind, left * limit) for kind, limit in asdict(limits).items() if limit is not None]
    line += f"; at most {', '.join(most)}" if most else ""
    return line + (f"; about {duration(median(seconds) * left)} at the rate of earlier ones" if seconds else "")


def _format_most(kind: str, value: float) -> str:
    if kind == "minutes":
        return duration(60 * value)
    return f"${value:,.2f}" if kind == "usd" else f"{value:,} {'forward passes' if kind == 'fwd' else kind}"


def format_line(session: "Session") -> str:
    """Write a session as one of several."""
    report = session.report
    text = display.visible(report.text or session.reason)
    return display.cut(f"{report.target}  {session.status:14}  {session.id}  {text}")


def format_result(session: "Session") -> str:
    """Write the verdict, the explanation, its holdout scores, and where to see more."""
    report = session.report
    lines = [f"{report.target}: {session.status.replace('_', ' ')}"]
    if report.text is not None:
        lines.append(display.visible(report.text))
    lines.append(f"because {display.visible(session.reason)}")
    if report.grading and session.status == "supported":
        lines.append(f"how strongly is open: {display.visible(report.grading)}")
    lines += [f"holdout {line}" for line in _format_holdout(report)]
    return "\n".join([*lines, f"see it all: neuronaut sessions show {session.id}  (--html FILE for a page)"])


def _format_holdout(report: "Report") -> list[str]:
    """Write the headline scores on the holdout."""
    from ..agent.report.report import HEADLINES

    return [
        f"{s['examples'].replace('_', ' ')} {s['metric'].replace('_', ' ')} "
        + display.score({**s, "score": s["value"]})
        + _format_baseline(s["baselines"])
        + _format_added(report, s)
        for s in report.scores
        if s["value"] is not None and (s["examples"], s["metric"]) in HEADLINES
    ]


def _format_added(report: "Report", score: Mapping[str, Any]) -> str:
    """Write what the answer is ahead of the label that there was."""
    part = report.added_to(score)
    if part is None or part["value"] is None:
        return ""
    low, high = part["ci_low"], part["ci_high"]
    interval = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    return f", over the label {part['value']:+.2f}{interval}"


def _format_baseline(baselines: Mapping[str, float | None]) -> str:
    values = [value for value in baselines.values() if value is not None]
    return f", best baseline {max(values):.2f}" if values else ""


def event_handler(watch: "Watch", form: Form) -> Callable[[Mapping[str, Any]], None]:
    """Return the handler of events: the watch, and with --nl standard output."""

    def on_event(event: Mapping[str, Any]) -> None:
        if form == "nl":
            watch.clear()
            click.echo(as_json(dict(event)))
        watch(event)

    return on_event


def tell_events(store: "Store", id: str) -> None:
    """Print the events of a session that a worker held."""
    for event in store.journal.events(id):
        click.echo(as_json({"investigation": id, **event}))


def pool_runs(store: "Store", finished: "Sequence[Session]") -> "list[Pooled]":
    """Pool the runs on each feature."""
    from ..agent.pooling import pool
    from ..explainers.battery.places import scale_of
    from ..subject.address import Feature

    by_target: dict[str, list[Report]] = {}
    for session in finished:
        by_target.setdefault(session.report.target, []).append(session.report)
    pooled = []
    for target, reports in by_target.items():
        examples = sorted(store.evidence(Feature.parse(target)).train, key=lambda e: -e.peak)
        vocabulary = store.vocabulary(Feature.parse(target).source.model)
        pooled.append(pool(store.journal, reports, vocabulary, scale=scale_of(examples)))
    return pooled


def format_pooled(pooled: "Pooled") -> str:
    """Write the one answer of several runs, and the dissent."""
    ends = ", ".join(f"{pooled.ends[end]} {end.replace('_', ' ')}" for end in EXITS if pooled.ends.get(end))
    lines = [f"{pooled.target}, {pooled.runs} runs together: {pooled.status.replace('_', ' ')} ({ends})"]
    if pooled.text is not None:
        lines.append(f"{display.visible(pooled.text)}  ({pooled.id})")
    if pooled.hits is not None:
        agreement = "" if pooled.agreement is None else f"; the runs' rules agree in {pooled.agreement:.2f}"
        lines.append(f"right about {pooled.hits:.2f} of {pooled.windows:,} windows that the runs measured{agreement}")
    for other in pooled.dissent:
        said = display.visible(other.text or other.reason)
        agrees = "" if other.agreement is None else f", agrees in {other.agreement:.2f}"
        lines.append(display.cut(f"dissent: {other.id} {other.status.replace('_', ' ')}{agrees}: {said}"))
    return "\n".join(lines)


def page_file(html: str, target: str) -> str:
    """Name the file of one page of several, by its target."""
    path = Path(html)
    return str(path.with_name(f"{path.stem}-{re.sub('[^A-Za-z0-9._]+', '-', target)}{path.suffix}"))


def write_page(store: "Store", report: "Report", file: str) -> None:
    """Write the page of a report, with training examples where the feature is in the store."""
    from ..agent.report.page import page
    from ..subject.address import Feature

    examples = ()
    if report.kind == "feature" and any(row["source"] == report.target.rpartition(":")[0] for row in store.sources()):
        train = store.evidence(Feature.parse(report.target)).train
        examples = sorted({e.window: e for e in train}.values(), key=lambda e: -e.peak)
    write(file, page(report, examples=examples))
    say(f"the page is {file}")
