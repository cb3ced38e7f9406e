"""Jobs: requests to the model process, bounded and in turn, each with an id, its progress and its result.

One job runs at a time, so many wait at most, and each has so much time; one more is refused. A job ends once: done,
failed with a reason, or cancelled by whoever asked for it, by a client that left, or by its time. Ended ones are kept
for a while, so that a result can be fetched again by its id.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..subject.errors import NeuronautError
from .worker import GRACE_SECONDS, CancelledError, ModelProcess, ProcessGoneError, Request

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
KEPT = 64
"""Jobs that have ended and can still be asked for."""


class QueueFullError(NeuronautError):
    """As many jobs wait as may."""


@dataclass(eq=False)
class Job:
    """A request and what has become of it; written by the queue alone."""

    operation: str
    arguments: Mapping[str, Any]
    number: int
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    progress: str = ""
    """What is being done, in a line."""
    ahead: int = 0
    """Jobs before it, the one that runs included."""
    result: Any = None
    error: str | None = None
    """Why it failed or was cancelled."""
    fault: bool = False
    """Whether it failed by a fault of the server, not of the request."""
    listeners: list[Callable[[], None]] = field(default_factory=list)
    """Called, by any thread, after every change."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.state in ENDED

    def describe(self) -> dict[str, Any]:
        """What a client is told."""
        names = ("id", "operation", "state", "progress", "ahead", "result", "error")
        return {name: getattr(self, name) for name in names}


class JobQueue:
    """Jobs for one process, in the order in which they came."""

    def __init__(self, process: ModelProcess, *, most_waiting: int, seconds: float | None = None) -> None:
        """`seconds` is the most that a job may run; None for no limit."""
        self.process = process
        self._most, self._seconds = most_waiting, seconds
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._count, self._closed = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="jobs")
        self._thread.start()

    def submit(self, operation: str, arguments: Mapping[str, Any]) -> Job:
        """Put a job at the end of the queue; QueueFullError where too many wait."""
        with self._changed:
            if len(self._waiting) >= self._most:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait for the model, and no more may; try again in a moment"
                )
            self._count += 1
            job = Job(operation, arguments, self._count)
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._place()
            self._forget()
            self._changed.notify_all()
        return job

    def jobs(self) -> list[Job]:
        """All that are known, the latest last."""
        with self._changed:
            return list(self._jobs.values())

    def find(self, id: str) -> Job | None:
        """The job of an id; None where it is not known."""
        with self._changed:
            return self._jobs.get(id)

    def cancel(self, job: Job, why: str) -> None:
        """Take a job out of the queue, or interrupt it; nothing where it has ended."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._place()
                self._end(job, "cancelled", error=why)
                return
            if job.ended or job.error is not None:
                return
            job.error = why
        self.process.cancel(job.number)
        timer = threading.Timer(GRACE_SECONDS, self._force, [job])
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """End the process with all jobs."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                self._end(job, "cancelled", error="the server is stopping")
            self._waiting.clear()
            self._changed.notify_all()
        self.process.close()
        self._thread.join(GRACE_SECONDS)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.pop(0)
                job.state = "running"
                self._place()
            timer = None
            if self._seconds is not None:
                timer = threading.Timer(
                    self._seconds, self.cancel, [job, f"it took more than {self._seconds:g} seconds; ask for less"]
                )
                timer.daemon = True
                timer.start()
            self._perform(job)
            if timer is not None:
                timer.cancel()

    def _perform(self, job: Job) -> None:
        def tell(text: str) -> None:
            job.progress = text
            self._tell(job)

        state, result, error, fault = "done", None, None, False
        try:
            result = self.process.perform(Request(job.number, job.operation, job.arguments), tell)
        except CancelledError:
            state = "cancelled"
        except NeuronautError as problem:
            # A process that was ended because a cancelled job did not stop is no failure of the job.
            state, error = ("failed", str(problem)) if job.error is None else ("cancelled", None)
            fault = isinstance(problem, ProcessGoneError)
        except RuntimeError as problem:
            state, error, fault = "failed", f"{problem}; this was not expected, the server's log says where", True
        with self._changed:
            self._running = None
            job.fault = fault
            self._end(job, state, result=result, error=error or (job.error if state == "cancelled" else None))

    def _end(self, job: Job, state: State, *, result: Any = None, error: str | None = None) -> None:
        job.state, job.result, job.error, job.progress, job.ahead = state, result, error, "", 0
        self._tell(job)

    def _force(self, job: Job) -> None:
        if self._running is job:
            self.process.kill()

    def _place(self) -> None:
        """Tell those that wait how many are before them."""
        for place, job in enumerate(self._waiting):
            job.ahead = place + (self._running is not None)
        if self._running is not None:
            self._running.ahead = 0
        for job in (self._running, *self._waiting):
            if job is not None:
                self._tell(job)

    def _tell(self, job: Job) -> None:
        for listener in list(job.listeners):
            listener()

    def _forget(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.ended]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[id]
