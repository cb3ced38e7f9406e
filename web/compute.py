"""Requests that run the model: the operations of `web/operations`, in the model process, one after another.

A request is answered when it is done; with `Accept: text/event-stream` its progress comes as events first. Where the
client leaves before, it is cancelled. The server's own process holds no model, and where computing is not allowed
there is no process at all, and every request is told how to start the server.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .commands import open_commands
from .jobs import ENDED, Job, JobQueue, QueueFullError
from .operations.registry import COMPUTE, OPERATIONS, SECONDS
from .settings import Settings
from .spending import Allowance
from .worker import ModelProcess, Perform, Tell

router = APIRouter()

MOST_WAITING = 32
"""Requests that may wait for the model."""
GRACE = 1.1
"""A request ends itself when its operation's time is over; so much later it is interrupted."""
MOST_SESSIONS = 4
"""Sessions that may wait for the one that runs."""
TELL_SECONDS = 0.2
"""Seconds between two lines of progress."""
LOOK_SECONDS = 0.5
"""Seconds between two looks at whether a client is still there."""
STREAM = "text/event-stream"
NOT_ALLOWED = "this server does not run models; start it with: neuronaut serve --allow-compute"


class Compute:
    """The processes of a server that may compute: one for requests, one for sessions, each started when needed."""

    def __init__(self, settings: Settings, allowance: Allowance | None = None) -> None:
        """`allowance` is that of the language model, where there is one."""
        self.allowance = allowance
        open_process = partial(open_operations, settings.database, settings.model)
        self.requests = JobQueue(ModelProcess(open_process), most_waiting=MOST_WAITING, seconds=GRACE * SECONDS)
        self.sessions = JobQueue(ModelProcess(open_commands), most_waiting=MOST_SESSIONS)

    def get(self, id: str) -> tuple[JobQueue, Job]:
        """The job of an id, with its queue."""
        for queue in (self.requests, self.sessions):
            if (job := queue.find(id)) is not None:
                return queue, job
        raise HTTPException(404, f"there is no job {id[:40]!r}, or it ended long ago; ask again")

    def close(self) -> None:
        """End both processes."""
        self.requests.close()
        self.sessions.close()


