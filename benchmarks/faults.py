"""Labelling against a language model's server that fails one request in five, and kill -9 at random points.

    python -m neuronaut.benchmarks.faults [--features 200] [--kills 20] [--faults 0.2]

The server (fault_server.py) stands in for the model, so its replies mean nothing; the benchmark counts whether
anything is lost or paid for twice. One job runs undisturbed, an equal one is killed again and again and then finished:
both must end with the same explanations and scores. A call is paid twice if its good reply was in the log when it
was sent again; a call in flight at a kill is sent again by necessity, under the same idempotency key.
"""

import argparse
import json
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
from pathlib import Path
from typing import Any

SITE = "mlp.1"


@dataclass(frozen=True)
class Report:
    """Requests and results of the killed job beside the undisturbed one."""

    features: int
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
    rng = random.Random(options.seed)
    logged: list[tuple[float, set[str]]] = []
    with server(folder / "killed.log", options, port=int(url.split(":")[2].split("/")[0])) as url:
        for turn in range(options.kills):
            if kill_job(folder, url, options, rng) != -signal.SIGKILL:
                raise SystemExit(f"the job was done before kill {turn + 1}; give more --features")
            logged.append((time.monotonic(), logged_keys(folder / "killed.db")))
            print(f"kill {turn + 1}: {len(logged[-1][1])} answers in the log", file=sys.stderr)
        neuronaut(*command(folder / "killed.db", url, options))
    requests = [json.loads(line) for line in (folder / "killed.log").read_text().splitlines()]
    twice = {
        request["key"]
        for when, keys in logged
        for request in requests
        if request["at"] > when and request["key"] in keys
    }
    good: dict[str, int] = {}
    for request in requests:
        good[request["key"]] = good.get(request["key"], 0) + request["good"]
    calm, killed = folder / "calm.db", folder / "killed.db"
    return Report(
        features=options.features,
        kills=options.kills,
        asked=len(requests),
        answered=sum(good.values()),
        paid_twice=len(twice),
        in_flight_at_kills=sum(count > 1 for count in good.values()) - len(twice),
        same_explanations=rows(calm, EXPLANATIONS) == rows(killed, EXPLANATIONS),
        same_scores=rows(calm, SCORES) == rows(killed, SCORES),
        status={str(status): count for status, count in rows(killed, STATUS)},
    )


def kill_job(folder: Path, url: str, options: argparse.Namespace, rng: random.Random) -> int:
    """Start the job and kill it after a random number of requests; returns its exit status."""
    log = folder / "killed.log"
    job = subprocess.Popen(
        call(*command(folder / "killed.db", url, options)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = count_requests(log) + rng.randrange(5, 80)
    while count_requests(log) < until and job.poll() is None:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1))
    job.send_signal(signal.SIGKILL)
    return job.wait()


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
        "-m",
        "openai:planted",
        "--base-url",
        url,
        "-d",
        str(database),
    ]


EXPLANATIONS = "SELECT feature_id, status, text, reason FROM explanations WHERE status <> 'failed' ORDER BY 1, 3"
STATUS = "SELECT status, count(*) FROM explanations GROUP BY status"
SCORES = """SELECT feature_id, scorer, examples, metric, value, scores.reason, coverage FROM scores
    JOIN explanations ON explanations.id = explanation_id ORDER BY 1, 2, 3, 4"""


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def logged_keys(database: Path) -> set[str]:
    """Keys of the good answers in the log."""
    return {str(key) for (key,) in rows(database, "SELECT key FROM llm_calls WHERE status = 'ok'")}


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
