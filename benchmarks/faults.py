"""Labelling against a language model's server that fails one request in five, and kill -9 at random points.

    python -m neuronaut.benchmarks.faults [--features 200] [--kills 20] [--faults 0.2]

The server (fault_server.py) stands in for the model, so what is said means nothing; what is counted is whether
anything is lost or paid for twice. One job runs undisturbed, an equal one is killed again and again and then finished:
both must end with the same explanations and scores. A call is paid twice if its good reply was in the log when it
was asked again; what was in flight at a kill is asked again by necessity, under the same idempotency key.
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
    features: int
    kills: int
    asked: int
    """Requests that reached the server in the killed job."""
    answered: int
    """Good replies that it sent."""
    paid_twice: int
    """Requests whose good reply was in the log, and which were asked again."""
    in_flight_at_kills: int
    """Requests that were answered well more than once, none of them in the log when asked again."""
    same_explanations: bool
    same_scores: bool
    status: dict[str, int]
    """Features by status at the end of the killed job."""


def main() -> None:
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
    neuronaut("harvest", "demo", SITE, "--tokens", "300k", "-d", str(folder / "calm.db"))
    shutil.copy(folder / "calm.db", folder / "killed.db")
    # At one address both times: where a model is asked is part of what a request, and its faults, are known by.
    with server(folder / "calm.log", options) as url:
        neuronaut(*command(folder / "calm.db", url, options))
    rng = random.Random(options.seed)
    logged: list[tuple[float, set[str]]] = []
    with server(folder / "killed.log", options, port=int(url.split(":")[2].split("/")[0])) as url:
        for turn in range(options.kills):
            job = subprocess.Popen(
                call(*command(folder / "killed.db", url, options)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            until = lines(folder / "killed.log") + rng.randrange(5, 80)
            while lines(folder / "killed.log") < until and job.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 1))
            job.send_signal(signal.SIGKILL)
            if job.wait() != -signal.SIGKILL:
                raise SystemExit(f"the job was done before kill {turn + 1}; give more --features")
            logged.append((time.monotonic(), answers(folder / "killed.db")))
            print(f"kill {turn + 1}: {len(logged[-1][1])} answers in the log", file=sys.stderr)
        neuronaut(*command(folder / "killed.db", url, options))
    seen = [json.loads(line) for line in (folder / "killed.log").read_text().splitlines()]
    twice = {one["key"] for when, keys in logged for one in seen if one["at"] > when and one["key"] in keys}
    good: dict[str, int] = {}
    for one in seen:
        good[one["key"]] = good.get(one["key"], 0) + one["good"]
    calm, killed = folder / "calm.db", folder / "killed.db"
    return Report(
        features=options.features,
        kills=options.kills,
        asked=len(seen),
        answered=sum(good.values()),
        paid_twice=len(twice),
        in_flight_at_kills=sum(count > 1 for count in good.values()) - len(twice),
        same_explanations=rows(calm, EXPLANATIONS) == rows(killed, EXPLANATIONS),
        same_scores=rows(calm, SCORES) == rows(killed, SCORES),
        status={str(status): count for status, count in rows(killed, STATUS)},
    )


def command(database: Path, url: str, options: argparse.Namespace) -> list[str]:
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
    connection = sqlite3.connect(database)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def answers(database: Path) -> set[str]:
    """Keys of the good answers in the log."""
    return {str(key) for (key,) in rows(database, "SELECT key FROM llm_calls WHERE status = 'ok'")}


def lines(log: Path) -> int:
    """Requests that a server has seen."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def call(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "neuronaut", *arguments]


def neuronaut(*arguments: str) -> None:
    subprocess.run(call(*arguments), check=True, stdout=subprocess.DEVNULL)


@contextmanager
def server(log: Path, options: argparse.Namespace, *, port: int = 0) -> Iterator[str]:
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
