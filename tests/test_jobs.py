"""The queue of requests and its process: bounds, order, cancelling, deaths, and no child without its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from neuronaut.subject.errors import NeuronautError
from neuronaut.web.jobs import Job, JobQueue, QueueFullError
from neuronaut.web.worker import ModelProcess, Perform, Tell

PATIENCE = 60.0
"""Seconds until a test gives up."""


@contextmanager
def open_arithmetic() -> Iterator[Perform]:
    left: list[str] = []

    def perform(operation: str, arguments: Mapping[str, Any], tell: Tell) -> Any:
        number = arguments["number"]
        if operation == "square":
            tell(f"squaring {number}")
            return number * number
        if operation == "wait":
            try:
                tell(f"waiting in {os.getpid()}")
                while not Path(arguments["until"]).exists():
                    time.sleep(0.01)
            finally:
                left.append("the hooks are off")
            return number
        if operation == "left":
            return left
        if operation == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if operation == "refuse":
            raise NeuronautError(f"{number} is not what was wanted")
        raise ZeroDivisionError("nothing is left")

    yield perform


@contextmanager
def open_nothing() -> Iterator[Perform]:
    raise NeuronautError("there is no such database")
    yield


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    jobs = JobQueue(ModelProcess(open_arithmetic), most_waiting=2)
    yield jobs
    jobs.close()


def until(job: Job, reached: Callable[[Job], bool]) -> Job:
    """Wait for a job without asking again and again."""
    changed = threading.Event()
    job.listeners.append(changed.set)
    end = time.monotonic() + PATIENCE
    while not reached(job):
        assert changed.wait(max(0.0, end - time.monotonic())), job
        changed.clear()
    return job


def ended(job: Job) -> Job:
    return until(job, lambda job: job.ended)


def test_jobs_run_in_turn_and_one_more_than_may_wait_is_refused(queue: JobQueue, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    first = until(
        queue.submit("wait", {"number": 1, "until": str(stop)}), lambda job: job.progress.startswith("waiting")
    )
    second, third = (queue.submit("square", {"number": number}) for number in (2, 3))
    assert [job.ahead for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        queue.submit("square", {"number": 4})
    queue.cancel(second, "its client left")
    assert (second.state, second.error, third.ahead) == ("cancelled", "its client left", 1)
    stop.touch()
    assert (ended(first).result, ended(third).result) == (1, 9)
    assert queue.find(third.id) is third and queue.find("x") is None


def test_what_is_cancelled_is_interrupted_in_the_same_process(queue: JobQueue, tmp_path: Path) -> None:
    job = queue.submit("wait", {"number": 1, "until": str(tmp_path / "never")})
    until(job, lambda job: job.progress.startswith("waiting"))
    pid = queue.process.pid
    queue.cancel(job, "the client left")
    assert ended(job).state == "cancelled" and job.error == "the client left"
    assert ended(queue.submit("left", {"number": 0})).result == ["the hooks are off"]
    assert queue.process.pid == pid


def test_a_job_that_is_cancelled_while_the_process_starts_is_never_begun(queue: JobQueue, tmp_path: Path) -> None:
    job = queue.submit("wait", {"number": 1, "until": str(tmp_path / "never")})
    queue.cancel(job, "asked")
    assert ended(job).state == "cancelled"
    assert ended(queue.submit("square", {"number": 3})).result == 9


def test_errors_are_told_apart(queue: JobQueue) -> None:
    refused = ended(queue.submit("refuse", {"number": 7}))
    assert (refused.state, refused.error, refused.fault) == ("failed", "7 is not what was wanted", False)
    broken = ended(queue.submit("divide", {"number": 7}))
    assert broken.state == "failed" and broken.fault and "ZeroDivisionError: nothing is left" in str(broken.error)
    assert broken.result is None


def test_a_process_that_dies_is_said_and_started_again(queue: JobQueue) -> None:
    dead = ended(queue.submit("die", {"number": 0}))
    assert dead.state == "failed" and dead.fault and "exit code -9" in str(dead.error)
    assert ended(queue.submit("square", {"number": 3})).result == 9
    assert queue.process.pid is not None
    os.kill(queue.process.pid, signal.SIGKILL)
    assert ended(queue.submit("square", {"number": 4})).result == 16


def test_what_cannot_be_opened_is_said_to_each_request() -> None:
    queue = JobQueue(ModelProcess(open_nothing), most_waiting=2)
    for _ in range(2):
        assert ended(queue.submit("square", {"number": 3})).error == "there is no such database"
    queue.close()


def test_a_job_has_so_much_time(tmp_path: Path) -> None:
    queue = JobQueue(ModelProcess(open_arithmetic), most_waiting=2, seconds=0.2)
    job = ended(queue.submit("wait", {"number": 1, "until": str(tmp_path / "never")}))
    assert job.state == "cancelled" and "more than 0.2 seconds" in str(job.error)
    queue.close()


PARENT = """
import sys
from neuronaut.web.jobs import JobQueue
from neuronaut.web.worker import ModelProcess
from test_jobs import open_arithmetic, until
if __name__ == "__main__":
    queue = JobQueue(ModelProcess(open_arithmetic), most_waiting=2)
    job = until(queue.submit("wait", {"number": 1, "until": sys.argv[1]}), lambda job: job.progress.startswith("wait"))
    print(queue.process.pid, flush=True)
    sys.stdin.read()
"""


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path / "never")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + PATIENCE
    while _is_there(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_there(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        # A zombie has ended, whoever has yet to be told.
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False