@contextmanager
def open_operations(database: str, model: str | None) -> Iterator[Perform]:
    """Open the database in the model process; the model is loaded by the first request that needs it."""
    from ..data.store.store import Store
    from ..labelling.opening import LoadOptions
    from .operations.context import Context, ModelCache, Watch
    from .operations.registry import perform

    with Store(database, create=False) as store:
        store.refuse_writes()
        models = ModelCache(LoadOptions(model=model))

        def run(operation: str, arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
            context = Context(store, models, Watch(_rarely(tell)))
            return perform(operation, arguments, context, granted=COMPUTE, characters=None).to_json()

        yield run


def _rarely(tell: Tell) -> Any:
    """Tell what is being done, not at every forward pass."""
    last = ["", 0.0]

    def on_progress(what: str, line: str) -> None:
        if what == last[0] and time.monotonic() - float(last[1]) < TELL_SECONDS:
            return
        last[:] = [what, time.monotonic()]
        tell(line)

    return on_progress


def compute(request: Request) -> Compute:
    """The server's processes, for `Depends`; a 403 that says how to get them where there are none."""
    processes: Compute | None = request.app.state.compute
    if processes is None:
        raise HTTPException(403, NOT_ALLOWED)
    return processes


@router.post("/compute/{operation}", summary="Run an operation on the model")
async def run_operation(request: Request, operation: str, compute: Annotated[Compute, Depends(compute)]) -> Response:
    """Run an operation with the JSON object of its arguments; answers its result when it is done.

    With `Accept: text/event-stream` the states of the job come as events, the last one with the result. A client that
    leaves cancels it.
    """
    job = submit(compute.requests, operation, await _read_arguments(request))
    if STREAM in request.headers.get("accept", ""):
        return StreamingResponse(_stream(request, compute.requests, job), media_type=STREAM, headers={"X-Job": job.id})
    return await answer(request, compute.requests, job)


@router.get("/jobs/{id}", summary="The state of a job, and its result once it is done")
async def job(id: str, compute: Annotated[Compute, Depends(compute)]) -> Response:
    """Tell how a job stands."""
    return JSONResponse(compute.get(id)[1].describe())


@router.delete("/jobs/{id}", summary="Cancel a job")
async def cancel(id: str, compute: Annotated[Compute, Depends(compute)]) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    queue, job = compute.get(id)
    queue.cancel(job, "it was cancelled")
    return JSONResponse(job.describe())


def submit(queue: JobQueue, operation: str, arguments: Mapping[str, Any]) -> Job:
    """Check arguments, and put a job at the end of the queue."""
    known = OPERATIONS.get(operation)
    if known is None or "model" not in known.needs or not known.needs <= COMPUTE:
        there = ", ".join(name for name, other in OPERATIONS.items() if "model" in other.needs <= COMPUTE)
        raise HTTPException(404, f"there is no operation {operation[:40]!r} of the model; there are {there}")
    known.arguments.read(arguments)
    return queued(queue, operation, arguments)


def queued(queue: JobQueue, operation: str, arguments: Mapping[str, Any]) -> Job:
    """Put a job at the end of the queue; a 429 where it is full."""
    try:
        return queue.submit(operation, arguments)
    except QueueFullError as error:
        raise HTTPException(429, str(error), headers={"Retry-After": "5"}) from error


async def _read_arguments(request: Request) -> Mapping[str, Any]:
    try:
        arguments = await request.json()
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON ({error}); wanted an object of arguments") from error
    if not isinstance(arguments, dict):
        raise HTTPException(400, "the body is no JSON object; wanted one of arguments")
    return arguments


async def answer(request: Request, queue: JobQueue, job: Job) -> Response:
    """Wait for a job, and answer its result; it is cancelled where the client leaves."""
    async for _ in watched(request, queue, job):
        pass
    if job.state == "done":
        return JSONResponse(job.result, headers={"X-Job": job.id})
    status = 500 if job.fault else 400 if job.state == "failed" else 503
    return JSONResponse({"error": job.error, "job": job.id}, status, headers={"X-Job": job.id})


async def answer_page(request: Request, operation: str, arguments: Mapping[str, Any]) -> Response:
    """Answer a page's address as JSON, by running its operation; not to pages elsewhere, for which nobody asked."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise HTTPException(403, "this request comes from another site; open the page here and send it from there")
    queue = compute(request).requests
    return await answer(request, queue, submit(queue, operation, arguments))


GONE = "the client left"


async def watched(request: Request, queue: JobQueue, job: Job) -> AsyncGenerator[Mapping[str, Any]]:
    """The states of a job, which is cancelled where the client leaves or the server stops."""
    watching = asyncio.create_task(_cancel_when_gone(request, queue, job))
    try:
        async for state in follow(job):
            yield state
    finally:
        watching.cancel()
        queue.cancel(job, GONE)


async def _cancel_when_gone(request: Request, queue: JobQueue, job: Job) -> None:
    while not request.app.state.stopping():
        if await request.is_disconnected():
            queue.cancel(job, GONE)
            return
        await asyncio.sleep(LOOK_SECONDS)
    queue.cancel(job, "the server is stopping")
    # It ends anyway, and may be loading a model, which takes its time to be interrupted.
    queue.process.kill()


async def _stream(request: Request, queue: JobQueue, job: Job) -> AsyncIterator[str]:
    async with aclosing(watched(request, queue, job)) as states:
        async for state in states:
            yield as_event("job", state)


async def follow(job: Job) -> AsyncGenerator[Mapping[str, Any]]:
    """What a job is now, and again after every change, until it has ended."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def listen() -> None:
        # A server that stops has no loop any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    job.listeners.append(listen)
    try:
        while True:
            changed.clear()
            state = job.describe()
            yield state
            if state["state"] in ENDED:
                return
            await changed.wait()
    finally:
        job.listeners.remove(listen)


def as_event(name: str, data: Any, *, id: int | None = None) -> str:
    """A server-sent event."""
    number = "" if id is None else f"id: {id}\n"
    return f"event: {name}\n{number}data: {json.dumps(data, ensure_ascii=False)}\n\n"
