"""Investigations on pages: how a session stands, its events as they come, and its start, stop, resumption and fork.

What a page shows is read from the journal, which a session writes as it goes, whoever runs it; so one that was started
from the command line is followed like one that was started here. Sessions that are started here run in a process of
their own, by the command itself (commands.py).
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Literal, NamedTuple, cast

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

from ..agent.loop.resuming import current_status
from ..agent.report.event_lines import format_event
from ..data.store.store import Store
from .compute import Compute, as_event, follow, queued
from .jobs import Job
from .settings import Settings
from .spending import as_budget
from .stores import Stores

POLL_SECONDS = 0.5
"""Seconds between two looks into the journal."""
BEGIN_SECONDS = 2.0
"""Seconds for which the answer to a button waits for the session to begin; what takes longer is followed."""
QUIET_SECONDS = 15.0
"""Seconds after which a comment keeps a silent connection open."""
POLICIES = ("scripted", "random")
"""Those that ask no language model."""
ASKING = "llm"
"""The one that asks one."""
MOST_EXPERIMENTS, MOST_MINUTES = 1000, 600
NO_LANGUAGE_MODEL = "for sessions that ask a language model, start it with -m LLM --budget usd=X"
NOT_ALLOWED = "this server starts no sessions; start it with: neuronaut serve --allow-compute --allow-write"

Standing = Literal["running", "interrupted", "supported", "open", "no_explanation", "budget", "error"]


def standing(store: Store, row: Any) -> Standing:
    """How a session stands: its status, or whether anybody is at one that has not ended."""
    return cast(Standing, current_status(store.path, row["id"], row["status"]))


class _News(NamedTuple):
    events: list[dict[str, Any]]
    standing: Standing


async def follow_session(stores: Stores, id: str, *, after: int, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """The events of a session's journal that come after one, as server-sent events, until it has ended.

    They end, too, when the server is `stopping`. Each is
    `{seq, time, kind, line}` with its number as id; `standing` comes first and where it changes.
    """
    told, quiet = "", 0.0
    while not stopping():
        news = await run_in_threadpool(_look, stores, id, after)
        if news.standing != told:
            told = news.standing
            yield as_event("standing", {"standing": told})
        for event in news.events:
            after = event["seq"]
            line = {**{key: event[key] for key in ("seq", "time", "kind")}, "line": format_event(event)}
            yield as_event("journal", line, id=after)
        if told not in ("running", "interrupted"):
            yield as_event("end", {"standing": told})
            return
        quiet = 0.0 if news.events else quiet + POLL_SECONDS
        if quiet >= QUIET_SECONDS:
            quiet = 0.0
            yield ": nothing new\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _look(stores: Stores, id: str, after: int) -> _News:
    with stores.reading() as store:
        # The standing first: what ended since has all its events.
        now = standing(store, store.journal.row(id))
        return _News(store.journal.events(id, after=after), now)


# What changes something


def policies(settings: Settings) -> tuple[str, ...]:
    """Who may decide in sessions that are started here."""
    return POLICIES if settings.language is None else (*POLICIES, ASKING)


class Start(NamedTuple):
    """A session as a form asks for it."""

    target: str
    policy: str
    experiments: int
    minutes: float | None
    seed: int
    budget: str
    """Of the language model; empty for all that is left."""


def read_start(form: Any, settings: Settings) -> Start:
    """Read the form; a 400 says what is wrong."""
    policy = form.get("policy") or "scripted"
    if policy not in policies(settings):
        how = f"; {NO_LANGUAGE_MODEL}" if policy == ASKING else ""
        wanted = " or ".join(policies(settings))
        raise HTTPException(400, f"there is no policy {policy[:40]!r} here; wanted {wanted}{how}")
    experiments = _number(form, "experiments", default=60, most=MOST_EXPERIMENTS)
    minutes = _number(form, "minutes", default=None, most=MOST_MINUTES)
    seed = _number(form, "seed", default=0, most=2**31)
    assert experiments is not None and seed is not None
    return Start(
        (form.get("target") or "").strip(),
        policy,
        experiments=int(experiments),
        minutes=minutes,
        seed=int(seed),
        budget=(form.get("budget") or "").strip(),
    )


def _number(form: Any, name: str, *, default: float | None, most: float) -> float | None:
    text = (form.get(name) or "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,3})?", text) or float(text) > most:
        raise HTTPException(400, f"{name} {text[:40]!r} is no number from 0 to {most:g}")
    return float(text)


def start(compute: Compute, settings: Settings, store: Store, asked: Start) -> Job:
    """Put the investigation of a feature at the end of the sessions' queue."""
    feature = store.feature(asked.target)
    minutes = "" if asked.minutes is None else f",minutes={asked.minutes:g}"
    limits: dict[str, float] = {}
    if asked.policy == ASKING and compute.allowance is not None:
        limits = compute.allowance.grant(asked.budget, compute.allowance.left(store, compute.sessions.jobs()))
    cost = f",{as_budget(limits)}" if limits else ""
    budget = ["--budget", f"experiments={asked.experiments}{minutes}{cost}"]
    arguments = [str(feature), "--policy", asked.policy, "--seed", str(asked.seed), *budget]
    return _submit(compute, settings, arguments, limits)


