"""Pages of investigations: the list with its search, one session as it goes, two side by side; and what buttons do."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool

from ..agent.forking import fork
from ..agent.report.assemble import assemble
from ..agent.report.event_lines import format_event
from ..agent.report.page import STYLE, body
from ..agent.report.report import HEADLINES, Report
from ..data.records import Example
from ..data.store.store import Store
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from . import sessions
from .compute import STREAM, Compute
from .jobs import Job
from .lookup import NotHere
from .pages import Pages, as_json, pages, settings, stores, wants_json
from .safety import read_form
from .settings import Settings
from .spending import KINDS, as_budget
from .stores import Stores
from .text import spell

router = APIRouter()

PAGE = 50
"""Sessions on a page."""
PagesOf = Annotated[Pages, Depends(pages)]
StoresOf = Annotated[Stores, Depends(stores)]
Form = Annotated[Mapping[str, str], Depends(read_form)]


@router.get("/investigations", summary="Investigations, searched and filtered")
def investigations(
    request: Request,
    pages: PagesOf,
    stores: StoresOf,
    q: Annotated[str, Query(max_length=200)] = "",
    status: str = "",
    question: str = "",
    target: str = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    part: str = "",
    follow: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """List sessions, the latest first, of which all words of `q` are in target, reason, answer or hypotheses.

    `part=started` is those alone that wait or are being started here, as HTML; the page goes on to the session of the
    job `follow` once it has begun.
    """
    if part == "started":
        return pages.answer(
            request, "parts/started.html", {"started": _started(request, follow=follow), "follow": follow}
        )
    asked = {"status": status, "question": question, "target": target}
    with stores.reading() as store:
        rows = store.journal.search(q, **asked, limit=PAGE + 1, offset=PAGE * (page - 1))
        rows = [row | {"standing": sessions.standing(store, row)} for row in rows]
        ends = store.journal.ends()
        left = _left(request, store)
    data = {
        "q": q,
        **asked,
        "page": page,
        "more": len(rows) > PAGE,
        "investigations": rows[:PAGE],
        "ends": ends,
        "started": _started(request, follow=follow),
        "follow": follow,
        "policies": sessions.policies(settings(request)),
        "left": left,
    }
    return pages.answer(request, "investigations.html", data)


def _started(request: Request, id: str | None = None, *, follow: str = "") -> list[dict[str, Any]]:
    """Sessions that wait or run here, failed before they had begun, or are followed; all of them, or one."""
    processes: Compute | None = request.app.state.compute
    jobs = [] if processes is None else processes.sessions.jobs()
    return [
        {
            "id": job.id,
            "arguments": _told(job),
            "begun": seen.begun,
            "progress": seen.opening,
            "state": job.state,
            "ahead": job.ahead,
            "error": job.error,
            "investigation": seen.id,
        }
        for job in jobs
        for seen in [sessions.look_at(job)]
        if (not job.ended or job.state == "failed" or (job.id == follow and job.state == "done"))
        and id in (None, seen.id)
    ]


def _told(job: Job) -> list[str]:
    """What a session was asked for, without where everything lies."""
    arguments = job.arguments["arguments"]
    return arguments[: arguments.index("-d")]


def _left(request: Request, store: Store) -> str | None:
    """What sessions may still cost, as a budget is written; None where they ask nobody."""
    processes: Compute | None = request.app.state.compute
    if processes is None or processes.allowance is None:
        return None
    try:
        return as_budget(processes.allowance.left(store, processes.sessions.jobs()))
    except NeuronautError as error:
        # The list of sessions is there whatever a price is.
        return f"nothing: {error}"


@router.get("/investigations/report.css", include_in_schema=False)
def style() -> Response:
    """The styles of reports, as their static pages have them."""
    return Response(STYLE.read_text(encoding="utf-8"), media_type="text/css")


@router.get("/investigations/beside", summary="Two investigations side by side")
def beside(
    request: Request, pages: PagesOf, stores: StoresOf, id: Annotated[list[str], Query(max_length=2)]
) -> Response:
    """Compare two sessions."""
    if len(id) != 2:
        raise HTTPException(400, f"{len(id)} sessions are named; wanted two, as in ?id=3fa92b&id=81c0d2")
    with stores.reading() as store:
        both = [_report(store, one) for one in id]
    if wants_json(request):
        return as_json([report.to_json() for report in both])
    rows = [(name, [cells(report) for report in both]) for name, cells in _BESIDE.items()]
    bodies = [_with_prefix(body(report), name) for name, report in zip("ab", both, strict=True)]
    return pages.answer(request, "beside.html", {"reports": both, "rows": rows, "bodies": bodies})


def _with_prefix(drawn: str, name: str) -> Markup:
    """A report whose places have another name, so that links stay in it; what is quoted in it has no bare `"`."""
    return Markup(drawn.replace(' id="', f' id="{name}-').replace(' href="#', f' href="#{name}-'))


def _scores(report: Report) -> str:
    shown = [s for s in report.scores if s["value"] is not None and (s["examples"], s["metric"]) in HEADLINES]
    return "; ".join(f"{s['examples']} {s['metric']} {s['value']:.2f}".replace("_", " ") for s in shown) or "none"


def _tools(report: Report) -> str:
    return ", ".join(dict.fromkeys(trial.tool.replace("_", " ") for trial in report.experiments)) or "none"


_BESIDE = {
    "target": lambda report: report.target,
    "ended": lambda report: report.status.replace("_", " "),
    "because": lambda report: report.reason or "",
    "answer": lambda report: report.text or "none was frozen",
    "holdout": _scores,
    "policy": lambda report: report.policy,
    "seed": lambda report: str(report.settings.get("seed", "")),
    "experiments": lambda report: f"{len(report.experiments)}, {len(report.surveys)} surveys",
    "tools": _tools,
    "rivals": lambda report: ", ".join(f"{c.name} {c.share:.2f} {report.standing(c)}" for c in report.contenders[:6]),
    "forward passes": lambda report: f"{report.spent['forwards']:,}",
    "minutes": lambda report: f"{report.spent['minutes']:.1f}",
}
"""What is laid side by side, by name."""


@router.get("/investigations/{id}", summary="One investigation, all of it")
def investigation(request: Request, id: str, pages: PagesOf, stores: StoresOf, part: str = "") -> Response:
    """Show a session as it stands; `part=report` is the report alone, `part=started` how it is resumed, as HTML."""
    with stores.reading() as store:
        row = _row(store, id)
        now = sessions.standing(store, row)
        started = _started(request, row["id"])[-1:] if now == "interrupted" else []
        if part == "started":
            return pages.answer(request, "parts/started.html", {"started": started, "follow": ""})
        report = _report(store, row["id"])
        if wants_json(request):
            return as_json(report.to_json() | {"standing": now})
        drawn = Markup(body(report, examples=_examples(store, report)))
        if part == "report":
            return HTMLResponse(drawn)
        data = {
            "report": report,
            "standing": now,
            "started": started,
            "follow": "",
            "drawn": drawn,
            "decisions": [(format_event({"kind": "decided", **d}), d) for d in store.journal.decisions(report.id)],
            "last": max((event["seq"] for event in store.journal.events(report.id)), default=0),
            "asks": bool(report.spent["calls"]),
            "policies": sessions.policies(settings(request)),
        }
    return pages.answer(request, "investigation.html", data)


def _row(store: Store, id: str) -> dict[str, Any]:
    try:
        return store.journal.row(store.journal.full_id(id))
    except NeuronautError as error:
        raise NotHere(str(error)) from error


def _report(store: Store, id: str) -> Report:
    return assemble(store.journal, _row(store, id)["id"])


def _examples(store: Store, report: Report) -> list[Example]:
    """Training examples of the feature, the strongest first."""
    source = report.target.rpartition(":")[0]
    if report.kind != "feature" or all(row["source"] != source for row in store.sources()):
        return []
    train = store.evidence(Feature.parse(report.target)).train
    return sorted({example.window: example for example in train}.values(), key=lambda example: -example.peak)


@router.get("/investigations/{id}/prompts", summary="Every prompt of an investigation, and every reply")
def prompts(request: Request, id: str, pages: PagesOf, stores: StoresOf) -> Response:
    """Show what a language model was asked for decisions, and what it answered; `judged` is what judges cost beside.

    Judges are asked at the end, and calibrated before: by the examination, which is charged as a whole.
    """
    with stores.reading() as store:
        row = store.journal.row(id)
        ledger = store.journal.ledger(row["id"])
        keys = [key for key, charge in ledger.items() if charge["kind"] == "call"]
        judging = [charge for charge in ledger.values() if charge["kind"] != "call"]
        judged = {kind: sum(charge[kind] for charge in judging) for kind in KINDS}
        calls = sorted(store.calls.answers(keys).values(), key=lambda call: call.created)
    shown = [asdict(call) | {"request": call.asked()} for call in calls]
    data = {"id": row["id"], "target": row["target"], "calls": shown, "judged": judged}
    if wants_json(request):
        return as_json(data)
    data["whole"] = _whole
    return pages.answer(request, "prompts.html", data)


def _whole(text: str) -> Markup:
    """Text of any length, word for word; what does not print is spelled out."""
    return Markup(escape(spell(text)))


@router.get("/investigations/{id}/events", summary="The events of an investigation as they come")
def events(request: Request, id: str, stores: StoresOf, after: Annotated[int, Query(ge=0)] = 0) -> Response:
    """Stream the events after a number (or after `Last-Event-ID`) as server-sent events, until the session ends."""
    with stores.reading() as store:
        full = store.journal.full_id(id)
    seen = request.headers.get("last-event-id", "")
    start = int(seen) if seen.isdecimal() and len(seen) < 10 else after
    told = sessions.follow_session(stores, full, after=start, stopping=request.app.state.stopping)
    return StreamingResponse(told, media_type=STREAM)


# What changes something


def _may(request: Request) -> Compute:
    """The processes; a 403 where this server may not both compute and write."""
    allowed: Settings = settings(request)
    if not (allowed.allow_compute and allowed.allow_write):
        raise HTTPException(403, sessions.NOT_ALLOWED)
    return request.app.state.compute


May = Annotated[Compute, Depends(_may)]


@router.post("/investigations", summary="Start an investigation")
async def start(request: Request, may: May, stores: StoresOf, form: Form) -> Response:
    """Investigate a feature (`target`, `policy`, `experiments`, `minutes`, `seed`, `budget` of a form): to its page."""
    asked = sessions.read_start(form, settings(request))

    def submit() -> Job:
        with stores.reading() as store:
            return sessions.start(may, settings(request), store, asked)

    return await _go(await run_in_threadpool(submit))


@router.post("/investigations/{id}/resume", summary="Go on with an interrupted investigation")
async def resume(request: Request, id: str, may: May, stores: StoresOf) -> Response:
    """Go on with a session."""

    def submit() -> Job:
        with stores.reading() as store:
            return sessions.resume(may, settings(request), store, store.journal.full_id(id))

    return await _go(await run_in_threadpool(submit))


async def _go(job: Job) -> Response:
    """Go to the session's page, or to the list, which follows it until it has begun."""
    id = await sessions.begun(job)
    if id is None and job.state == "failed":
        raise HTTPException(500 if job.fault else 400, job.error)
    return RedirectResponse(f"/investigations?follow={job.id}#started" if id is None else f"/investigations/{id}", 303)


@router.post("/investigations/{id}/stop", summary="Stop an investigation")
def stop(id: str, may: May, stores: StoresOf) -> Response:
    """Stop a session of this server; what it has done is kept, and it can be resumed."""
    with stores.reading() as store:
        id = store.journal.full_id(id)
        sessions.stop(may, store, id)
    return RedirectResponse(f"/investigations/{id}", 303)


@router.post("/investigations/{id}/fork", summary="Copy an investigation up to a decision")
def fork_session(id: str, _: May, stores: StoresOf, form: Form) -> Response:
    """Copy a session before the decision `step`, with another `seed` where one is given; it can be resumed then."""
    step, seed = form.get("step", ""), form.get("seed", "")
    if not step.isdecimal() or len(step) > 6 or (seed and not (seed.isdecimal() and len(seed) < 10)):
        raise HTTPException(400, f"step {step[:40]!r} and seed {seed[:40]!r} are no numbers; give the step's")
    with stores.writing() as store:
        new = fork(store.journal, store.journal.full_id(id), step=int(step), seed=int(seed) if seed else None)
    return RedirectResponse(f"/investigations/{new.id}", 303)
