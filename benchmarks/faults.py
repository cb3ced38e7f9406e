"""Labelling against a language model's server that fails one request in five, and kill -9 at random points.

    python -m neuronaut.benchmarks.faults [--features 200] [--kills 20] [--faults 0.2] [--processes 1] [--jobs 1]

The server (fault_server.py) stands in for the model, so its replies mean nothing; the benchmark counts whether
anything is lost or paid for twice. One job runs undisturbed, an equal one is killed again and again and then finished:
both must end with the same explanations and scores. With several processes, all do this job on one database at once;
one of them is killed, and begins again, while the others go on. With several jobs the killed one has so many workers
(`label -j`), and every other kill hits one of these, whose work the command gives to another. A call is paid twice if
its good reply was in the log when it was sent again; a call in flight at a kill is sent again by necessity, under the
same idempotency key.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

SITE = "mlp.1"


@dataclass(frozen=True)
class Report:
    """Requests and results of the killed job beside the undisturbed one."""

    features: int
    processes: int
    jobs: int
    kills: int
    asked: int
    """Requests that reached the server in the killed job."""
    answered: int
    """Good replies that it sent."""
    paid_twice: int
    """Requests whose good reply was in the log, and which were sent again."""
    in_flight_at_kills: int
    """Requests that were answered well more than once, none of them in the log when sent again."""
    same_explanations: bool
    same_scores: bool
    status: dict[str, int]
    """Features by status at the end of the killed job."""


def main() -> None:
    """Run both jobs and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes of the killed job")
    parser.add_argument("--workers", type=int, default=64, help="requests in flight of each process")
    parser.add_argument("--faults", type=float, default=0.2)
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(run(Path(folder), options)), indent=1))


def run(folder: Path, options: argparse.Namespace) -> Report:
    """Harvest, label undisturbed and label with kills, with databases and logs in the folder."""
    neuronaut("harvest", "demo", SITE, "--tokens", "300k", "-d", str(folder / "calm.db"))
    shutil.copy(folder / "calm.db", folder / "killed.db")
    # At one address both times: a model's address is part of a request's key, by which its faults are drawn.
    with server(folder / "calm.log", options) as url:
        neuronaut(*command(folder / "calm.db", url, options))
    with server(folder / "killed.log", options, port=int(url.split(":")[2].split("/")[0])) as url:
        kill_jobs(folder, url, options)
    requests = [json.loads(line) for line in (folder / "killed.log").read_text().splitlines()]
    recorded = dict(rows(folder / "killed.db", RECORDED))
    # Times of the log are those of the calendar, the server's those of the machine's own clock.
    offset = time.time() - time.monotonic()
    twice = {r["key"] for r in requests if r["at"] + offset > recorded.get(r["key"], math.inf) + CLOCK_SECONDS}
    good: dict[str, int] = {}
    for request in requests:
        good[request["key"]] = good.get(request["key"], 0) + request["good"]
    calm, killed = folder / "calm.db", folder / "killed.db"
    return Report(
        features=options.features,
        processes=options.processes,
        jobs=options.jobs,
        kills=options.kills,
        asked=len(requests),
        answered=sum(good.values()),
        paid_twice=len(twice),
        in_flight_at_kills=sum(count > 1 for key, count in good.items() if key in recorded) - len(twice),
        same_explanations=rows(calm, EXPLANATIONS) == rows(killed, EXPLANATIONS),
        same_scores=rows(calm, SCORES) == rows(killed, SCORES),
        status={str(status): count for status, count in rows(killed, STATUS)},
    )


def kill_jobs(folder: Path, url: str, options: argparse.Namespace) -> None:
    """Run the jobs, kill one of them again and again after a random number of requests, then let all end."""
    rng, log, database = random.Random(options.seed), folder / "killed.log", folder / "killed.db"
    arguments = call(*command(database, url, options), "-j", str(options.jobs))
    begin = partial(subprocess.Popen, arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    jobs = [begin() for _ in range(options.processes)]
    for turn in range(options.kills):
        until = count_requests(log) + rng.randrange(5, 80)
        while count_requests(log) < until and all(job.poll() is None for job in jobs):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        victim = rng.randrange(len(jobs))
        if options.jobs > 1 and turn % 2 == 0:
            os.kill(rng.choice(find_workers(jobs[victim].pid)), signal.SIGKILL)
            print(f"kill {turn + 1}: a worker, {len(rows(database, RECORDED))} answers in the log", file=sys.stderr)
            continue
        jobs[victim].send_signal(signal.SIGKILL)
        if jobs[victim].wait() != -signal.SIGKILL:
            raise SystemExit(f"the job was done before kill {turn + 1}; give more --features, or fewer --workers")
        print(f"kill {turn + 1}: {len(rows(database, RECORDED))} answers in the log", file=sys.stderr)
        jobs[victim] = begin()
    if any(job.wait() for job in jobs):
        raise SystemExit("a job that was not killed failed")


def find_workers(pid: int) -> list[int]:
    """The worker processes of a command, as Linux lists them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def command(database: Path, url: str, options: argparse.Namespace) -> list[str]:
    """Arguments of the job: label random features of the harvest by the server's model."""
    return [
        "label",
        f"demo:{SITE}:random:{options.features}",
        "-e",
        "highlight",
        "-s",
        "detection",
        "--no-controls",
        "--no-calibration",
        "-m",
        "openai:planted",
        "--base-url",
        url,
        "--workers",
        str(options.workers),
        "-d",
        str(database),
    ]


EXPLANATIONS = "SELECT feature_id, status, text, reason FROM explanations WHERE status <> 'failed' ORDER BY 1, 3"
STATUS = "SELECT status, count(*) FROM explanations GROUP BY status"
RECORDED = "SELECT key, (julianday(created) - 2440587.5) * 86400 FROM llm_calls WHERE status = 'ok'"
"""When each good answer came into the log, in seconds of the calendar."""
CLOCK_SECONDS = 0.05
"""By how much the two clocks may disagree."""
SCORES = """SELECT feature_id, scorer, examples, metric, value, scores.reason, coverage FROM scores
    JOIN explanations ON explanations.id = explanation_id ORDER BY 1, 2, 3, 4"""


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def count_requests(log: Path) -> int:
    """Count the requests that a server has logged."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def call(*arguments: str) -> list[str]:
    """The command line of a call of `neuronaut` in a process of its own."""
    return [sys.executable, "-m", "neuronaut", *arguments]


def neuronaut(*arguments: str) -> None:
    """Run `neuronaut` to its end."""
    subprocess.run(call(*arguments), check=True, stdout=subprocess.DEVNULL)


@contextmanager
def server(log: Path, options: argparse.Namespace, *, port: int = 0) -> Iterator[str]:
    """Run fault_server.py in a process of its own; yields its base URL."""
    arguments: Sequence[str] = (
        "--faults",
        str(options.faults),
        "--delay",
        str(options.delay),
        "--hang",
        "3",
        "--log",
        str(log),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "neuronaut.benchmarks.fault_server", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()


if __name__ == "__main__":
    main()