def _submit(compute: Compute, settings: Settings, arguments: list[str], limits: Mapping[str, float]) -> Job:
    """Queue a session; `limits` are set aside for its language model, which only they name."""
    asking = settings.language.options if settings.language is not None and limits else ()
    always = ["-d", settings.database, "--nl", *([] if settings.model is None else ["--model", settings.model])]
    return queued(
        compute.sessions, "investigate", {"arguments": [*arguments, *always, *asking], "limits": dict(limits)}
    )


def resume(compute: Compute, settings: Settings, store: Store, id: str) -> Job:
    """Put what is left of a session at the end of the queue."""
    row = store.journal.row(id)
    if (now := standing(store, row)) != "interrupted":
        raise HTTPException(409, f"{id} is not interrupted, it is {now.replace('_', ' ')}; there is nothing to resume")
    if any(not job.ended and job.error is None and session_of(job) == id for job in compute.sessions.jobs()):
        raise HTTPException(409, f"{id} is being resumed already; its page says how far that is")
    limits = _limits_to_resume(compute, store, row)
    arguments = ["--resume", id]
    if row["kind"] == "behaviour":
        arguments += ["--task", row["target"].partition(" ")[2]]
    return _submit(compute, settings, arguments, limits)


def _limits_to_resume(compute: Compute, store: Store, row: Mapping[str, Any]) -> dict[str, float]:
    """What the language model of a session may still cost; a 409 where it cannot go on here."""
    if row["policy"] in POLICIES:
        return {}
    by_hand = f"go on with: neuronaut investigate --resume {row['id']}"
    if row["policy"] != ASKING or compute.allowance is None:
        raise HTTPException(409, f"{row['id']} asks a language model, and none is here; {by_hand}")
    left = compute.allowance.left(store, compute.sessions.jobs())
    spent, own = store.journal.spent(row["id"])._asdict(), row["settings"]["limits"]
    if free := [kind for kind in left if own.get(kind) is None]:
        raise HTTPException(409, f"{row['id']} has no limit of {' and '.join(free)}; {by_hand}")
    rest = {kind: max(0.0, own[kind] - spent[kind]) for kind in left}
    if more := [f"{kind}={rest[kind]:g}, left {left[kind]:g}" for kind in left if rest[kind] > left[kind]]:
        raise HTTPException(
            409, f"{row['id']} may still use more than the server has left: {'; '.join(more)}; {by_hand}"
        )
    return rest


def stop(compute: Compute, store: Store, id: str) -> Job:
    """Interrupt a session; a 409 where it is not one of this server's."""
    for job in compute.sessions.jobs():
        if not job.ended and session_of(job) == id:
            compute.sessions.cancel(job, "it was stopped")
            return job
    now = standing(store, store.journal.row(id))
    where = "it runs in another process; stop it there, with Ctrl-C" if now == "running" else f"it is {now}"
    raise HTTPException(409, f"{id} cannot be stopped here: {where.replace('_', ' ')}")


class Seen(NamedTuple):
    """What a job of a session has told."""

    id: str | None
    """Of the session, known from the beginning of one that is resumed."""
    begun: bool
    """Whether the session has told of an event."""
    opening: str
    """What is being opened before that, in words."""


def look_at(job: Job) -> Seen:
    """See how far the job of a session is."""
    # It changes while it is looked at.
    progress, arguments = job.progress, job.arguments["arguments"]
    told = _read_id(progress)
    resumed = arguments[1] if arguments[0] == "--resume" else None
    return Seen(resumed or told, told is not None, progress if told is None else "")


def _read_id(line: str) -> str | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event.get("investigation") if isinstance(event, dict) else None


def session_of(job: Job) -> str | None:
    """The id of the session that a job runs, as far as it is known."""
    return look_at(job).id


async def begun(job: Job) -> str | None:
    """Wait for a moment until a job says which session it runs; None where it waits, is still opening, or has ended."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BEGIN_SECONDS), aclosing(follow(job)) as states:
            async for state in states:
                if (id := session_of(job)) is not None or state["ahead"]:
                    return id
    return None
